"""A checkpoint's name stands for a whole file, whatever happens while one is written."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import column, load, only_run, recipe, tiny

from rnn_blocks.modules import LanguageModel
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.checkpoints import AtomicCheckpointIO, read_checkpoint
from rnn_blocks.recipes.run.folder import RunFolder


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_the_middle(checkpoint: Any, file: Any) -> None:
    file.write(b"PK half of it")
    full()


def torn(*_: Any) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/3")


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    return path


@pytest.mark.parametrize(
    ("place", "failure"),
    [("torch.save", full_in_the_middle), ("torch.save", torn), ("os.fsync", full), ("os.replace", full)],
)
def test_a_write_that_fails_leaves_the_checkpoint_before_it_and_nothing_else(
    earlier: Path, monkeypatch: pytest.MonkeyPatch, place: str, failure: Callable[..., None]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(place, failure)
        with pytest.raises(OSError, match=r"could not be written.*still holds the checkpoint before it"):
            AtomicCheckpointIO().save_checkpoint({"step": 2}, earlier)
    assert AtomicCheckpointIO().load_checkpoint(earlier) == {"step": 1}
    assert os.listdir(earlier.parent) == ["last.ckpt"]


def test_a_first_write_that_fails_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match="none was written"):
        AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == []


def test_where_the_system_refuses_to_write_on_the_checkpoint_before_it_stays(earlier: Path) -> None:
    """Not simulated: the kernel ends the write, as on a full disk, after 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match="could not be written"):
            AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1 << 18)}, earlier)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert AtomicCheckpointIO().load_checkpoint(earlier) == {"step": 1}
    assert os.listdir(earlier.parent) == ["last.ckpt"]


KILLED_IN_WRITING = """
import os, signal, sys
from pathlib import Path
from rnn_blocks.modules import LanguageModel
from rnn_blocks.recipes.run.checkpoints import AtomicCheckpointIO
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
AtomicCheckpointIO().save_checkpoint({"step": 2}, Path(sys.argv[1]))
"""


@pytest.mark.processes
def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before_it_and_the_next_write_clears_up(
    earlier: Path,
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_WRITING, str(earlier)], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(earlier.parent)) == 2
    assert AtomicCheckpointIO().load_checkpoint(earlier) == {"step": 1}
    AtomicCheckpointIO().save_checkpoint({"step": 3}, earlier)
    assert AtomicCheckpointIO().load_checkpoint(earlier) == {"step": 3}
    assert os.listdir(earlier.parent) == ["last.ckpt"]


def test_every_truncation_of_a_checkpoint_is_refused_by_name(finished_run: RunFolder, tmp_path: Path) -> None:
    whole = finished_run.checkpoint("last").read_bytes()
    path = tmp_path / "cut.ckpt"
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"cut\.ckpt: not a checkpoint, or cut off \({length:,} bytes\)"):
            read_checkpoint(path)


def test_a_disk_that_fills_up_in_training_ends_it_with_the_checkpoint_before_whole(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, saved = torch.save, []

    def fill_up(checkpoint: dict[str, Any], file: Any) -> None:
        saved.append(checkpoint["global_step"])
        full_in_the_middle(checkpoint, file) if len(saved) > 2 else save(checkpoint, file)

    monkeypatch.setattr("torch.save", fill_up)
    assert recipe("fit", *tiny(text, tmp_path)) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "still holds the checkpoint before it" in error
    assert "Traceback" not in error
    folder = only_run(tmp_path)
    assert load(folder)["global_step"] == saved[1] == 13
    assert not [path for path in folder.checkpoints.iterdir() if path.suffix != ".ckpt"]
    assert (folder.plots / "loss.png").is_file()
    assert column(folder, "train/loss").keys() == {7, 15}


def test_a_nan_loss_ends_the_training_and_never_reaches_a_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"trainer.callbacks": "[]", "model.optimizer": "torch.optim.SGD", "model.lr_scheduler": "null"}
    sound = LanguageModel.training_step

    def diverge(self: LanguageModel, batch: Any, batch_idx: int) -> torch.Tensor:
        return sound(self, batch, batch_idx) * (torch.nan if self.trainer.global_step == 15 else 1)

    monkeypatch.setattr(LanguageModel, "training_step", diverge)
    assert recipe("fit", *tiny(text, tmp_path, **settings, **{"model.optimizer.init_args.lr": 0.1})) == 1
    error = capsys.readouterr().err
    assert "error: step 16: the loss is nan, and 'layer.layers.0.cell.weight_ih' holds values that are not fin" in error
    assert "Start anew with a lower learning rate, or clip" in error
    assert "Traceback" not in error
    last = load(only_run(tmp_path))
    assert last["global_step"] == 13
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())


@pytest.mark.parametrize("learning_rate", ["1e38", "3e38"])  # at less, units may saturate and stay finite
def test_a_learning_rate_far_too_high_ends_with_a_message_and_finite_checkpoints(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], learning_rate: str
) -> None:
    settings = {"trainer.callbacks": "[]", "model.optimizer": "torch.optim.SGD", "model.lr_scheduler": "null"}
    settings |= {"model.optimizer.init_args.lr": learning_rate, "trainer.max_steps": 60}
    assert recipe("fit", *tiny(text, tmp_path, **settings)) == 1
    error = capsys.readouterr().err
    assert "diverged" in error or "not finite" in error
    assert "Traceback" not in error
    folder = only_run(tmp_path)
    for path in folder.checkpoints.iterdir():
        assert all(tensor.isfinite().all() for tensor in read_checkpoint(path)["state_dict"].values())


def test_a_trial_of_a_few_steps_leaves_no_checkpoint_to_go_on_from(text: Path, tmp_path: Path) -> None:
    for average in (0, 2):
        settings = {"trainer.fast_dev_run": 2, "average_checkpoints": average}
        assert recipe("fit", *tiny(text, tmp_path, **settings)) == 0
    assert list(tmp_path.rglob("*.ckpt")) == []
