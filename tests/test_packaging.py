"""What is shipped, and which floor imports from which."""

import ast
import importlib.resources
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {"rnn_blocks": "rnn_blocks", "callbacks": "rnn_blocks.callbacks", "recipes": "rnn_blocks.recipes"}

# What a floor may import of this package: itself, and the floors named.
MAY_IMPORT = {
    "rnn_blocks.engine": (),
    "rnn_blocks.cells": ("rnn_blocks.engine",),
    "rnn_blocks.layers": ("rnn_blocks.engine", "rnn_blocks.cells"),
    "rnn_blocks.seq2seq": ("rnn_blocks.engine", "rnn_blocks.cells", "rnn_blocks.layers"),
    "rnn_blocks.modules": ("rnn_blocks.engine", "rnn_blocks.cells", "rnn_blocks.layers", "rnn_blocks.seq2seq"),
    "rnn_blocks.callbacks": (),
    "rnn_blocks.recipes": ("rnn_blocks",),
    "rnn_blocks": tuple(f"rnn_blocks.{floor}" for floor in ("engine", "cells", "layers", "seq2seq", "modules")),
}

# The gradient-flow monitor runs recurrences again, by this library's loop and for its layers: it asks for them when it
# meets one, so that the callbacks as such need no block.
WHEN_IT_RUNS = dict.fromkeys(
    (f"rnn_blocks.callbacks.{name}" for name in ("flow_recorder", "replay_layer", "replay_torch", "state_replay")),
    ("rnn_blocks.engine", "rnn_blocks.layers"),
)


def modules() -> dict[str, Path]:
    """Every module of the package and its file."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


class OnlyAtImport(ast.NodeTransformer):
    """Leaves what runs when a module is imported: neither functions nor what is there for type checkers alone."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.If | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def imported(path: Path, *, at_import: bool = False) -> set[str]:
    """The modules that a file names in its imports, wherever in it they stand, or where they run at import."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(OnlyAtImport().visit(tree) if at_import else tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names.add(node.module)
            names.update(full for alias in node.names if (full := f"{node.module}.{alias.name}") in MODULES)
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def floor_of(module: str) -> str:
    return max((floor for floor in MAY_IMPORT if within(module, floor)), key=len)


def test_every_folder_with_code_is_shipped_and_nothing_else_is():
    packages = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert packages == set(SETUPTOOLS["packages"])


def test_only_one_name_reaches_site_packages():
    assert {name.split(".")[0] for name in SETUPTOOLS["packages"]} == {"rnn_blocks"}
    assert SETUPTOOLS["package-dir"] == {package: folder for folder, package in FOLDERS.items()}


def test_every_file_that_is_not_code_is_package_data():
    shipped = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT / SETUPTOOLS["package-dir"][package]
        for pattern in patterns:
            matches = set(folder.glob(pattern))
            assert matches, f"{package}: {pattern} matches nothing"
            shipped |= matches
    others = {
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and "__pycache__" not in path.parts
    }
    assert others == shipped


def test_every_shipped_config_is_readable_through_the_package():
    configs = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
    assert configs
    for path in configs:
        resource = importlib.resources.files("rnn_blocks.recipes").joinpath(*path.relative_to(ROOT / "recipes").parts)
        assert resource.read_text() == path.read_text()


@pytest.mark.parametrize("module", MODULES)
def test_a_floor_imports_only_from_floors_below_it(module):
    floor = floor_of(module)
    allowed = (floor, *MAY_IMPORT[floor]) if floor != "rnn_blocks" else (*MAY_IMPORT[floor], module)
    at_import = imported(MODULES[module], at_import=True)
    for name in imported(MODULES[module]):
        assert name.split(".")[0] not in ("callbacks", "recipes"), f"{module} imports {name}: say rnn_blocks.{name}"
        if within(name, "rnn_blocks"):
            later = () if name in at_import else WHEN_IT_RUNS.get(module, ())
            assert any(within(name, package) for package in (*allowed, *later)), f"{module} may not import {name}"


@pytest.mark.parametrize("floor", ["rnn_blocks.engine", "rnn_blocks.cells", "rnn_blocks.layers", "rnn_blocks.seq2seq"])
def test_the_blocks_need_torch_alone(floor):
    allowed = {"rnn_blocks", "torch", *sys.stdlib_module_names}
    for module, path in MODULES.items():
        if floor_of(module) == floor:
            others = {name.split(".")[0] for name in imported(path)} - allowed
            optional = {"triton"} if module == "rnn_blocks.engine.scan_triton" else set()  # tried, and done without
            assert others == optional, module


def test_the_callbacks_need_torch_and_lightning_alone_and_ask_for_what_draws_when_they_draw():
    extra = {"wandb", "torchmetrics", "jsonargparse", "tokenizers", "datasets", "matplotlib"}
    for module, path in MODULES.items():
        if floor_of(module) == "rnn_blocks.callbacks":
            assert not {name.split(".")[0] for name in imported(path, at_import=True)} & extra, module
            assert {name.split(".")[0] for name in imported(path)} & extra <= {"matplotlib", "wandb"}, module


def test_the_checks_of_imports_see_every_module():
    assert {"rnn_blocks", "rnn_blocks.engine.loop", "rnn_blocks.callbacks.monitor", "rnn_blocks.recipes.cli"} <= set(
        MODULES
    )
    assert "rnn_blocks.engine" in imported(MODULES["rnn_blocks.cells.lstm"])
