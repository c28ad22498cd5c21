"""Checkpoints that are whole or not there, and from which a run goes on bit for bit."""

import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.folder import BEST, LAST, RunFolder

Mode: TypeAlias = Literal["min", "max"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and renames, so that its name only ever stands for a whole file.

    (Lightning's own writes in the system's temporary folder; from another file system its "move" is a copy.)

    Args:
        carried: what each checkpoint holds beside what Lightning puts there; see ``load.carried``.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "model.ckpt")
    >>> AtomicCheckpointIO().save_checkpoint({"step": 3}, path)
    >>> AtomicCheckpointIO().load_checkpoint(path), [p.name for p in path.parent.iterdir()]
    ({'step': 3}, ['model.ckpt'])
    """

    def __init__(self, carried: Mapping[str, Any] | None = None) -> None:
        self._carried = dict(carried or {})

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint; on a full disk the one that was there stays, and the error says so."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process leaves is written over
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint | self._carried, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError | RuntimeError):
                kept = f"{path} still holds the checkpoint before it" if path.exists() else "none was written"
                raise OSError(f"{path}: the checkpoint could not be written ({error}); {kept}") from error
            raise

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint: tensors, numbers, strings and their containers, no code."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        InputError: where the file is cut off, damaged, or not a checkpoint.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "cut.ckpt"); _ = path.write_bytes(b"PK")
    >>> try: read_checkpoint(path)
    ... except InputError as error: print(str(error).split(": ", 1)[1][:36])
    not a checkpoint, or cut off (2 byte
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such checkpoint") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "weights_only" in reason:  # torch's advice on what would then be run as a program
            reason = "torch cannot read it, or it holds more than tensors, numbers and text"
        raise InputError(f"{path}: not a checkpoint, or cut off ({path.stat().st_size:,} bytes): {reason}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def check_fits(checkpoint: dict[str, Any], model: nn.Module, path: Path) -> None:
    """Make sure that a checkpoint holds this model's parameters.

    Raises:
        InputError: naming the first parameter that is missing, left over, or of another shape.

    >>> check_fits({"state_dict": {}}, nn.Linear(2, 1), Path("other.ckpt"))
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: other.ckpt: a checkpoint of another model: it lacks 'weight'
    """
    wanted, held = model.state_dict(), checkpoint.get("state_dict", {})
    for name, tensor in wanted.items():
        if name not in held:
            raise InputError(f"{path}: a checkpoint of another model: it lacks {name!r}")
        if held[name].shape != tensor.shape:
            raise InputError(
                f"{path}: a checkpoint of another model: {name!r} is {tuple(held[name].shape)} there and "
                f"{tuple(tensor.shape)} in this configuration"
            )
    for name in held:
        if name not in wanted:
            raise InputError(f"{path}: a checkpoint of another model: this configuration has no {name!r}")


def check_disk_space(model: nn.Module, folder: Path, kept: int = 0) -> None:
    """Make sure that the checkpoints to come have room, before any long work.

    Args:
        model: whose checkpoints they are.
        folder: where they go.
        kept: how many there are beside the usual ones, of weights alone.

    Raises:
        InputError: naming what is free and what is needed.

    >>> check_disk_space(nn.Linear(2, 1), Path("."))
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    needed = (4 * 2 + kept) * size + 2**20  # best, last and one being written, each with the optimizer's state
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {free / 2**20:,.0f} MiB are free, the checkpoints of this model need about "
            f"{needed / 2**20:,.0f} MiB; make room or give another folder by --output_dir"
        )


def gathers_gradients(trainer: pl.Trainer) -> bool:
    """Whether there are gradients of a step to come, under ``accumulate_grad_batches``."""
    return trainer.fit_loop._should_accumulate()


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt``: written every so many steps and at the end, to resume from.

    Not while gradients of a step to come are gathered, which a checkpoint does not hold.

    Args:
        folder: the run's.
        every_n_steps: optimizer steps between two writes.

    >>> LastCheckpoint(RunFolder(Path("run")), every_n_steps=100).filename
    'last'
    """

    def __init__(self, folder: RunFolder, every_n_steps: int) -> None:
        super().__init__(
            dirpath=folder.checkpoints,
            filename=LAST,
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,
        )
        self._path = folder.checkpoint(LAST)

    def write(self, trainer: pl.Trainer) -> None:
        """Write it now, where this is no trial of a few steps: as Lightning's own, which write nothing then."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self._path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write it where that is due."""
        if not gathers_gradients(trainer):  # as the first batch after a checkpoint may
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        is_in_the_midst = not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if is_in_the_midst and trainer.global_step == trainer.max_steps != self._last_global_step_saved:
            self.write(trainer)  # at the end Lightning counts the epoch as done, and a longer training would leave it
            self._last_global_step_saved = trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write again what was written before the step's validation: a run resumed from that would leave it out."""
        due = trainer.state.fn == TrainerFn.FITTING and 0 < trainer.global_step == self._last_global_step_saved
        if due and not gathers_gradients(trainer):
            self.write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write once more."""
        if trainer.global_step != self._last_global_step_saved:
            self.write(trainer)


def best_checkpoint(folder: RunFolder, monitor: str, mode: Mode = "min") -> ModelCheckpoint:
    """``best.ckpt``: written when ``monitor`` has never been lower, or with the mode ``"max"`` higher.

    >>> best_checkpoint(RunFolder(Path("run")), "val/loss").monitor
    'val/loss'
    """
    return ModelCheckpoint(
        dirpath=folder.checkpoints, filename=BEST, monitor=monitor, mode=mode, enable_version_counter=False
    )


class KeptCheckpoints(ModelCheckpoint):
    """``kept/step-….ckpt``: the weights of the best few validations, to be averaged.

    Args:
        folder: the run's.
        monitor: what says which are the best.
        mode: whether low or high is good.
        count: how many are kept.

    >>> KeptCheckpoints(RunFolder(Path("run")), "val/bleu", "max", count=5).save_top_k
    5
    """

    def __init__(self, folder: RunFolder, monitor: str, mode: Mode, count: int) -> None:
        super().__init__(
            dirpath=folder.kept,
            filename="step-{step:06d}",
            auto_insert_metric_name=False,
            monitor=monitor,
            mode=mode,
            save_top_k=count,
            save_weights_only=True,
            enable_version_counter=False,
        )
        self._count = count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a checkpoint's; where more were kept, the best of them stay."""
        super().load_state_dict(state_dict)
        ordered = sorted(self.best_k_models, key=self.best_k_models.__getitem__, reverse=self.mode == "max")
        for path in ordered[self._count :]:
            del self.best_k_models[path]
            Path(path).unlink(missing_ok=True)
        if ordered:
            self.kth_best_model_path = ordered[: self._count][-1]
            self.kth_value = self.best_k_models[self.kth_best_model_path]


class MovedFolder(Callback):
    """Lets a run whose folder was moved or copied go on with its best score, which Lightning leaves aside there.

    >>> MovedFolder().state_dict()
    {}
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Name the checkpoints as they are now, where the best one lies beside the others."""
        states = checkpoint["callbacks"]
        for callback in trainer.checkpoint_callbacks:
            state = states.get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None and state is not None:
                states[callback.state_key] = _moved(state, Path(callback.dirpath))


def _moved(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    def here(path: str) -> str:
        return str(folder / Path(path).name) if path else ""

    if not Path(here(state["best_model_path"])).is_file():  # a run of its own, or one that was copied in part
        return state
    paths = {name: here(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    kept = {here(path): score for path, score in state["best_k_models"].items()}
    return state | paths | {"best_k_models": kept, "dirpath": str(folder)}


class RandomState(Callback):
    """Keeps each rank's random number generators in the checkpoint and sets them before the first step after it.

    >>> sorted(RandomState().state_dict())
    ['cuda', 'numpy', 'other_ranks', 'python', 'torch']
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The generators of Python, NumPy and torch, as numbers and tensors: the first rank's, and the others'."""
        own = self._own()
        if not _several_ranks():
            return own | {"other_ranks": []}
        ranks: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, own)
        return ranks[0] | {"other_ranks": ranks[1:]}

    @staticmethod
    def _own() -> dict[str, Any]:
        name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (whoever uses it is saved)
        return {
            "python": random.getstate(),
            "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember them until the first step: what happens before it draws numbers too."""
        others = state_dict.get("other_ranks", [])  # which checkpoints of before do not have
        rank = torch.distributed.get_rank() if _several_ranks() else 0
        self._restored = others[rank - 1] if 0 < rank <= len(others) else state_dict

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set them."""
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        random.setstate(state["python"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


def _several_ranks() -> bool:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1
