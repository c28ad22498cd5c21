"""What is shipped, and which room imports from which."""

import ast
import graphlib
import importlib.resources
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rnn_blocks.recipes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {"rnn_blocks": "rnn_blocks", "callbacks": "rnn_blocks.callbacks", "recipes": "rnn_blocks.recipes"}

# The house: each room, and the rooms that it may import from, from the ground up. Names are those below `rnn_blocks`; a
# room within a room is one of its own, and `.__init__` is the face that a package shows, apart from what lies in it.
BLOCKS = ("engine", "cells", "layers", "seq2seq")
MODELS = ("modules.language_model", "modules.cloze", "modules.seq2seq")
MEASURED = ("callbacks.measuring", "callbacks.figures", "callbacks.trainer")
TEXT = ("recipes.__init__", "recipes.data.corpora", "recipes.data")
OF_A_RUN = ("recipes.run", "recipes.command_line")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "signatures": (),
    "checks": (),
    "engine": (),
    "cells": ("checks", "engine"),
    "layers": ("signatures", "checks", "engine", "cells"),
    "seq2seq.search": ("signatures", "checks", "engine"),
    "seq2seq.attention": ("checks", "engine", "layers"),
    "seq2seq": ("checks", "engine", "cells", "layers", "seq2seq.search", "seq2seq.attention"),
    "modules": ("checks", "engine", "cells", "layers", "seq2seq.search"),
    "modules.language_model": ("checks", "engine", "layers", "modules"),
    "modules.cloze": ("checks", "engine", "layers", "modules"),
    "modules.seq2seq": ("checks", "engine", "layers", "seq2seq", "seq2seq.attention", "modules"),
    "modules.adaptation": ("checks", "engine", "modules", "modules.language_model"),
    "modules.__init__": ("modules", "modules.adaptation", *MODELS),
    "__init__": (),
    "callbacks.measuring": (),
    "callbacks.figures": (),
    "callbacks.trainer": ("callbacks.measuring",),
    "callbacks.settings": (),
    "callbacks.clipping.policies": ("callbacks.measuring", "callbacks.settings"),
    "callbacks.clipping": ("callbacks.clipping.policies", "callbacks.measuring", "callbacks.settings"),
    "callbacks.clipping.callback": (
        *("callbacks.clipping", "callbacks.clipping.policies"),
        *("callbacks.measuring", "callbacks.trainer"),
    ),
    "callbacks.advisor": ("callbacks.clipping.callback", "callbacks.settings", *MEASURED),
    "callbacks.norm_monitor": ("callbacks.settings", *MEASURED),
    "callbacks.gradient_flow": (*MEASURED, "callbacks.settings"),
    "callbacks.averaging": ("callbacks.settings", "callbacks.trainer"),
    "callbacks.__init__": ("callbacks.clipping", "callbacks.clipping.policies"),
    "recipes.__init__": (),
    "recipes.data.corpora": ("recipes.__init__",),
    "recipes.data": ("recipes.__init__", "recipes.data.corpora"),
    "recipes.run.weights_and_biases": ("recipes.__init__", "callbacks.measuring", "callbacks.trainer"),
    "recipes.run": ("recipes.__init__", "callbacks.figures", "callbacks.trainer", "recipes.run.weights_and_biases"),
    "recipes.run.ranks": ("recipes.__init__", "recipes.run"),
    "recipes.run.ending": ("recipes.__init__", "recipes.run", "recipes.run.ranks", "callbacks.trainer"),
    "recipes.run.host": (),
    "recipes.command_line": (
        *("recipes.__init__", "recipes.data.corpora", "recipes.run", "recipes.run.ending", "recipes.run.host"),
        *("recipes.run.ranks", "recipes.run.weights_and_biases"),
    ),
    "recipes.language_model": ("signatures", *TEXT, *OF_A_RUN, "modules.__init__", "modules", "modules.language_model"),
    "recipes.cloze": ("signatures", *TEXT, *OF_A_RUN, "modules.__init__", "modules.cloze"),
    "recipes.translation.corpora": ("recipes.__init__", "recipes.data.corpora"),
    "recipes.translation.pairs": (*TEXT, "recipes.translation.corpora", "modules.seq2seq"),
    "recipes.translation": (
        *(*TEXT, *OF_A_RUN, "recipes.run.ending", "recipes.translation.pairs"),
        *("signatures", "seq2seq", "modules.__init__", "modules", "modules.seq2seq"),
        *("callbacks.figures", "callbacks.trainer"),
    ),
    "recipes.long_range.comparison": (
        *("recipes.__init__", "recipes.run", "recipes.run.ending", "recipes.run.host", "recipes.long_range"),
        *("callbacks.__init__", "callbacks.clipping.policies", "callbacks.gradient_flow"),
    ),
    "recipes.long_range": ("engine", "cells", "layers", "recipes.__init__", "recipes.data"),
    "recipes.long_range.recipe": (
        *("recipes.__init__", "recipes.command_line"),
        *("recipes.long_range", "recipes.long_range.comparison"),
    ),
    "recipes.tools": ("recipes.__init__", "recipes.run"),
    "recipes.tools.export": (
        *("recipes.__init__", "recipes.run"),
        *("engine", "layers", "modules.__init__", "modules"),
    ),
    "recipes.tools.sweep": ("recipes.__init__", *OF_A_RUN, "recipes.run.host"),
    "recipes.__main__": ("recipes.__init__", "recipes.run.ending", "recipes.run.host", "recipes.command_line"),
}

# What it may import besides when it runs, or for type checkers, but not when it is imported itself. The gradient-flow
# monitor runs recurrences again, by this library's loop and for its layers: it asks for them when it meets one, so that
# the callbacks as such need no block. Faces hand out what takes long to import when it is asked for.
WHEN_IT_RUNS: dict[str, tuple[str, ...]] = {
    "__init__": (*BLOCKS, "modules.__init__", "modules"),
    "callbacks.gradient_flow": ("engine", "layers"),
    "callbacks.__init__": (
        *("callbacks.clipping.callback", "callbacks.advisor"),
        *("callbacks.norm_monitor", "callbacks.gradient_flow", "callbacks.averaging"),
    ),
    "recipes.__init__": (
        *("recipes.run", "recipes.language_model", "recipes.translation"),
        *("recipes.translation.pairs", "recipes.cloze", "recipes.long_range", "recipes.tools.export"),
    ),
    "recipes.__main__": ("callbacks.__init__",),
}


HANDED_ON = {
    f"rnn_blocks.recipes.{name}": f"rnn_blocks.recipes.{room}" for name, room in rnn_blocks.recipes._ROOMS.items()
}


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

    def visit_If(self, node: ast.If) -> ast.If | list[ast.stmt]:
        return node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else node


def imported(path: Path, *, at_import: bool = False) -> set[str]:
    """The modules that a file names in its imports, wherever in it they stand, or where they run at import."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(OnlyAtImport().visit(tree) if at_import else tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
            within = [alias.name for alias in node.names if alias.name.startswith("rnn_blocks.")]
            assert not within or path.parent == ROOT / "tests", f"{path}:{node.lineno}: say from … import …"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                behind = HANDED_ON.get(name, node.module)  # the face of the recipes hides the room that a name is in
                names.add(name if name in MODULES else behind)
    return names


def room_of(module: str) -> str:
    """The room that a module is in: the longest of the table's names that it lies below."""
    path = MODULES.get(module)
    name = (f"{module}.__init__" if path is not None and path.name == "__init__.py" else module).partition(".")[2]
    return max((room for room in MAY_IMPORT if f"{name}.".startswith(f"{room}.")), key=len)


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
    configs = sorted((ROOT / "recipes").glob("*/configs/**/*.yaml"))
    assert configs
    for path in configs:
        resource = importlib.resources.files("rnn_blocks.recipes").joinpath(*path.relative_to(ROOT / "recipes").parts)
        assert resource.read_text() == path.read_text()


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_rooms_below_it(module):
    room = room_of(module)
    at_import = imported(MODULES[module], at_import=True)
    for name in imported(MODULES[module]):
        assert name.split(".")[0] not in ("callbacks", "recipes"), f"{module} imports {name}: say rnn_blocks.{name}"
        if name.partition(".")[0] == "rnn_blocks":
            later = () if name in at_import else WHEN_IT_RUNS.get(room, ())
            allowed = (room, *MAY_IMPORT[room], *later)
            assert room_of(name) in allowed, f"{module} may not import {name}: see MAY_IMPORT[{room!r}]"


def test_no_room_is_above_itself_and_every_room_is_there():
    below = {room: set(others) for room, others in MAY_IMPORT.items()}
    assert set(graphlib.TopologicalSorter(below).static_order()) == set(MAY_IMPORT) == set(map(room_of, MODULES))
    assert set(WHEN_IT_RUNS) <= set(MAY_IMPORT)
    assert {other for others in WHEN_IT_RUNS.values() for other in others} <= set(MAY_IMPORT)


def test_no_permission_of_the_table_is_left_unused():
    used = {room: set() for room in MAY_IMPORT}
    for module, path in MODULES.items():
        used[room_of(module)] |= {room_of(name) for name in imported(path) if name.partition(".")[0] == "rnn_blocks"}
    for room, others in MAY_IMPORT.items():
        assert not {*others, *WHEN_IT_RUNS.get(room, ())} - used[room], room


@pytest.mark.parametrize("floor", FOLDERS)
def test_the_top_of_a_folder_is_its_table_of_contents(floor):
    entries = [path for path in (ROOT / floor).iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 10
    for folder in [path for path in (ROOT / floor).rglob("*") if path.is_dir() and path.name != "__pycache__"]:
        flat = folder.name in ("engine", "cells", "layers")  # one idea a file
        assert flat or sum(path.is_file() for path in folder.iterdir()) <= 12, folder


@pytest.mark.parametrize("floor", BLOCKS)
def test_the_blocks_need_torch_alone(floor):
    allowed = {"rnn_blocks", "torch", "typing_extensions", *sys.stdlib_module_names}  # torch itself needs the third
    for module, path in MODULES.items():
        if module.split(".")[1:2] == [floor]:
            others = {name.split(".")[0] for name in imported(path)} - allowed
            optional = {"triton"} if module == "rnn_blocks.engine.scan_triton" else set()  # tried, and done without
            assert others == optional, module


def test_importing_the_blocks_imports_no_lightning_and_the_command_line_not_even_torch():
    code = (
        "import sys, rnn_blocks, rnn_blocks.recipes.__main__\n"
        "assert rnn_blocks.recipes.__main__.main(['--help']) == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "rnn_blocks.GRU(2, 2)\n"
        "assert not {'lightning', 'pytorch_lightning', 'torchmetrics'} & set(sys.modules)\n"
        "assert 'LanguageModel' in dir(rnn_blocks) and rnn_blocks.modules.LanguageModel is rnn_blocks.LanguageModel\n"
        "assert 'lightning' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True)


def test_looking_at_runs_and_listing_sweeps_imports_neither_torch_nor_lightning():
    code = (
        "import sys, rnn_blocks.recipes.__main__\n"
        "from rnn_blocks.recipes import RunFolder, read_metrics, runs\n"
        "assert rnn_blocks.recipes.__main__.main(['sweep', '--list']) == 0\n"
        "assert not {'torch', 'lightning', 'pytorch_lightning', 'wandb', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_one_of_a_rooms():
    rooms = [getattr(rnn_blocks, room) for room in rnn_blocks._ROOMS]
    for name in rnn_blocks.__all__:
        assert any(getattr(room, name, None) is getattr(rnn_blocks, name) for room in rooms), name
    with pytest.raises(AttributeError, match="no attribute 'LTSM'"):
        _ = rnn_blocks.LTSM


@pytest.mark.parametrize("room", ["callbacks.measuring", "callbacks.clipping", "callbacks.clipping.policies"])
def test_clipping_needs_torch_alone(room):
    for module, path in MODULES.items():
        if room_of(module) == room:
            allowed = {"rnn_blocks", "torch", "typing_extensions", *sys.stdlib_module_names}
            assert {name.split(".")[0] for name in imported(path)} <= allowed, module


def test_the_callbacks_need_torch_and_lightning_alone_and_ask_for_what_draws_when_they_draw():
    extra = {"wandb", "torchmetrics", "jsonargparse", "tokenizers", "datasets", "matplotlib"}
    for module, path in MODULES.items():
        if room_of(module).startswith("callbacks."):
            assert not {name.split(".")[0] for name in imported(path, at_import=True)} & extra, module
            assert {name.split(".")[0] for name in imported(path)} & extra <= {"matplotlib", "wandb"}, module


def test_one_room_of_the_callbacks_knows_lightning():
    knowing = {
        room_of(module)
        for module, path in MODULES.items()
        if room_of(module).startswith("callbacks.")
        and {name.split(".")[0] for name in imported(path)} & {"lightning", "pytorch_lightning"}
    }
    assert knowing == {"callbacks.trainer"}


def test_the_checks_of_imports_see_every_module():
    assert {
        "rnn_blocks",
        "rnn_blocks.engine.loop",
        "rnn_blocks.callbacks.norm_monitor.callback",
        "rnn_blocks.recipes.command_line.cli",
    } <= set(MODULES)
    assert "rnn_blocks.engine" in imported(MODULES["rnn_blocks.cells.lstm"])
    assert room_of("rnn_blocks.callbacks.clipping.policies.auto") == "callbacks.clipping.policies"
    assert room_of("rnn_blocks.recipes") == "recipes.__init__"


def without_encoding(path: Path) -> set[int]:
    """The lines of a file that read or write text as the locale of the machine has it."""
    lines = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        opened = any(re.fullmatch(r"[rwax]t?\+?", mode) for mode in modes) or any(
            keyword.arg == "newline" for keyword in node.keywords
        )
        match node.func:
            case ast.Attribute(attr="read_text" | "write_text"):
                lines.add(node.lineno)
            case ast.Attribute(attr="open") if opened:
                lines.add(node.lineno)
            case ast.Name(id="open") if not any("b" in mode for mode in modes):
                lines.add(node.lineno)
    return lines


def test_text_files_are_utf_8_in_any_locale(tmp_path: Path):
    faults = {str(path.relative_to(ROOT)): lines for path in MODULES.values() if (lines := without_encoding(path))}
    assert faults == {}
    file = tmp_path / "module.py"
    file.write_text('p.read_text()\np.write_text("a")\np.open("r+")\nopen(p)\np.open("ab")\nopen(p, "rb")\n')
    assert without_encoding(file) == {1, 2, 3, 4}
