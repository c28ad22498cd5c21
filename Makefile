# make demo   trains the default language model from nothing, tests it, and lets it write
# make test   the default tests, in the same environment, with what tests need, in two processes (JOBS=4: in four)
# make test-processes   what takes longer: several processes, compilers, trainings that are killed and resumed
# make test-ecosystem   small trainings in other packages, each in an environment of its own (OPTIONS='--only darts')
# make pages   looks at every page of the documentation in Chromium, wide and narrow, without a network
# make test-compat  the callbacks under older releases of Lightning (ONLY='2.4.0 pytorch_lightning': under one)
# make gpu    everything that only a GPU can show, in eight minutes (OPTIONS='--device cpu --quick': without one)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
JOBS ?= 2
CONSTRAINTS ?= constraints.txt
INSTALLED := .venv/.installed
USABLE := .venv/.usable

.PHONY: demo test test-processes test-slow test-compat test-ecosystem gpu lint types pyright docs pages wheel check clean

demo: $(USABLE)
	$(BIN)/rnn-blocks language-model fit
	@echo; echo "On the held-out test split:"
	$(BIN)/rnn-blocks language-model test
	@echo; echo "A sample:"
	$(BIN)/rnn-blocks language-model generate --prompt "def " --max_tokens 150 --seed 1

test: $(INSTALLED)
	$(BIN)/pytest -n $(JOBS) --dist loadfile

test-processes: $(INSTALLED)
	$(BIN)/pytest -n $(JOBS) --dist loadfile -m 'processes and not slow'

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

# Makes an environment for each release, in .compat: a Lightning alone, the rest is .venv's.
test-compat: $(INSTALLED)
	$(BIN)/python tests/compat/run.py --only '$(ONLY)' --jobs $(JOBS)

# Makes environments of its own, below .ecosystem or $RNN_BLOCKS_ECOSYSTEM: minutes and about a gigabyte each.
test-ecosystem:
	$(PYTHON) tests/ecosystem/run.py $(OPTIONS)

# Needs no environment of its own: the one that has torch for this machine's GPU, by PYTHON=… or else .venv.
gpu:
	$(if $(filter command environment,$(firstword $(origin PYTHON))),$(PYTHON),$(BIN)/python) tests/gpu/check.py $(OPTIONS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# The public interface as users' code sees it, by pyright: a minute.
pyright: $(INSTALLED)
	$(BIN)/python tests/typing/check.py

docs: $(INSTALLED)
	$(BIN)/sphinx-build -W -n -q docs docs/_build/html

# SCREENSHOTS=folder: with a picture of each.
pages: docs
	$(BIN)/python tests/pages/look.py docs/_build/html $(if $(SCREENSHOTS),--screenshots '$(SCREENSHOTS)')

# The wheel, in an environment that holds nothing else of this project, used from another folder.
wheel: $(INSTALLED)
	rm -rf build dist .venv-wheel
	$(BIN)/python -m build --quiet --wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install --quiet -c $(CONSTRAINTS) dist/*.whl
	cd / && "$(CURDIR)/.venv-wheel/bin/python" -P "$(CURDIR)/tests/check_wheel.py"
	rm -rf .venv-wheel

check: test test-processes lint types pyright docs wheel

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	touch $(USABLE) $@

# What the recipes need, without the tools of development, and of bytecode what is used: half the time.
$(USABLE): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile -c $(CONSTRAINTS) -e '.[recipes,export]'
	touch $@

clean:
	rm -rf build dist docs/_build .venv-wheel
