"""What the README and the pages show runs: their Python, their command lines, their metric names."""

import doctest
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from rnn_blocks.recipes.__main__ import main
from rnn_blocks.recipes.metrics_csv import read_metrics
from rnn_blocks.recipes.run_folder import RunFolder, runs
from rnn_blocks.recipes.text.settings import TokenizerSettings

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page in these languages, each with the number of its first line, from 0."""
    text = page.read_text()
    found = [match for match in BLOCK.finditer(text) if match[1] in languages]
    return [(text[: match.start(2)].count("\n"), match[2]) for match in found]


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
    precision = torch.get_float32_matmul_precision()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # Lightning's advice to a beginner on trainings of a second
        yield
    torch.set_float32_matmul_precision(precision)


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
    assert "b'def " in printed


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


@pytest.mark.parametrize(("page", "args"), commands(), ids=lambda value: value if isinstance(value, str) else None)
def test_commands_of_the_pages_are_understood(
    page: str,
    args: list[str],
    tiny_run: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs").symlink_to(tiny_run.path.parent.parent)
    for other in PAGES:  # the configurations that pages show, under the name in their first line
        for _, block in blocks(other, "yaml"):
            (tmp_path / block.split("\n", 1)[0].removeprefix("# ")).write_text(block)
    if "--help" not in args and args[1] != "generate":
        args = [*args, "--print_config"]  # all is read and checked, and nothing is trained
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(args))
    streams = capsys.readouterr()
    assert ended.value.code in (0, None), streams.err
    assert streams.out
    if "--print_config" in args:
        data = yaml.safe_load(streams.out)["data"]
        TokenizerSettings(data["tokenizer"], data["vocab_size"], data["min_count"], data["vocabulary"])


def test_every_metric_of_a_run_is_in_the_table(tiny_run: RunFolder) -> None:
    rows = [line for line in (ROOT / "docs" / "metrics.md").read_text().splitlines() if line.startswith("| `")]
    documented = [CODE.search(row)[1] for row in rows]
    patterns = [re.sub(r"<\w+>", "[^/]+", name) for name in documented]
    logged = set(read_metrics(tiny_run.metrics)[0]) - {"step"}
    assert {"train/loss", "val/perplexity", "grad_norm/layer", "grad_clip/threshold"} <= logged
    unknown = [name for name in logged if not any(re.fullmatch(pattern, name) for pattern in patterns)]
    assert not unknown


def test_every_shipped_configuration_is_described() -> None:
    page = (ROOT / "docs" / "recipes" / "language-model.md").read_text()
    shipped = [path.stem for path in (ROOT / "recipes" / "configs" / "language-model").glob("*.yaml")]
    assert shipped
    assert [name for name in shipped if f"| `{name}` |" not in page] == []


def test_every_benchmark_is_described() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    scripts = [path.name for path in (ROOT / "tests" / "benchmarks").glob("*.py")]
    assert scripts
    assert [name for name in scripts if f"| `{name}` |" not in page] == []
