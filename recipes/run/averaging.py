"""The mean of the weights of several checkpoints, which often translates better than each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.checkpoints import AtomicCheckpointIO, KeptCheckpoints, read_checkpoint
from rnn_blocks.recipes.run.folder import AVERAGED, BEST, RunFolder
from rnn_blocks.recipes.run.load import DATA_STATES, TOKENIZERS

# What goes on with a training; a mean of weights is none.
TRAINING_STATE = ("callbacks", "optimizer_states", "lr_schedulers", "loops", "MixedPrecision", "loss_since_log")


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Any]:
    """A checkpoint of the mean weights; all else is the last one's, but for what a training would go on with.

    Floating-point tensors are averaged in float64 and keep their dtype; tensors that share their memory, as tied
    weights do, share it in the mean; integers and booleans are the last one's.

    Junczys-Dowmunt et al. (2016), "The AMU-UEDIN submission to the WMT16 news translation task", section 3.

    Args:
        paths: checkpoints of one model, oldest first.

    Raises:
        InputError: for no path, a file that is no checkpoint, or checkpoints of different models or tokenizers, with
            the first difference.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, value in (("a", 1.0), ("b", 2.0)):
    ...     torch.save({"state_dict": {"weight": torch.full((2,), value)}, "loops": {}}, folder / f"{name}.ckpt")
    >>> average_checkpoints([folder / "a.ckpt", folder / "b.ckpt"])
    {'state_dict': {'weight': tensor([1.5000, 1.5000])}}
    """
    if not paths:
        raise InputError("there is no checkpoint to average")
    sums: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    tokenizers: list[str] = []
    for path in paths:  # one at a time: memory does not grow with their number
        checkpoint = read_checkpoint(path)
        weights = checkpoint.get("state_dict") or {}
        if not weights:
            raise InputError(f"{path}: holds no weights ('state_dict')")
        if sums:
            _check_alike(sums, weights, paths[0], path)
            if _tokenizers(checkpoint) != tokenizers:
                raise InputError(f"{path}: its tokenizer is not that of {paths[0]}: one row stands for two tokens")
        tokenizers = _tokenizers(checkpoint)
        for name, tensor in weights.items():
            if _is_number(tensor):
                tensor = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
                sums[name] = sums[name] + tensor if name in sums else tensor
            else:
                sums[name] = tensor
    means: dict[tuple[Any, ...], Tensor] = {}  # by place in memory: tied weights stay tied
    averaged: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        mean = (sums[name] / len(paths)).to(tensor.dtype) if _is_number(tensor) else tensor
        averaged[name] = means.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), mean)
    kept = {name: value for name, value in checkpoint.items() if name not in TRAINING_STATE}
    return kept | {"state_dict": averaged}


def _tokenizers(checkpoint: dict[str, Any]) -> list[str]:
    states = [checkpoint.get(name, {}) for name in DATA_STATES.values()]
    return [state[name] for state in states for name in TOKENIZERS if name in state]


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _check_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor], first: Path, path: Path) -> None:
    for name, tensor in ours.items():
        if name not in theirs:
            raise InputError(f"{path}: not a checkpoint of the model of {first}: it lacks {name!r}")
        if theirs[name].shape != tensor.shape:
            raise InputError(
                f"{path}: not a checkpoint of the model of {first}: {name!r} is {tuple(theirs[name].shape)} and there "
                f"{tuple(tensor.shape)}"
            )
    for name in theirs:
        if name not in ours:
            raise InputError(f"{path}: not a checkpoint of the model of {first}, which has no {name!r}")


def kept_checkpoints(folder: RunFolder) -> list[Path]:
    """The checkpoints that a run has kept to be averaged, oldest first.

    Raises:
        InputError: where it has none.

    >>> kept_checkpoints(RunFolder(Path("no-such-run")))  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: no-such-run: no checkpoints to average; a run keeps the N best for it where it
    is trained with --average_checkpoints N
    """
    paths = sorted(folder.kept.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if not paths:
        raise InputError(
            f"{folder.path}: no checkpoints to average; a run keeps the N best for it where it is trained with "
            "--average_checkpoints N"
        )
    return paths


def validate_average(
    trainer: pl.Trainer, model: pl.LightningModule, datamodule: pl.LightningDataModule, folder: RunFolder
) -> str | None:
    """Write the mean of the checkpoints that a run has kept, and validate it; to be called by all ranks.

    Args:
        trainer: that has ended the training.
        model: that it trained.
        datamodule: the data of both.
        folder: the run's.

    Returns:
        Which is better, it or the best of them, in a sentence; None where nothing was measured.
    """
    kept = next(c for c in trainer.checkpoint_callbacks if isinstance(c, KeptCheckpoints))
    best, monitor = kept.best_model_score, kept.monitor
    if best is None or monitor is None:
        return None
    path = Path(trainer.strategy.broadcast(str(folder.checkpoint(AVERAGED))))  # which only the first rank knows
    if trainer.is_global_zero:
        AtomicCheckpointIO().save_checkpoint(average_checkpoints(sorted(map(Path, kept.best_k_models))), path)
    trainer.strategy.barrier()
    trainer.loggers = []  # what is measured now is of no step of the training
    trainer.validate(model, datamodule, ckpt_path=str(path), verbose=False, weights_only=True)
    score = trainer.callback_metrics[monitor]
    better = AVERAGED if (score > best if kept.mode == "max" else score < best) else BEST
    told = f"{monitor} of the averaged weights {score:.4g}, of the best checkpoint {best:.4g}"
    return f"{told}: take --ckpt_path {better}"
