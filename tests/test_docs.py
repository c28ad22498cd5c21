"""What the README and the pages show runs: their Python, their command lines, metric names and counts of parameters."""

import doctest
import io
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import rnn_blocks
from rnn_blocks import Cell, ElmanCell, Recurrent
from rnn_blocks.recipes.__main__ import RECIPES, main
from rnn_blocks.recipes.data.settings import TokenizerSettings
from rnn_blocks.recipes.long_range.tasks import make_task
from rnn_blocks.recipes.run.folder import RunFolder, runs
from rnn_blocks.recipes.run.metrics import read_metrics
from rnn_blocks.recipes.translation.pairs.settings import ParallelTokenizerSettings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
IMAGE = re.compile(r"!\[[^\]]+\]\((?!https:)([^)]+)\)")
CELLS = ROOT / "docs" / "blocks" / "cells.md"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page in these languages, each with the number of its first line, from 0."""
    text = page.read_text()
    found = [match for match in BLOCK.finditer(text) if match[1] in languages]
    return [(text[: match.start(2)].count("\n"), match[2]) for match in found]


def rows(page: Path, *headings: str) -> list[dict[str, str]]:
    """The rows of those tables of a page that have all these headings."""
    found, current = [], None
    for line in page.read_text().splitlines():
        if not line.startswith("|"):
            current = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if current is None:
            current = cells
        elif set(headings) <= set(current) and not set(line) <= set("|- "):
            found.append(dict(zip(current, cells, strict=True)))
    return found


def value(formula: str, **sizes: int) -> float:
    """What a formula such as `4H·(I + 1) + 2H²` comes to."""
    expression = CODE.search(formula)[1].replace("·", "*").replace("²", "**2")
    return eval(re.sub(r"(?<=[0-9])(?=[HI])", "*", expression), {}, sizes)


def shown_cell(name: str, input_size: int, hidden_size: int) -> Cell:
    """The cell of a table's first column: its class, and what is said of its options."""
    kind, *options = CODE.findall(name)
    return eval(f"{kind}({input_size}, {hidden_size}, {', '.join(options)})", vars(rnn_blocks))


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def commands() -> list[tuple[str, list[str]]]:
    """Every ``rnn-blocks`` command that the pages show, with the name of the first page that shows it."""
    lines = [
        (name_of(page), line.removeprefix("$ "))
        for page in PAGES
        for _, block in blocks(page, "console")
        for line in block.splitlines()
    ]
    shown = {line: page for page, line in reversed(lines) if line.startswith("rnn-blocks ")}
    return [(page, shlex.split(line)[1:]) for line, page in shown.items()]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # Lightning's advice to a beginner on trainings of a second
        yield


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the recipe on a few kilobytes, with both callbacks, ended in a second."""
    home = tmp_path_factory.mktemp("recipe")
    text = home / "sea.txt"
    text.write_text("the sea, the open sea\nthe blue, the fresh, the ever free\n" * 200)
    sizes = ["--model.layer.init_args.input_size", "8", "--model.layer.init_args.hidden_size", "8"]
    data = ["--data.source", str(text), "--data.tokenizer", "char"]
    data += ["--data.batch_size", "4", "--data.bptt", "8", "--data.cache_dir", str(home / "cache")]
    length = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"]
    run = ["--output_dir", str(home / "runs"), "--logger", "csv", "--trainer.enable_progress_bar", "false"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monitor = "--trainer.callbacks+={class_path: rnn_blocks.callbacks.GradientNormMonitor, init_args: {top_k: 1}}"
        assert main(["language-model", "fit", *sizes, *data, *length, *run, monitor]) == 0
    return runs(home / "runs" / "language-model")[-1]


@pytest.fixture(scope="module")
def tiny_translation(tiny_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the translation recipe on a dozen pairs, beside the other one."""
    home = tmp_path_factory.mktemp("pairs")
    for ending, text in (("en", "one\ntwo one\nthree\n"), ("de", "eins\nzwei eins\ndrei\n")):
        (home / f"pairs.{ending}").write_text(text * 4)
    layers = ["--model.encoder", "rnn_blocks.LSTM", "--model.decoder", "rnn_blocks.LSTM"]
    sizes = {"encoder.init_args.input_size": 8, "encoder.init_args.hidden_size": 4, "attentional_size": 8}
    sizes |= {"decoder.init_args.input_size": 8, "decoder.init_args.hidden_size": 8}
    data = {"train": home / "pairs", "val": home / "pairs", "tokenizer": "char", "cache_dir": home / "cache"}
    length = {"max_steps": 2, "val_check_interval": 1, "log_every_n_steps": 1, "enable_progress_bar": "false"}
    groups = (("model", sizes), ("data", data), ("trainer", length))
    options = [
        part for name, group in groups for key, value in group.items() for part in (f"--{name}.{key}", str(value))
    ]
    run = ["--output_dir", str(tiny_run.path.parent.parent), "--logger", "csv", "--average_checkpoints", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["translation", "fit", *layers, *options, *run]) == 0
    return runs(tiny_run.path.parent.parent / "translation")[-1]


@pytest.fixture(scope="module")
def tiny_cloze(tiny_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the cloze recipe on a few kilobytes, beside the others."""
    home = tmp_path_factory.mktemp("blanks")
    text = home / "sea.txt"
    text.write_text("the sea, the open sea\nthe blue, the fresh, the ever free\n" * 40)
    layer = "{class_path: rnn_blocks.LSTM, init_args: {input_size: 8, hidden_size: 4, bidirectional: true}}"
    data = ["--data.source", str(text), "--data.tokenizer", "char", "--data.cache_dir", str(home / "cache")]
    length = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"]
    run = ["--output_dir", str(tiny_run.path.parent.parent), "--logger", "csv"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["cloze", "fit", "--model.layer", layer, *data, *length, *run]) == 0
    return runs(tiny_run.path.parent.parent / "cloze")[-1]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_of_a_page_give_what_the_page_says(page: Path) -> None:
    examples = []
    for line, block in blocks(page, "pycon"):
        for example in doctest.DocTestParser().get_examples(block, name_of(page)):
            example.lineno += line
            examples.append(example)
    report: list[str] = []
    test = doctest.DocTest(examples, {"__name__": "__main__"}, name_of(page), str(page), 0, None)
    results = doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
    assert results.failed == 0, "".join(report)
    assert results.attempted == page.read_text().count(">>> "), "an example outside of a pycon block"


def test_python_of_the_readme_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    shown = blocks(ROOT / "README.md", "python")
    assert len(shown) >= 2
    for line, block in shown:
        code = compile("\n" * line + block, str(ROOT / "README.md"), "exec")
        exec(code, {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert "grad_clip/threshold" in printed
    assert re.search(r"""b['"]def """, printed)  # double quotes where a single one was generated


@pytest.mark.processes
@pytest.mark.usefixtures("tiny_translation", "tiny_cloze")
def test_python_of_the_pages_runs_beside_a_run(
    tiny_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").symlink_to(tiny_run.path.parent.parent)
    shown = [(page, line, block) for page in PAGES[1:] for line, block in blocks(page, "python")]
    assert shown
    for page, line, block in shown:
        block = block.replace('"def "', '"the "')  # letters that the tiny run has seen
        exec(compile("\n" * line + block, str(page), "exec"), {"__name__": "__main__"})
    assert "the " in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_cloze")
@pytest.mark.parametrize(("page", "args"), commands(), ids=lambda value: value if isinstance(value, str) else None)
def test_commands_of_the_pages_are_understood(
    page: str,
    args: list[str],
    tiny_run: RunFolder,
    tiny_translation: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs").symlink_to(tiny_run.path.parent.parent)
    (tmp_path / "test.en").write_text("one\n\ntwo\n")
    (tmp_path / "new.txt").write_text("the new text\n")
    for name in ("best.ckpt", "last.ckpt"):
        of = tiny_run if args[0] == "language-model" else tiny_translation
        (tmp_path / name).symlink_to(of.checkpoint("best"))
    # as if it were in Weights & Biases
    monkeypatch.setattr("rnn_blocks.recipes.run.weights_and_biases.fetch.fetch_model", lambda *_: of.checkpoint("best"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n")))
    for other in PAGES:  # the configurations that pages show, under the name in their first line
        for _, block in blocks(other, "yaml"):
            (tmp_path / block.split("\n", 1)[0].removeprefix("# ")).write_text(block)
    if "--help" not in args and args[1] in ("fit", "validate", "test", "compare"):
        args = [*args, "--print_config"]  # all is read and checked, and nothing is trained
    if args[:2] == ["export", "best"]:  # of the newest run, which may be any recipe's
        args = ["export", str(tiny_run.checkpoint("best")), *args[2:]]
    if args[0] == "sweep" and "--list" not in args:
        args = [*args, "--dry_run"]
        for split in ("PTB_TRAIN", "PTB_VALID", "PTB_TEST"):
            monkeypatch.setenv(split, "text.txt")
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(args))
    streams = capsys.readouterr()
    assert ended.value.code in (0, None), streams.err
    assert streams.out or "--output" in args
    if "--print_config" in args:
        given = yaml.safe_load(streams.out)
        data = given.get("data")
        if args[0] == "long-range":
            lengths = given["lengths"].split(",") if args[1] == "compare" else [given["length"]]
            assert all(make_task(given["task"], int(length)) for length in lengths)
        elif args[0] == "translation":
            ParallelTokenizerSettings(data["tokenizer"], data["joint"], data["vocab_size"], data["lowercase"])
        else:
            TokenizerSettings(data["tokenizer"], data["vocab_size"], data["min_count"], data["vocabulary"])


def test_every_metric_of_a_run_is_in_the_table(
    tiny_run: RunFolder, tiny_translation: RunFolder, tiny_cloze: RunFolder
) -> None:
    rows = [line for line in (ROOT / "docs" / "metrics.md").read_text().splitlines() if line.startswith("| `")]
    documented = [CODE.search(row)[1] for row in rows]
    patterns = [re.sub(r"<\w+>", "[^/]+", name) for name in documented]
    tiny = (tiny_run, tiny_translation, tiny_cloze)
    logged = {name for run in tiny for name in read_metrics(run.metrics)[0]} - {"step"}
    assert {"train/loss", "val/perplexity", "val/chrf", "grad_norm/layer", "grad_clip/threshold"} <= logged
    unknown = [name for name in logged if not any(re.fullmatch(pattern, name) for pattern in patterns)]
    assert not unknown


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_shipped_configuration_is_described(recipe: str) -> None:
    page = (ROOT / "docs" / "recipes" / f"{recipe}.md").read_text()
    shipped = [path.stem for path in (ROOT / "recipes" / recipe.replace("-", "_") / "configs").rglob("*.yaml")]
    assert shipped
    assert [name for name in shipped if f"| `{name}` |" not in page] == []


def test_every_place_that_contributing_names_is_there() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text()
    named = re.findall(r"`((?:rnn_blocks|callbacks|recipes|tests|docs)/(?!_build)[\w<>*./]+)`", page)
    assert len(named) > 30
    assert [place for place in named if not list(ROOT.glob(re.sub(r"<\w+>", "*", place).rstrip("/")))] == []


def test_every_benchmark_is_described() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    scripts = [path.name for path in (ROOT / "tests" / "benchmarks").glob("*.py")]
    assert scripts
    assert [name for name in scripts if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("row", rows(CELLS, "cell", "parameters"), ids=lambda row: row["cell"])
def test_a_cells_parameters_are_as_many_as_its_formula_says(row: dict[str, str]) -> None:
    sizes = {"I": 8 if "I = H" in row["cell"] else 5, "H": 8}
    assert num_parameters(shown_cell(row["cell"], sizes["I"], sizes["H"])) == value(row["parameters"], **sizes)


@pytest.mark.parametrize("row", rows(CELLS, "cell", "engines"), ids=lambda row: row["cell"])
def test_a_cell_runs_by_the_engines_that_are_said_to_run_it(row: dict[str, str]) -> None:
    runs = []
    for engine in ("native", "scan", "fused", "loop"):
        try:
            Recurrent(shown_cell(row["cell"], 8, 8), engine=engine)(torch.randn(1, 2, 8))
        except ValueError:
            continue
        runs.append(engine)
    assert row["engines"] == ", ".join(runs)


@pytest.mark.parametrize("row", rows(CELLS, "wrapper", "parameters more"), ids=lambda row: row["wrapper"])
def test_a_wrapper_adds_as_many_parameters_as_its_formula_says(row: dict[str, str]) -> None:
    cell = ElmanCell(5, 8)
    wrapped = eval(CODE.search(row["wrapper"])[1], {**vars(rnn_blocks), "cell": cell})
    assert num_parameters(wrapped) - num_parameters(cell) == value(row["parameters more"], I=5, H=8)


@pytest.mark.parametrize("column", ["a step", "parameters"])
def test_every_cell_is_in_the_tables(column: str) -> None:
    cells = {name for name in rnn_blocks.__all__ if name.endswith("Cell")} - {"Cell", "LinearCell", "DecoderCell"}
    assert {CODE.search(row["cell"])[1] for row in rows(CELLS, "cell", column)} == cells


def test_every_wrapper_is_in_the_table() -> None:
    public = {name: getattr(rnn_blocks, name) for name in rnn_blocks.__all__}
    wrappers = {
        name
        for name, thing in public.items()
        if isinstance(thing, type) and issubclass(thing, rnn_blocks.CellWrapper) and thing is not rnn_blocks.CellWrapper
    }
    assert {CODE.search(row["wrapper"])[1].split("(")[0] for row in rows(CELLS, "wrapper")} == wrappers


def test_every_public_name_of_the_blocks_is_in_the_reference_once() -> None:
    text = (ROOT / "docs" / "reference" / "blocks.md").read_text()
    assert sorted(re.findall(r"^\.\. auto\w+:: (\w+)$", text, re.MULTILINE)) == sorted(rnn_blocks.__all__)


def test_every_picture_is_there_and_shown() -> None:
    shown = {(page.parent / image).resolve() for page in PAGES for image in IMAGE.findall(page.read_text())}
    assert shown == {path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file()}


@pytest.mark.parametrize(("page", "base"), [("README.md", "docs"), ("docs/index.md", "")])
def test_each_picture_of_the_gallery_leads_to_the_page_that_shows_it(page: str, base: str) -> None:
    cards = re.findall(r"\[!\[[^\]]+\]\(([^)]+)\)\]\(([^)#]+)[^)]*\)<br>", (ROOT / page).read_text())
    small = [ROOT / "docs" / Path(picture).relative_to(base) for picture, _ in cards]
    assert set(small) == set((ROOT / "docs" / "images" / "gallery").iterdir())
    for path, (_, target) in zip(small, cards, strict=True):
        shown = IMAGE.findall((ROOT / page).parent.joinpath(target).read_text())
        assert path.name in [Path(image).name for image in shown]


def test_every_page_is_in_a_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)
    listed = re.findall(r"^[\w/-]+$", "\n".join(trees), re.MULTILINE)
    pages = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in PAGES[1:]}
    assert sorted(listed) == sorted(pages - {"index"})
