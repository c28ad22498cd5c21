"""A checkpoint that was copied out of its run's folder does all that it does there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_old_runs import OLD, data_of
from tiny_runs import (
    TINY,
    TINY_CLOZE,
    load,
    only_run,
    options,
    recipe,
    tiny_translation,
    write_pairs,
    write_text,
)

from rnn_blocks.recipes import ClozeDataModule, LongRangeData, ParallelDataModule, TextDataModule
from rnn_blocks.recipes.command_line.from_checkpoint import for_command
from rnn_blocks.recipes.data.corpora.corpus import FILES, NAMED
from rnn_blocks.recipes.data.corpus_module import _BY_NAME
from rnn_blocks.recipes.run.checkpoints import AtomicCheckpointIO
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.run.load import DATA_STATES, KEY, Configuration

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
RECIPES = tuple(DATA_STATES)
LONG_RANGE = {"length": 12, "parameters": 200, "data.batch_size": 4, "data.eval_sequences": 20, "trainer.max_steps": 5}
LONG_RANGE |= {name: value for name, value in TINY.items() if name in ("logger", "trainer.enable_progress_bar")}
LONG_RANGE |= {"trainer.accelerator": "cpu", "trainer.val_check_interval": 5}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, and with a run of each recipe that was started in it, its data given by relative paths."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "data").mkdir()
    write_text(folder / "data" / "code.txt")
    write_pairs(folder / "data")
    cache = {"data.cache_dir": folder / "cache"}
    relative = cache | {"data.source": "data/code.txt", "output_dir": "runs"}
    args = {
        "language-model": options(**(TINY | relative)),
        "translation": tiny_translation(Path("data"), Path("runs"), average_checkpoints=2, **cache),
        "cloze": options(**(TINY_CLOZE | relative)),
        "long-range": options(**LONG_RANGE, output_dir="runs"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in RECIPES:
            assert recipe("fit", *args[name], of=name) == 0, name
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder, in which commands are started."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def alone(project: Path, name: str, to: Path, which: str = "best") -> Path:
    return Path(shutil.copy(only_run(project / "runs", name).checkpoint(which), to / "alone.ckpt"))


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The line of results."""
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith(("val: ", "test: ")))


def refused(capsys: pytest.CaptureFixture[str], *message: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1, error
    for part in message:
        assert part in error


def no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("reads text")

    for place in ("data.corpus_module.prepare_text", "data.corpus_module.prepare_splits"):
        monkeypatch.setattr(f"rnn_blocks.recipes.{place}", fail)
    for place in ("prepare_pairs", "prepare_split"):
        monkeypatch.setattr(f"rnn_blocks.recipes.translation.pairs.data.{place}", fail)


@pytest.mark.processes
@pytest.mark.parametrize("command", ["validate", "test"])
@pytest.mark.parametrize("name", RECIPES)
def test_alone_and_elsewhere_it_is_measured_as_in_its_run(
    name: str, command: str, project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(command, "--ckpt_path", str(only_run(project / "runs", name).checkpoint("best")), of=name) == 0
    there = told(capsys)
    assert recipe(command, "--ckpt_path", str(alone(project, name, elsewhere)), of=name) == 0
    assert told(capsys) == there
    assert os.listdir(elsewhere) == ["alone.ckpt"], "nothing is written beside it"


@pytest.mark.processes
@pytest.mark.parametrize("name", RECIPES)
def test_a_training_goes_on_from_it_alone(name: str, project: Path, elsewhere: Path) -> None:
    path = alone(project, name, elsewhere, "last")
    assert recipe("fit", "--ckpt_path", str(path), "--trainer.max_steps", "22", of=name) == 0
    folder = only_run(elsewhere / "runs", name)
    assert load(folder)["global_step"] == 22
    config = yaml.safe_load(folder.config.read_text())["data"]
    if name != "long-range":
        assert config["source" if name != "translation" else "train"].startswith(str(project))
    again = load(folder)[KEY]
    assert again["directory"] == str(elsewhere)
    assert again["config"] == folder.config.read_text()


def test_the_mean_of_weights_and_what_was_kept_for_it_work_alone(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = only_run(project / "runs", "translation")
    kept = sorted(run.kept.iterdir())
    for number, path in enumerate((run.checkpoint("averaged"), *kept)):
        copy = str(shutil.copy(path, elsewhere / f"{number}.ckpt"))
        assert recipe("test", "--ckpt_path", copy, of="translation") == 0
    capsys.readouterr()
    assert recipe("average", "--checkpoints", "1.ckpt", "2.ckpt", "--output", "mean.ckpt", of="translation") == 0
    assert recipe("test", "--ckpt_path", "mean.ckpt", of="translation") == 0
    assert recipe("fit", "--ckpt_path", "mean.ckpt", of="translation") == 2
    assert "mean.ckpt: holds weights alone: no training goes on with them" in capsys.readouterr().err


def test_text_goes_in_and_comes_out_of_it_alone(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(project / "data" / "test.en", "in.en")
    commands = {
        "language-model": ["generate", "--prompt", "def", "--max_tokens", "3"],
        "translation": ["translate", "--input", "in.en", "--output", "out.de"],
        "cloze": ["predict", "def ___ self"],
    }
    for name, (command, *args) in commands.items():
        path = str(alone(project, name, elsewhere))
        assert recipe(command, *args, "--ckpt_path", path, of=name) == 0
        assert recipe(path, "--output", name, of="export") == 0
    assert len(Path("out.de").read_text().splitlines()) == 12
    assert "written to language-model" in capsys.readouterr().out


@pytest.mark.processes
def test_other_text_is_measured_with_the_tokenizer_of_the_checkpoint_where_nothing_of_the_run_is_left(
    project: Path, elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(project, lost)
    other = write_text(elsewhere / "other.txt", 900)
    for name, more in (("language-model", "bits per byte"), ("cloze", "rightly filled in")):
        checkpoint = alone(lost, name, elsewhere)
        held = torch.load(checkpoint, weights_only=True)
        held[KEY]["directory"] = str(lost)
        AtomicCheckpointIO().save_checkpoint(held, checkpoint)
        (lost / "data" / "code.txt").unlink(missing_ok=True)
        for args in (["--data.test", "other.txt"], ["--data.source", str(other)]):
            assert recipe("test", "--ckpt_path", str(checkpoint), *args, of=name) == 0
            assert more in told(capsys)
    config = elsewhere / "mine.yaml"
    config.write_text(yaml.safe_dump({"data": {"test": "other.txt", "eval_batch_size": 2}}))
    path = str(alone(lost, "language-model", elsewhere))
    assert recipe("test", "--ckpt_path", path, "--config", "mine.yaml") == 0
    write_pairs(elsewhere, 20)
    path = str(alone(lost, "translation", elsewhere))
    shutil.rmtree(lost)
    assert recipe("test", "--ckpt_path", path, "--data.test", "test", of="translation") == 0
    assert recipe("validate", "--ckpt_path", path, "--data.val", "val", of="translation") == 0


@pytest.mark.parametrize(("name", "command", "option", "given"), [
    ("language-model", "test", "source", "test"),
    ("language-model", "validate", "source", "val"),
    ("language-model", "fit", "source", "source"),
    ("cloze", "test", "source", "test"),
    ("translation", "test", "test", "test"),
    ("translation", "validate", "val", "val"),
    ("translation", "fit", "train", "train"),
])  # fmt: skip
def test_data_that_are_not_there_are_told_with_their_path_their_origin_and_the_option(
    name: str,
    command: str,
    option: str,
    given: str,
    project: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = alone(project, name, elsewhere, "last")
    (project / "data").rename(project / "moved")
    no_long_work(monkeypatch)
    try:
        assert recipe(command, "--ckpt_path", str(path), of=name) == 2
    finally:
        (project / "moved").rename(project / "data")
    stem = "code.txt" if option == "source" else option
    refused(
        capsys,
        f"{project / 'data' / stem}: no such file; it is data.{option}, 'data/{stem}', of the run, which was started "
        f"in {project} ({path}: its configuration): give another by --data.{given}",
    )
    assert os.listdir(elsewhere) == ["alone.ckpt"]


def test_every_source_with_a_name_is_no_path_of_the_runs_folder(tmp_path: Path) -> None:
    assert {*_BY_NAME, "numbers", FILES} == set(NAMED)
    for name in NAMED:
        run = Configuration({"data": {"source": name}}, "config.yaml", tmp_path)
        assert for_command(run, set(), "test") == {"data": {"source": name}}


def test_options_on_the_command_line_win(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(alone(project, "language-model", elsewhere, "last"))
    settings = {"trainer.max_steps": 21, "data.batch_size": 8, "name": "mine", "trainer.log_every_n_steps": 3}
    assert recipe("fit", "--ckpt_path", path, *options(**settings)) == 0
    folder = only_run(elsewhere / "runs")
    assert folder.path.name.endswith("-mine")
    config = yaml.safe_load(folder.config.read_text())
    assert (config["trainer"]["max_steps"], config["trainer"]["log_every_n_steps"]) == (21, 3)
    capsys.readouterr()
    no_long_work(monkeypatch)
    assert recipe("test", "--ckpt_path", path, "--data.tokenizer", "char", "--data.vocab_size", "null") == 2
    refused(capsys, "--data.tokenizer char: the checkpoint's model was trained with bpe, and its tokenizer is in the")


def test_a_run_that_is_tested_from_another_folder_finds_its_data(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = only_run(project / "runs")
    assert recipe("test", "--ckpt_path", str(run.path)) == 0
    whole = told(capsys)
    before = run.config.read_text()
    assert recipe("fit", "--ckpt_path", str(run.checkpoint("last"))) == 0
    assert "data/code.txt" in before
    assert str(project / "data" / "code.txt") in run.config.read_text()
    assert recipe("test", "--output_dir", str(project / "runs")) == 0
    assert told(capsys) == whole


@pytest.mark.parametrize("name", ["language-model", "translation", "cloze"])
def test_a_command_without_any_option_begins(
    name: str, project: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        no_long_work(patch)
        assert recipe("fit", of=name)
        assert "error: reads text" in capsys.readouterr().err  # as far as that
    monkeypatch.chdir(project)
    assert recipe("test", of=name) == 0
    assert told(capsys).startswith("test: ")


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_of_before_tells_alone_what_it_lacks_and_takes_a_configuration(
    name: str,
    command: str,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = RunFolder(OLD / name)
    path = shutil.copy(old.checkpoint("last"), elsewhere / "old.ckpt")
    with monkeypatch.context() as patch:
        no_long_work(patch)
        assert recipe(command, "--ckpt_path", "old.ckpt", of=name) == 2
        refused(capsys, "old.ckpt: carries no configuration", "--config RUN/config.yaml")
    if command == "test":
        args = ["--config", str(old.config), "--ckpt_path", str(path), *data_of(name, elsewhere)]
        assert recipe("test", *args, of=name) == 0
        assert told(capsys).startswith("test: ")


FOREIGN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a state dict": (lambda held: held["state_dict"], "but a state dict: weights alone"),
    "Lightning's, of something else": (
        lambda held: {"pytorch-lightning_version": "2.6.6", "state_dict": {"l.weight": torch.zeros(2)}},
        "but one that Lightning wrote of something else",
    ),
    "a dictionary": (lambda held: {"model": {}, "epoch": 3}, "not a checkpoint of the "),
    "nothing": (lambda held: {}, "not a checkpoint of the "),
    "a list": (lambda held: [1, 2], "not a checkpoint: it holds a list"),
    "without weights": (lambda held: {k: v for k, v in held.items() if k != "state_dict"}, "holds no weights"),
    "data of another kind": (lambda held: dict.fromkeys(held, 3), "not a checkpoint of the "),
    "a broken configuration": (lambda held: held | {KEY: {"config": "a: [", "directory": "/"}}, "cannot be read"),
    "a configuration of text": (lambda held: held | {KEY: {"config": "word", "directory": "/"}}, "holds a str"),
    "a configuration without data": (
        lambda held: held | {KEY: {"config": "data: [1]", "directory": "/"}},
        "no options of",
    ),
    "weights that are none": (lambda held: held | {"state_dict": {"a": "text"}}, "holds no weights"),
    "a broken tokenizer": (
        lambda held: {k: v | {"tokenizer": "{}"} if k in DATA_STATES.values() else v for k, v in held.items()},
        "its tokenizer cannot be read",
    ),
    "no configuration": (lambda held: held | {KEY: 5}, "cannot be read"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_no_checkpoint_of_the_recipe_is_refused_by_name_before_any_text_is_read(
    name: str,
    kind: str,
    project: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    no_long_work(monkeypatch)
    make, message = FOREIGN[kind]
    torch.save(make(torch.load(alone(project, name, elsewhere), weights_only=True)), "other.ckpt")
    for command in ("fit", "validate", "test"):
        assert recipe(command, "--ckpt_path", "other.ckpt", of=name) == 2
        refused(capsys, "other.ckpt", message)
    assert sorted(os.listdir(elsewhere)) == ["alone.ckpt", "other.ckpt"]


@pytest.mark.parametrize("name", RECIPES)
def test_files_that_are_no_checkpoints_and_those_of_other_recipes_are_refused_by_every_command(
    name: str,
    project: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    no_long_work(monkeypatch)
    other = RECIPES[RECIPES.index(name) - 1]
    content = alone(project, other, elsewhere).read_bytes()
    Path("text.ckpt").write_text("not a checkpoint\n")
    Path("cut.ckpt").write_bytes(content[: len(content) // 3])
    Path("empty.ckpt").touch()
    own = {
        "language-model": ["generate", "--prompt", "def"],
        "translation": ["translate", "--input", "text.ckpt"],
        "cloze": ["predict", "a ___"],
    }
    for command in (["fit"], ["validate"], ["test"], *([own[name]] if name in own else [])):
        for file in ("text.ckpt", "cut.ckpt", "empty.ckpt"):
            assert recipe(*command, "--ckpt_path", file, of=name) == 2
            refused(capsys, f"{file}: not a checkpoint, or cut off (")
        assert recipe(*command, "--ckpt_path", "alone.ckpt", of=name) == 2
        refused(capsys, f"alone.ckpt: not a checkpoint of the {name} recipe, but one of {other}")


def test_options_of_another_version_are_told_with_the_checkpoint_that_has_them(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = alone(project, "cloze", elsewhere)
    held = torch.load(path, weights_only=True)
    held[KEY]["config"] = held[KEY]["config"].replace("  mask_rate:", "  mask_rates:")
    AtomicCheckpointIO().save_checkpoint(held, path)
    assert recipe("test", "--ckpt_path", str(path), of="cloze") == 2
    error = capsys.readouterr().err
    assert "mask_rates" in error
    assert f"(among the options are those of the run of {path})" in error


def test_the_states_of_the_data_are_called_by_their_classes() -> None:
    classes = (TextDataModule, ParallelDataModule, ClozeDataModule, LongRangeData)
    assert tuple(DATA_STATES.values()) == tuple(kind.__qualname__ for kind in classes)


def test_a_folder_that_only_looks_like_a_run_brings_no_configuration(
    project: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration of some other program, in the folder above that of the checkpoint."""
    (elsewhere / "models").mkdir()
    (elsewhere / "config.yaml").write_text("site_name: mine\n")
    path = alone(project, "cloze", elsewhere / "models")
    assert recipe("test", "--ckpt_path", str(path), of="cloze") == 0
    assert told(capsys).startswith("test: ")
