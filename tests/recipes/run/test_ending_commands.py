"""The commands beside `fit` that a signal ends, and whole processes that get one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from signals_at import BOTH, CODES, before
from tiny_runs import TINY, assert_same, finish, load, metrics, only_run, options, recipe, start, tiny, trained
from wandb_runs import nobody, of_kind, records, run_files

from rnn_blocks.recipes.__main__ import main
from rnn_blocks.recipes.language_model import recipe as language_model
from rnn_blocks.recipes.long_range.comparison.settings import Result
from rnn_blocks.recipes.long_range.model import LongRangeModel
from rnn_blocks.recipes.run.folder import RunFolder, runs
from rnn_blocks.recipes.translation.translator import Translator

pytestmark = pytest.mark.processes

GRID = {"cells": "elman,gru", "lengths": "6", "max-steps": 9, "eval-every": 4, "eval-sequences": 20}
GRID |= {"parameters": 120, "batch-size": 8, "accelerator": "cpu"}
COMPARE = ["long-range", "compare"]


def compare(output_dir: Path, **settings: Any) -> int:
    return recipe("compare", *options(**(GRID | {"output_dir": output_dir} | settings)), of="long-range")


def results(output_dir: Path) -> list[Any]:
    made = sorted((output_dir / "long-range" / "compare-adding" / "trainings").glob("*.json"))
    return [(result.curve, result.loss) for path in made if (result := Result.read(path)) is not None]


@BOTH
@pytest.mark.parametrize("place", ["training_step", "validation_step"])
def test_a_comparison_that_is_ended_goes_on_to_the_same_results(
    place: str, number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path / "whole") == 0
    capfd.readouterr()
    at = {"training_step": 5, "validation_step": 4}[place]
    patch = before(LongRangeModel, place, lambda model: model.trainer.global_step == at, number)
    code = compare(tmp_path)
    patch.undo()
    shown = capfd.readouterr().err
    assert code == CODES[signal.Signals(number)], shown
    assert "Interrupted; the same command goes on from here: " in shown
    assert "Traceback" not in shown
    assert len(list(tmp_path.rglob("*.ckpt"))) == 1
    assert compare(tmp_path) == 0
    assert results(tmp_path) == results(tmp_path / "whole")
    assert len(results(tmp_path)) == 2


@BOTH
def test_text_that_is_being_written_ends(
    number: int, finished_run: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    patch = before(language_model, "check_sampling", lambda _: True, number)
    code = recipe("generate", *options(prompt="def", ckpt_path=finished_run.path))
    patch.undo()
    assert code == CODES[signal.Signals(number)]
    assert capfd.readouterr().err == ""


@BOTH
def test_a_translation_that_is_ended_tells_how_far_it_came(
    number: int, finished_translation: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "input.txt"
    source.write_text("one two\n" * 3)
    patch = before(Translator, "__call__", lambda _: True, number)
    code = recipe("translate", *options(input=source, ckpt_path=finished_translation.path), of="translation")
    patch.undo()
    assert code == CODES[signal.Signals(number)]
    assert "interrupted: 0 lines were translated before\n" in capfd.readouterr().err


def test_sigterm_ends_what_ctrl_c_does_not(
    finished_translation: RunFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    signals = iter([signal.SIGINT, signal.SIGTERM])

    def typed(prompt: str) -> str:
        os.kill(os.getpid(), next(signals))
        return "one"

    monkeypatch.setattr("builtins.input", typed)
    assert recipe("interactive", *options(ckpt_path=finished_translation.path), of="translation") == 143
    assert capfd.readouterr().out == "\n"


@BOTH
def test_an_export_that_is_ended_says_so_by_its_exit_code(
    number: int, finished_run: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    patch = before(torch, "load", lambda _: True, number)
    checkpoint = str(finished_run.checkpoint("best"))
    assert main(["export", checkpoint, "--output", str(tmp_path / "model")]) == CODES[signal.Signals(number)]
    patch.undo()
    assert "Traceback" not in capfd.readouterr().err


def wait_for(there: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    while not there():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def ended(process: "subprocess.Popen[str]", number: int) -> str:
    """What a process that gets a signal writes to standard error."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == CODES[signal.Signals(number)], errors[-4000:]
    assert "Traceback" not in errors, errors
    return errors


def interruptible(*command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "rnn_blocks.recipes", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


@pytest.mark.parametrize("library", ["libtorch", "_multiarray_umath"])
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.processes)])
def test_a_signal_while_libraries_are_imported_ends_without_a_traceback(
    number: signal.Signals, library: str, tmp_path: Path
) -> None:
    process = interruptible("language-model", "fit", "--output_dir", str(tmp_path))
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        pytest.skip("no /proc here that tells what a process has loaded")
    wait_for(lambda: library in maps.read_text(), process)
    assert ended(process, number) == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.processes
def test_a_process_that_sigterm_ends_has_its_exit_code_and_a_failed_wandb_run(text: Path, tmp_path: Path) -> None:
    settings = {"trainer.max_steps": 20000, "model.lr_scheduler.init_args.total_steps": 20000, "logger": "wandb"}
    process = start("fit", *tiny(text, tmp_path, **settings), **nobody(tmp_path))
    wait_for(lambda: list(tmp_path.glob("*/*/checkpoints/last.ckpt")), process)
    said = ended(process, signal.SIGTERM)
    folder = only_run(tmp_path)
    assert f"{folder.path}: ended by SIGTERM; go on with: " in said
    (row,) = of_kind(records(run_files(folder)[0]), "exit")
    assert row["exit_code"] > 0, "W&B shows it as failed"
    step = load(folder)["global_step"]
    assert step > 13
    assert int(metrics(folder)[-1]["step"]) < step


@pytest.mark.processes
def test_a_sweep_that_is_ended_ends_its_trainings_which_can_go_on(text: Path, tmp_path: Path) -> None:
    few = TINY | {"data.source": text, "trainer.max_steps": 3000, "model.lr_scheduler.init_args.total_steps": 3000}
    file = tmp_path / "mine.yaml"
    content = {
        "program": "rnn-blocks",
        "command": ["rnn-blocks", "language-model", "fit", "${args}"],
        "method": "grid",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": {"model.dropout": {"values": [0.0, 0.1]}},
    }
    file.write_text(yaml.safe_dump(content))
    command = ["sweep", str(file), "--output_dir", str(tmp_path), "--processes", "2", "--options"]
    command += [f"{name}={value}" for name, value in few.items()]
    process = interruptible(*command)
    wait_for(lambda: len(list(tmp_path.glob("sweeps/mine/*/*/*/checkpoints/last.ckpt"))) == 2, process)
    said = ended(process, signal.SIGTERM)
    assert f"Interrupted; the same command goes on from here: {tmp_path / 'sweeps' / 'mine'}" in said
    points = sorted((tmp_path / "sweeps" / "mine").glob("dropout*"))
    assert len(points) == 2
    for point in points:
        (run,) = runs(point / "language-model")
        assert load(run)["global_step"] > 13
        assert f"{run.path}: ended by SIGTERM; go on with: " in (point / "log.txt").read_text()


@pytest.mark.processes
def test_a_comparison_in_several_processes_that_is_ended_goes_on(tmp_path: Path) -> None:
    long = {"max-steps": 400, "eval-every": 150, "solved-below": 1e-9}
    given = [*COMPARE, *options(**(GRID | long | {"output_dir": tmp_path, "processes": 2}))]
    process = interruptible(*given)
    trainings = tmp_path / "long-range" / "compare-adding" / "trainings"
    wait_for(trainings.is_dir, process)
    time.sleep(1)
    said = ended(process, signal.SIGINT)
    assert "Interrupted; the same command goes on from here: " in said
    assert len(list(trainings.glob("*.ckpt"))) + len(list(trainings.glob("*.json"))) >= 1
    finish(interruptible(*given))
    assert len(results(tmp_path)) == 2


@pytest.mark.processes
def test_two_ranks_end_together_and_go_on_bit_for_bit(text: Path, tmp_path: Path) -> None:
    settings = {
        "trainer.strategy": "ddp",
        "trainer.devices": 2,
        "data.batch_size": 4,
        "trainer.max_steps": 2000,
        "model.lr_scheduler.init_args.total_steps": 2000,
        "trainer.val_check_interval": 39,
    }
    process = start("fit", *tiny(text, tmp_path, **settings))
    wait_for(lambda: list(tmp_path.glob("*/*/checkpoints/last.ckpt")), process)
    said = ended(process, signal.SIGTERM)
    folder = only_run(tmp_path)
    assert said.count("ended by SIGTERM; go on with: ") == 1
    step = load(folder)["global_step"]
    assert step > 13
    more = ["--trainer.max_steps", str(step + 6)]
    finish(start("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path), *more))
    finish(start("fit", *tiny(text, tmp_path / "whole", **settings), *more))
    assert_same(trained(load(folder)), trained(load(only_run(tmp_path / "whole"))))
