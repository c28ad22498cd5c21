"""A run that was cut off goes on as if it had not been."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from signals_at import before
from tiny_runs import (
    assert_same,
    finish,
    kill_after_a_checkpoint,
    load,
    metrics,
    only_run,
    recipe,
    start,
    tiny,
    tiny_translation,
    trained,
)

from rnn_blocks.modules import LanguageModel
from rnn_blocks.recipes.run.checkpoints import LastCheckpoint
from rnn_blocks.recipes.run.folder import RunFolder, runs

# Dropout, a schedule of the learning rate and adaptive clipping: all that has a state. An epoch has 39 steps.
SETTINGS = {"trainer.max_steps": 100, "trainer.val_check_interval": 26, "model.dropout": 0.2}


@pytest.fixture(scope="module")
def cut_off(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[int, Path]]:
    """A finished run, and copies of its folder as a kill would leave it when the step after a checkpoint begins."""
    output_dir, copies = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("copies")
    there: dict[int, Path] = {}

    def copy(self: LastCheckpoint, trainer: Any, *_: Any) -> None:
        step = trainer.global_step
        if step and step % 13 == 0:
            there[step] = Path(shutil.copytree(Path(self.dirpath).parent, copies / str(step)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_start", copy)
        assert recipe("fit", *tiny(text, output_dir, **SETTINGS)) == 0
    folder = only_run(output_dir)
    whole = Path(shutil.copytree(folder.path, copies / "whole"))
    there[100] = whole
    return folder, there


@pytest.mark.processes
def test_after_sigkill_in_mid_epoch_a_run_ends_bit_for_bit_as_an_undisturbed_one(text: Path, tmp_path: Path) -> None:
    # in processes of one kind: to the bit, sums may differ in one that has run other things before
    undisturbed = start("fit", *tiny(text, tmp_path / "undisturbed", **SETTINGS))
    process = start("fit", *tiny(text, tmp_path, **SETTINGS))
    kill_after_a_checkpoint(process, tmp_path)
    folder, at = only_run(tmp_path), load(only_run(tmp_path))
    assert 0 < at["global_step"] < 100
    assert not at["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]

    finish(start("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path)))
    finish(undisturbed)
    whole = only_run(tmp_path / "undisturbed")
    assert load(folder)["global_step"] == 100
    assert_same(trained(load(folder)), trained(load(whole)))
    assert metrics(folder) == metrics(whole)
    steps = [row["step"] for row in metrics(folder)]
    assert len(set(steps)) == len(steps) >= 12


@pytest.mark.processes
@pytest.mark.parametrize(
    ("step", "validated", "epoch_ended"),
    [(13, False, False), (39, False, True), (52, True, False), (78, True, True)],
)
def test_from_any_place_of_an_epoch_a_resumed_run_ends_bit_for_bit_as_the_whole_one(
    cut_off: tuple[RunFolder, dict[int, Path]], step: int, validated: bool, epoch_ended: bool
) -> None:
    folder, copies = cut_off
    whole = RunFolder(copies[100])
    shutil.rmtree(folder.path)
    shutil.copytree(copies[step], folder.path)
    at = load(folder)
    assert at["global_step"] == step
    assert ("val/loss" in metrics(folder)[-1]) == validated
    assert at["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] == epoch_ended

    assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(folder.path.parent.parent)) == 0
    assert_same(trained(load(folder)), trained(load(whole)))
    assert metrics(folder) == metrics(whole)


def test_what_is_compared_holds_every_kind_of_state(cut_off: tuple[RunFolder, dict[int, Path]]) -> None:
    """Else the comparisons above could pass on nothing."""
    early, late = (trained(load(RunFolder(cut_off[1][step]))) for step in (52, 78))
    clipping = next(name for name in early["callbacks"] if name.startswith("AdaptiveGradientClipping"))
    for state in (early, late):
        assert state["state_dict"]
        assert state["optimizer_states"][0]["state"]
        assert state["lr_schedulers"][0]["last_epoch"] == state["global_step"]
        assert state["callbacks"][clipping]["optimizers"]["0"]["history"]["count"] == state["global_step"]
        assert state["carried_state"] is not None
        assert float(torch.stack([t.abs().sum() for t in state["carried_state"][0]]).sum()) > 0
    assert not torch.equal(early["callbacks"]["RandomState"]["torch"], late["callbacks"]["RandomState"]["torch"])
    with pytest.raises(AssertionError):
        assert_same(early, late)


def test_resuming_a_finished_run_does_nothing_and_loses_nothing(
    finished_run: RunFolder, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = _copy(finished_run, tmp_path)
    assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path)) == 0
    assert_same(trained(load(folder)), trained(load(finished_run)))
    assert_same(load(folder, "best")["state_dict"], load(finished_run, "best")["state_dict"])
    assert metrics(folder) == metrics(finished_run)
    assert folder.samples.read_text() == finished_run.samples.read_text()
    assert len(runs(tmp_path / "language-model")) == 1


def test_a_longer_resumed_run_keeps_the_configuration_it_had_before(finished_run: RunFolder, tmp_path: Path) -> None:
    folder = _copy(finished_run, tmp_path)
    args = ["--ckpt_path", "last", "--output_dir", str(tmp_path), "--trainer.max_steps", "24"]
    assert recipe("fit", *args) == 0
    assert load(folder)["global_step"] == 24
    assert "max_steps: 24" in folder.config.read_text()
    assert (folder.path / "config.before-1.yaml").read_text() == finished_run.config.read_text()


def test_a_training_from_a_checkpoint_that_is_not_the_last_starts_a_run_of_its_own(
    finished_run: RunFolder, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in finished_run.path.rglob("*") if path.is_file()}
    args = ["--ckpt_path", str(finished_run.checkpoint("best")), "--output_dir", str(tmp_path)]
    assert recipe("fit", *args, "--trainer.max_steps", "26") == 0
    folder = only_run(tmp_path)
    assert load(folder)["global_step"] == 26
    assert min(int(row["step"]) for row in metrics(folder)) >= load(finished_run, "best")["global_step"]
    assert {path: path.read_bytes() for path in finished_run.path.rglob("*") if path.is_file()} == before


def test_a_run_that_was_copied_elsewhere_keeps_its_best_checkpoints_until_there_are_better_ones(
    finished_translation: RunFolder, tmp_path: Path
) -> None:
    folder = RunFolder(Path(shutil.copytree(finished_translation.path, tmp_path / "copy")))
    best = load(folder, "best")
    at = load(folder)
    kept = {path.name for path in folder.kept.iterdir()}
    for name, state in at["callbacks"].items():  # as good as no later validation's
        if name.startswith(("ModelCheckpoint", "KeptCheckpoints")):
            perfect = torch.tensor(1e9)
            state["best_model_score"] = state["kth_value"] = perfect
            state["best_k_models"] = dict.fromkeys(state["best_k_models"], perfect)
    torch.save(at, folder.checkpoint("last"))
    args = ["--ckpt_path", str(folder.checkpoint("last")), "--trainer.max_steps", "30"]
    assert recipe("fit", *args, of="translation") == 0
    assert load(folder)["global_step"] == 30
    assert_same(load(folder, "best")["state_dict"], best["state_dict"])
    assert {path.name for path in folder.kept.iterdir()} == kept


def _copy(run: RunFolder, output_dir: Path) -> RunFolder:
    path = shutil.copytree(run.path, output_dir / "language-model" / run.path.name)
    return RunFolder(Path(path))


def test_a_configuration_file_says_where_the_runs_lie_and_what_is_gone_on_with(
    finished_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours, other = _copy(finished_run, tmp_path / "mine"), _copy(finished_run, tmp_path / "runs")
    Path("settings.yaml").write_text("output_dir: mine\nckpt_path: last\ntrainer: {max_steps: 21}\n")
    assert recipe("fit", "--config", "settings.yaml") == 0
    assert (load(ours)["global_step"], load(other)["global_step"]) == (21, 20)
    assert len(runs(tmp_path / "mine" / "language-model")) == 1


def test_an_evaluation_finds_the_runs_where_a_configuration_file_says_that_they_lie(
    finished_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe("test", "--config", str(finished_run.config)) == 0
    assert "test: perplexity" in capsys.readouterr().out
    Path("elsewhere.yaml").write_text("output_dir: nowhere\n")
    assert recipe("test", "--config", str(finished_run.config), "--config", "elsewhere.yaml") == 2
    assert "there is no run in nowhere/language-model yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model.optimizer.init_args.lr", "1000"),
        ("model.optimizer.init_args.betas", "[0.5, 0.9]"),
        ("model.optimizer", "torch.optim.Rprop"),
        ("model.lr_scheduler.init_args.max_lr", "7"),
        ("model.lr_scheduler", "null"),
    ],
)
def test_another_optimizer_or_schedule_than_the_checkpoints_is_refused_and_the_run_stays_as_it_was(
    option: str, value: str, finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _copy(finished_run, tmp_path)
    args = ["--ckpt_path", "last", "--output_dir", str(tmp_path), "--trainer.max_steps", "22", f"--{option}", value]
    assert recipe("fit", *args) == 2
    assert f"error: --{option}" in capsys.readouterr().err
    assert folder.config.read_text() == finished_run.config.read_text()
    assert load(folder)["global_step"] == 20


def _files(folder: RunFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_a_resumption_over_other_batches_is_refused_before_the_run_is_touched(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model.lr_scheduler": "null", "trainer.max_steps": 10, "trainer.max_epochs": 2}
    assert recipe("fit", *tiny(text, tmp_path, **settings)) == 0
    folder = only_run(tmp_path)
    before, configuration = _files(folder), folder.config.read_bytes()
    args = ["--ckpt_path", str(folder.checkpoint("last")), "--output_dir", str(tmp_path), "--trainer.max_steps", "20"]
    for tracked in ([], ["--logger", "wandb"]):
        assert recipe("fit", *args, "--data.bptt", "8", *tracked) == 2
        assert "bptt 8" in capsys.readouterr().err
        assert _files(folder) == before
    assert recipe("fit", *args) == 0
    assert load(folder)["global_step"] == 20
    assert b"max_steps: 20" in folder.config.read_bytes()
    assert folder.config.with_name("config.before-1.yaml").read_bytes() == configuration


def test_a_resumed_translation_over_other_batches_is_refused_before_the_run_is_touched(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_translation(pairs, tmp_path, **{"model.lr_scheduler": "null"})
    assert recipe("fit", *arguments, of="translation") == 0
    folder = only_run(tmp_path, "translation")
    before = _files(folder)
    args = ["--ckpt_path", "last", "--output_dir", str(tmp_path), "--trainer.max_steps", "30"]
    assert recipe("fit", *args, "--data.batch_tokens", "90", of="translation") == 2
    assert "resume with the same data settings" in capsys.readouterr().err
    assert _files(folder) == before


def test_a_training_that_ended_in_the_midst_of_an_epoch_is_lengthened_within_it(text: Path, tmp_path: Path) -> None:
    settings = {"model.lr_scheduler": "null", "data.variable_bptt": "true", "checkpoint_every_n_steps": 100}
    straight, lengthened = tmp_path / "straight", tmp_path / "lengthened"
    assert recipe("fit", *tiny(text, straight, **settings, **{"trainer.max_steps": 25})) == 0
    assert recipe("fit", *tiny(text, lengthened, **settings, **{"trainer.max_steps": 10})) == 0
    args = ["--ckpt_path", "last", "--output_dir", str(lengthened), "--trainer.max_steps", "25"]
    assert recipe("fit", *args) == 0
    expected, found = load(only_run(straight)), load(only_run(lengthened))
    assert found["epoch"] == expected["epoch"] == 0
    assert_same(found["state_dict"], expected["state_dict"])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_rows_of_a_run_that_ended_with_a_validation_go_on_without_a_gap(
    accumulated: int, text: Path, tmp_path: Path
) -> None:
    settings = {
        "trainer.max_steps": 10,
        "trainer.log_every_n_steps": 1,
        "trainer.accumulate_grad_batches": accumulated,
        "trainer.limit_train_batches": 10 * accumulated,
        "trainer.val_check_interval": 5 * accumulated,
    }
    assert recipe("fit", *tiny(text, tmp_path, **settings)) == 0
    assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path), "--trainer.max_steps", "15") == 0
    rows = metrics(only_run(tmp_path))
    assert [int(row["step"]) for row in rows] == list(range(15))
    assert [int(row["step"]) for row in rows if "val/loss" in row] == [4, 9, 14]


GATHERED = {
    "trainer.accumulate_grad_batches": 4,
    "trainer.val_check_interval": 6,
    "trainer.max_steps": 4,
    "trainer.log_every_n_steps": 1,
    "checkpoint_every_n_steps": 1,
}


@pytest.fixture(scope="module")
def gathered(text: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose first validation falls between the batches of its second step."""
    output_dir = tmp_path_factory.mktemp("gathered")
    assert recipe("fit", *tiny(text, output_dir, **GATHERED)) == 0
    return only_run(output_dir)


def _at_batch(index: int, step: int) -> Callable[[LanguageModel], bool]:
    return lambda model: (model.trainer.fit_loop.batch_idx, model.trainer.global_step) == (index, step)


@pytest.mark.processes
@pytest.mark.parametrize("method", ["training_step", "validation_step"])
def test_a_training_that_is_ended_between_the_batches_of_a_step_keeps_the_gradients_that_are_gathered(
    method: str, gathered: RunFolder, text: Path, tmp_path: Path
) -> None:
    patch = before(LanguageModel, method, _at_batch(5, 1), signal.SIGTERM)
    assert recipe("fit", *tiny(text, tmp_path, **GATHERED)) == 143
    patch.undo()
    folder = only_run(tmp_path)
    assert load(folder)["global_step"] == 2
    assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path)) == 0
    assert_same(trained(load(folder)), trained(load(gathered)))
    assert metrics(folder) == metrics(gathered)


@pytest.mark.processes
def test_a_checkpoint_holds_whole_steps_wherever_a_validation_or_a_crash_falls(
    gathered: RunFolder, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, crashes = LanguageModel.training_step, [6, 5]  # after the validation, and after the first batch since

    def step(model: LanguageModel, *args: Any) -> Any:
        if crashes and model.trainer.fit_loop.batch_idx == crashes[0]:
            raise OSError(f"batch {crashes.pop(0)}")
        return sound(model, *args)

    monkeypatch.setattr(LanguageModel, "training_step", step)
    assert recipe("fit", *tiny(text, tmp_path, **GATHERED)) == 1
    folder = only_run(tmp_path)
    for code in (1, 0):
        assert recipe("fit", "--ckpt_path", "last", "--output_dir", str(tmp_path)) == code
    assert not crashes
    assert_same(trained(load(folder)), trained(load(gathered)))
    assert metrics(folder) == metrics(gathered)
