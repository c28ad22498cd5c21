"""The examples in the docstrings, run as they stand.

The modules are imported by name: running them as files would import a second copy of the mapped folders.
"""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import rnn_blocks
import rnn_blocks.callbacks
import rnn_blocks.recipes

PACKAGES = (rnn_blocks, rnn_blocks.callbacks, rnn_blocks.recipes)
MODULES = sorted(
    {package.__name__ for package in PACKAGES}
    | {found.name for package in PACKAGES for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
)
PUBLIC = [
    (package, name)
    for package in (rnn_blocks, rnn_blocks.callbacks)
    for name in package.__all__
    if inspect.isclass(getattr(package, name)) or inspect.isfunction(getattr(package, name))
]


@pytest.mark.filterwarnings("ignore:The `srun` command is available")
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes is thrown away
    result = doctest.testmod(importlib.import_module(name), report=True)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples of {name} failed: see the output above"


def test_the_modules_of_all_three_folders_are_found():
    assert {
        "rnn_blocks.layers.stack",
        "rnn_blocks.callbacks.clipping.policies",
        "rnn_blocks.recipes.data.store",
    } <= set(MODULES)


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{p.__name__}.{n}" for p, n in PUBLIC])
def test_everything_public_is_told_and_shown(package, name):
    public = getattr(package, name)
    assert public.__doc__, f"{name} has no docstring of its own"
    assert "__doc__" not in vars(public) or vars(public)["__doc__"], f"{name} has no docstring of its own"
    if inspect.isclass(public) and issubclass(public, Exception):
        return
    examples = doctest.DocTestFinder(recurse=False).find(public, name)
    assert examples, f"{name} has no example"
    assert examples[0].examples, f"{name} has no example"


@pytest.mark.parametrize("package", [rnn_blocks, rnn_blocks.callbacks], ids=lambda package: package.__name__)
def test_every_public_name_is_there_once_and_in_order(package):
    assert len(set(package.__all__)) == len(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)
    assert not [name for name in package.__all__ if name.startswith("_")]
