"""Sweep files: those that ship are what Weights & Biases takes, and what a file says is checked before it is run."""

import subprocess
from pathlib import Path

import pytest
import yaml
from pretend_sweep import run, spec_of, written
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.tools.sweep import command as tool
from rnn_blocks.recipes.tools.sweep.search import Search
from rnn_blocks.recipes.tools.sweep.spec import read_sweep, shipped_sweeps


@pytest.fixture(autouse=True)
def corpora(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PTB_TRAIN", "PTB_VALID", "PTB_TEST"):
        monkeypatch.setenv(name, f"{name.lower()}.txt")


@pytest.mark.parametrize("name", shipped_sweeps())
def test_a_shipped_sweep_is_what_wandb_takes_and_the_command_line_of_its_agent_is_ours(name: str) -> None:
    config = yaml.safe_load(shipped_sweeps()[name].read_text())
    if config["method"] != "bayes":
        assert set(config) <= {"description", "program", "command", "method", "metric", "parameters"}
    spec = read_sweep(shipped_sweeps()[name])
    search = Search(spec)
    point = search.point(search.ask())
    chosen = {"args": {name: {"value": value} for name, value in point.values.items()}}
    command = []
    for word in create_sweep_command(config["command"]):
        command += create_sweep_command_args(chosen)["args"] if word == "${args}" else [word]
    agents = [word.replace("=True", "=true").replace("=False", "=false") for word in command]
    assert agents == ["rnn-blocks", spec.recipe, "fit", *point.args]
    tool._check(spec, point)  # every name and value is one that the recipe's parser knows


@pytest.mark.parametrize("name", shipped_sweeps())
def test_a_shipped_sweep_fits_the_schema_of_wandb(name: str) -> None:
    schema = pytest.importorskip("sweeps.config.schema")
    assert not list(schema.validator.iter_errors(yaml.safe_load(shipped_sweeps()[name].read_text())))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": {}}, "parameters: name at least one option"),
        ({"parameters": {"model.dropout": {"values": []}}}, "model.dropout: values must be a list of at least one"),
        (
            {"parameters": {"a": {"min": "1e-3", "max": 1.0}}},
            "a: min must be a number, such as 0.001 or 1.0e-3, got '1e",
        ),
        ({"parameters": {"a": {"min": 0.0, "max": float("nan")}}}, "a: max must be a number, such as"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "a: a int_uniform parameter of"),
        ({"parameters": {"a": {"min": 2}}}, "a: a uniform parameter needs max:"),
        ({"parameters": {"a": {"min": 0, "max": 1, "q": 0.1}}}, "a: q is not taken here; valid are distribution, min"),
        (
            {"parameters": {"a": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}}},
            "a: a q_uniform parameter of",
        ),
        (
            {"parameters": {"a": {"distribution": "q_uniform", "min": 0.1, "max": 0.2, "q": 0.5}}},
            "a: a q_uniform param",
        ),
        (
            {"parameters": {"a": {"distribution": "log_uniform", "min": 1, "max": 1000}}},
            "a: a log_uniform parameter of",
        ),
        ({"parameters": {"a": {"distribution": "gauss"}}}, "a: distribution: gauss is not taken here; valid are const"),
        ({"parameters": {"a": {"vales": [1]}}}, "a: vales is not taken here; valid are distribution, min, max"),
        ({"parameters": {"a": 3}}, "a: give value:, values: or min: and max:, got 3"),
        ({"parameters": {"model": {"parameters": {"x": {"value": 1}}}}}, "model: parameters is not taken here"),
        (
            {"parameters": {"a": {"distribution": "int_uniform", "min": 0.5, "max": 2}}},
            "min of an int_uniform parameter",
        ),
        (
            {"method": "random", "parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            "a: a log_uniform_values parameter of",
        ),
        ({"metric": None}, "metric: give name:"),
        (
            {"metric": {"name": "val/loss", "goal": "low"}},
            "metric: goal: low is not taken here; valid are minimize, max",
        ),
        ({"command": None}, "it has no command; for example"),
        ({"command": ["python", "train.py", "${args}"]}, "command must be rnn-blocks RECIPE fit"),
        (
            {"command": ["rnn-blocks", "langage", "fit", "${args}"]},
            "command: langage is not taken here; valid are language",
        ),
        ({"command": ["rnn-blocks", "translation", "fit"]}, r"must hold \$\{args\} once"),
        ({"command": ["rnn-blocks", "translation", "fit", "${args_json}", "${args}"]}, "args_json} is not taken"),
        ({"command": ["rnn-blocks", "translation", "fit", "${envvar:NO_SUCH}", "${args}"]}, "variable NO_SUCH"),
        ({"run_cap": 0}, "run_cap must be at least 1, got 0"),
        ({"methods": "grid"}, "methods is not taken here; valid are command"),
        ({"early_terminate": {"type": "envelope"}}, "early_terminate: type must be hyperband"),
        ({"early_terminate": {"type": "hyperband", "min_itr": 1}}, "early_terminate: min_itr is not taken here"),
        *(
            ({"early_terminate": {"type": "hyperband"} | given}, "give min_iter, or max_iter and s")
            for given in (
                *({}, {"max_iter": 9}, {"s": 2}, {"min_iter": 0}, {"min_iter": "1"}, {"min_iter": 1, "eta": 1}),
                *({"min_iter": 1, "eta": 2.5}, {"max_iter": 8, "s": 2}, {"min_iter": True}),
            )
        ),
    ],
)
def test_a_bad_sweep_file_is_refused_with_the_key_and_what_is_valid(changes: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        spec_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        *(
            ({"parameters": {"a": {"distribution": kind}}}, kind)
            for kind in ("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta")
        ),
        ({"parameters": {"a": {"values": [1, 2], "probabilities": [0.5, 0.5]}}}, "probabilities"),
        ({"method": "custom"}, "custom"),
        ({"metric": {"name": "val/loss", "target": 2.0}}, "target"),
        ({"metric": {"name": "val/loss", "impute": "worst"}}, "impute"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3, "strict": True}}, "strict"),
        *(({key: {}}, key) for key in ("scheduler", "metrics", "controller", "job", "image_uri")),
    ],
)
def test_what_weights_and_biases_alone_understands_is_refused_by_name(changes: dict, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name} is not taken here; valid are"):
        spec_of(tmp_path, **changes)


def test_early_terminate_is_read_in_both_of_its_ways(tmp_path: Path) -> None:
    for given, read in (
        ({"min_iter": 3}, (3, 3, None)),
        ({"min_iter": 2, "eta": 2, "max_iter": 30}, (2, 2, 30)),
        ({"max_iter": 27, "s": 2}, (3, 3, 27)),
    ):
        assert spec_of(tmp_path, early_terminate={"type": "hyperband"} | given).early_terminate == read
    assert spec_of(tmp_path).early_terminate is None


def test_a_method_has_to_be_known_and_to_fit_the_parameters(tmp_path: Path) -> None:
    path = written(tmp_path, method="bayes")
    assert read_sweep(path, method="random").method == "random"
    with pytest.raises(InputError, match="method: gird is not taken here; valid are grid, random, bayes"):
        read_sweep(path, method="gird")
    with pytest.raises(InputError, match=r"a: a grid needs values: \[...\]; or give --method random --count N"):
        spec_of(tmp_path, parameters={"a": {"min": 0.0, "max": 1.0}})


def test_the_parser_sees_every_value_of_a_grid_and_a_dozen_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(tool, "_check", lambda spec, point: seen.extend(point.args))
    cells = {"a": {"values": [1, "x", None]}, "b": {"values": [0.1, 0.2, 0.3, 0.4]}, "c": {"value": 3}}
    tool.sweep(str(written(tmp_path, parameters=cells)), output_dir=str(tmp_path), dry_run=True)
    shown = {"--a=1", "--a=x", "--a=null", "--b=0.1", "--b=0.2", "--b=0.3", "--b=0.4", "--c=3", "--logger=csv"}
    assert set(seen) == shown
    assert len(seen) < 4 * 12
    seen.clear()
    spread = {"a": {"min": 0.0, "max": 1.0}}
    tool.sweep(str(written(tmp_path, parameters=spread, method="random", run_cap=40)), dry_run=True)
    assert len(seen) == 2 * 12


def test_an_unknown_option_or_value_is_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    unknown = written(tmp_path, parameters={"model.dropuot": {"values": [0.1]}})
    assert run(str(unknown), "--output_dir", str(tmp_path / "runs")) == 2
    error = capsys.readouterr().err
    assert "model.dropuot" in error
    assert "Did you mean --model.dropout" in error
    later = written(tmp_path, parameters={"model.dropout": {"values": [0.1, "much"]}})
    assert run(str(later), "--output_dir", str(tmp_path / "runs")) == 2
    assert "much" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    for args, said in (
        (["no-such"], "no such file or shipped sweep; shipped are language-model-default"),
        (["ptb-small-cliping"], "did you mean 'ptb-small-clipping'?"),
        ([str(later), "--processes", "0"], "--processes must be at least 1, got 0"),
        ([str(later), "--count", "0"], "--count must be at least 1, got 0"),
        ([str(later), "--options", "fast"], "--options fast: write NAME=VALUE"),
    ):
        assert run(*args) == 2
        assert said in capsys.readouterr().err


def test_the_list_names_every_shipped_sweep_with_a_line_about_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_sweeps())
    assert all(len(line.split()) > 5 for line in lines)
