"""Commands that a signal ends: exit codes, what is kept, and how it goes on."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from signals_at import BOTH, CODES, before
from tiny_runs import (
    assert_same,
    load,
    metrics,
    only_run,
    recipe,
    tiny,
    tiny_translation,
    trained,
)

from rnn_blocks.modules import LanguageModel
from rnn_blocks.recipes.data import store
from rnn_blocks.recipes.run import averaging
from rnn_blocks.recipes.run.folder import RunFolder, runs

pytestmark = pytest.mark.processes

# An epoch has 39 steps, a validation 3 batches.
SETTINGS = {"trainer.max_steps": 53, "trainer.val_check_interval": 13, "model.dropout": 0.2}


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    output_dir = tmp_path_factory.mktemp("undisturbed")
    assert recipe("fit", *tiny(text, output_dir, **SETTINGS)) == 0
    return only_run(output_dir)


def _at(step: int) -> Callable[[LanguageModel], bool]:
    return lambda model: model.trainer.global_step == step and not model.trainer.sanity_checking


PLACES = {
    "a step": ("training_step", 20, 21),
    "a step that is logged": ("training_step", 23, 24),
    "a step before a validation": ("training_step", 12, 13),
    "the last step of an epoch": ("training_step", 38, 39),
    "a validation": ("validation_step", 26, 26),
    "a validation at an epoch's end": ("validation_step", 39, 39),
    "the last step": ("training_step", 52, 53),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_training_that_sigterm_ends_goes_on_as_if_it_had_not_been_ended(
    place: str, text: Path, tmp_path: Path, undisturbed: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    method, step, kept = PLACES[place]
    patch = before(LanguageModel, method, _at(step), signal.SIGTERM)
    code = recipe("fit", *tiny(text, tmp_path, **SETTINGS))
    patch.undo()
    folder, shown = only_run(tmp_path), capfd.readouterr()
    assert code == 143, shown.err
    last = folder.checkpoint("last")
    assert load(folder)["global_step"] == kept
    assert shown.err.splitlines()[-1] == (
        f"{folder.path}: ended by SIGTERM; go on with: rnn-blocks language-model fit --ckpt_path {last}"
    )
    assert f"Run        {folder.path}\nCheckpoint " in shown.out
    assert "Traceback" not in shown.err

    assert recipe("fit", "--ckpt_path", str(last), "--output_dir", str(tmp_path)) == 0
    assert_same(trained(load(folder)), trained(load(undisturbed)))
    assert metrics(folder) == metrics(undisturbed)
    assert _best(folder) == _best(undisturbed)
    assert len(runs(tmp_path / "language-model")) == 1


def _best(folder: RunFolder) -> float:
    states = load(folder)["callbacks"]
    return next(float(state["best_model_score"]) for name, state in states.items() if name.startswith("ModelCheckp"))


def test_ctrl_c_finishes_the_step_and_a_second_one_ends_at_once(
    text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output_dir = tmp_path / " ".join(["my", "runs"] * 20)  # a path that YAML breaks into lines
    patch = before(LanguageModel, "training_step", _at(9), signal.SIGINT)
    assert recipe("fit", *tiny(text, output_dir)) == 130
    patch.undo()
    folder = only_run(output_dir)
    assert load(folder)["global_step"] == 10
    shown = capfd.readouterr().err
    assert "ends after this step; Ctrl-C again ends at once" in shown
    going_on = f"rnn-blocks language-model fit --ckpt_path '{folder.checkpoint('last')}'"
    assert f"{folder.path}: ended by SIGINT; go on with: {going_on}" in shown

    patch = before(LanguageModel, "training_step", _at(15), signal.SIGINT)
    second = before(LanguageModel, "training_step", _at(15), signal.SIGINT)
    assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(output_dir)) == 130
    second.undo()
    patch.undo()
    assert load(folder)["global_step"] == 13, "of the last checkpoint that was due"
    assert "Traceback" not in capfd.readouterr().err


@BOTH
@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (store, "_make"),
        (store, "_load"),
        (LanguageModel, "configure_optimizers"),
        (LanguageModel, "validation_step"),
    ],
    ids=["tokenising", "reading", "setting up", "the sanity check"],
)
def test_a_command_that_is_ended_before_the_first_step_leaves_no_half_of_anything(
    owner: Any, method: str, number: int, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = tiny(text, tmp_path, **{"data.cache_dir": tmp_path / "cache"})
    patch = before(owner, method, lambda _: True, number)
    code = recipe("fit", *args)
    patch.undo()
    shown = capfd.readouterr()
    assert code == CODES[signal.Signals(number)], shown.err
    assert "no step was made" in shown.err
    assert "Traceback" not in shown.err
    for folder in runs(tmp_path / "language-model"):
        assert not any(folder.checkpoints.iterdir())
    assert recipe("fit", *args) == 0


@BOTH
@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_evaluation_that_is_ended_says_so_by_its_exit_code(
    command: str, number: int, finished_run: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    step = {"validate": "validation_step", "test": "test_step"}[command]
    patch = before(LanguageModel, step, lambda _: True, number)
    code = recipe(command, "--ckpt_path", str(finished_run.path))
    patch.undo()
    assert code == CODES[signal.Signals(number)]
    assert "Traceback" not in capfd.readouterr().err


def test_a_checkpoint_that_is_being_written_is_finished(text: Path, tmp_path: Path) -> None:
    number = signal.SIGTERM
    patch = before(os, "fsync", lambda file: ".ckpt" in os.readlink(f"/proc/self/fd/{file}"), number)
    assert recipe("fit", *tiny(text, tmp_path)) == CODES[signal.Signals(number)]
    patch.undo()
    folder = only_run(tmp_path)
    assert load(folder)["global_step"] == load(folder, "best")["global_step"] == 10
    assert not list(folder.checkpoints.glob(".*.tmp"))
    assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path)) == 0
    assert load(folder)["global_step"] == 20


def test_an_average_that_is_ended_is_made_by_the_same_command_later(
    pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    number = signal.SIGTERM
    patch = before(averaging, "read_checkpoint", lambda _: True, number)
    code = recipe("fit", *tiny_translation(pairs, tmp_path, average_checkpoints=2), of="translation")
    assert code == CODES[signal.Signals(number)]
    patch.undo()
    folder = only_run(tmp_path, "translation")
    assert not folder.checkpoint("averaged").exists()
    assert f"{folder.path}: ended by {signal.Signals(number).name}; go on with: " in capfd.readouterr().err
    assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path), of="translation") == 0
    assert folder.checkpoint("averaged").is_file()

    patch = before(averaging, "read_checkpoint", lambda _: True, number)
    code = recipe("average", "--run", str(folder.path), "--overwrite", of="translation")
    patch.undo()
    assert code == CODES[signal.Signals(number)]


def test_with_gradients_of_several_batches_a_training_ends_after_a_whole_step(text: Path, tmp_path: Path) -> None:
    settings = {"trainer.accumulate_grad_batches": 4, "trainer.max_steps": 9, "trainer.val_check_interval": 39}
    assert recipe("fit", *tiny(text, tmp_path / "whole", **settings)) == 0
    patch = before(LanguageModel, "training_step", lambda model: model.trainer.fit_loop.batch_idx == 17, signal.SIGTERM)
    assert recipe("fit", *tiny(text, tmp_path, **settings)) == 143
    patch.undo()
    folder = only_run(tmp_path)
    assert load(folder)["global_step"] == 5
    assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path)) == 0
    assert_same(trained(load(folder)), trained(load(only_run(tmp_path / "whole"))))


def test_a_handler_that_somebody_has_set_is_left_alone(text: Path, tmp_path: Path) -> None:
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        patch = before(store, "_make", lambda _: True, signal.SIGTERM)
        args = tiny(text, tmp_path, **{"data.cache_dir": tmp_path / "cache", "trainer.max_steps": 2})
        assert recipe("fit", *args) == 0
        patch.undo()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of SLURM's with a `scontrol` that writes down what it is asked."""
    asked = tmp_path / "asked.txt"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    job = {"JOB_ID": "4711", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return asked


@pytest.mark.parametrize("place", ["a step", "a validation"])
def test_a_job_that_slurm_warns_is_run_again_and_the_same_command_goes_on(
    place: str,
    requeued: Path,
    text: Path,
    tmp_path: Path,
    undisturbed: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    method, step, kept = PLACES[place]
    patch = before(LanguageModel, method, _at(step), signal.SIGUSR1)
    args = ["fit", *tiny(text, tmp_path, **SETTINGS)]
    assert recipe(*args) == 128 + signal.SIGUSR1
    patch.undo()
    folder = only_run(tmp_path)
    assert load(folder)["global_step"] == kept
    assert not list(folder.path.glob("hpc_ckpt*"))
    assert requeued.read_text() == "requeue 4711\n"
    assert "SLURM runs job 4711 again" in capfd.readouterr().err

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert recipe(*args) == 0
    assert only_run(tmp_path).path == folder.path
    assert_same(trained(load(folder)), trained(load(undisturbed)))
    assert metrics(folder) == metrics(undisturbed)
    assert requeued.read_text() == "requeue 4711\n"


def test_a_job_that_is_warned_while_it_tokenises_is_run_again(
    requeued: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    args = ["fit", *tiny(text, tmp_path, **{"data.cache_dir": tmp_path / "cache", "trainer.max_steps": 2})]
    patch = before(store, "_make", lambda _: True, signal.SIGUSR1)
    assert recipe(*args) == 138
    patch.undo()
    assert requeued.read_text() == "requeue 40_2\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert recipe(*args) == 0


def test_a_job_that_is_preempted_goes_on_and_other_jobs_and_commands_have_runs_of_their_own(
    requeued: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["fit", *tiny(text, tmp_path)]
    patch = before(LanguageModel, "training_step", _at(5), signal.SIGTERM)
    assert recipe(*args) == 143
    patch.undo()
    assert not requeued.exists(), "SLURM itself runs a preempted job again"
    assert recipe(*args, "--trainer.max_steps", "2") == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert recipe(*args, "--trainer.max_steps", "1") == 0
    assert len(runs(tmp_path / "language-model")) == 3
    assert recipe(*args) == 0
    assert len(runs(tmp_path / "language-model")) == 3
    assert load(runs(tmp_path / "language-model")[0])["global_step"] == 20
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    assert recipe(*args, "--trainer.max_steps", "1") == 0
    assert len(runs(tmp_path / "language-model")) == 4


def test_a_slurm_environment_of_the_users_says_that_a_job_is_not_run_again(
    requeued: Path, text: Path, tmp_path: Path
) -> None:
    environment = "lightning.pytorch.plugins.environments.SLURMEnvironment"
    plugin = f"{{class_path: {environment}, init_args: {{auto_requeue: false}}}}"
    patch = before(LanguageModel, "training_step", _at(2), signal.SIGUSR1)
    assert recipe("fit", *tiny(text, tmp_path, **{"trainer.plugins": plugin})) == 138
    patch.undo()
    assert not requeued.exists()
    assert load(only_run(tmp_path))["global_step"] == 3


def test_without_scontrol_and_as_another_task_the_training_is_kept_all_the_same(
    requeued: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    patch = before(LanguageModel, "training_step", _at(5), signal.SIGUSR1)
    assert recipe("fit", *tiny(text, tmp_path)) == 138
    patch.undo()
    assert "job 4711 is not run again: scontrol: No such file or directory" in capfd.readouterr().err
    assert load(only_run(tmp_path))["global_step"] == 6


@pytest.fixture
def nobodys(finished_run: RunFolder) -> Iterator[Path]:
    """A copy of a run that everybody may read; root, whom no mode keeps out, is somebody else for the test's time."""
    output_dir = Path(tempfile.mkdtemp())
    output_dir.chmod(0o755)
    shutil.copytree(finished_run.path, output_dir / "language-model" / "run")
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield output_dir
    if root:
        os.seteuid(0)
    for path in [output_dir, *output_dir.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(output_dir)


@pytest.mark.parametrize("place", [".", "checkpoints", "metrics.csv", "plots"])
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_that_cannot_be_written_to_is_not_gone_on_with_and_the_place_is_named(
    place: str, nobodys: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = nobodys / "language-model" / "run"
    owner = os.geteuid()
    if owner == 65534:
        os.seteuid(0)
        for path in [run, *run.rglob("*")]:
            os.chown(path, owner, -1)
        os.seteuid(owner)
    (run / place).chmod(0o555)
    code = recipe("fit", "--ckpt_path", "last", "--output_dir", str(nobodys), "--trainer.max_steps", "30")
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert code == 2
    assert said.startswith(f"error: {run / place}: cannot ")
    assert said.endswith("copy it elsewhere and give --ckpt_path COPY/checkpoints/last.ckpt")
    assert load(RunFolder(run))["global_step"] == 20
