"""What a trainer knows that gradients are read by."""

from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

from rnn_blocks.callbacks.measuring.optimizers import behind_handle, parameters_of
from rnn_blocks.callbacks.trainer.namespaces import LightningModule, Trainer


def gradient_scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    """The trainer's gradient scaler under ``precision="16-mixed"``, else None."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if isinstance(scaler, torch.amp.GradScaler) and scaler.is_enabled() else None


_last_backward: "WeakKeyDictionary[Trainer, int]" = WeakKeyDictionary()  # the batch that it was of


def note_backward(trainer: Trainer) -> None:
    """A backward pass begins; for `makes_step`."""
    _last_backward[trainer] = _num_batches(trainer)


def makes_step(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether the optimizer makes a step after the hook before it.

    Under ``precision="16-mixed"`` it makes none where `training_step` leaves out the batch at whose end it would, by
    returning None; the gradients of the batches before, which are there, stay scaled.
    """
    leaves_out = pl_module.automatic_optimization and gradient_scaler(trainer) is not None
    return not leaves_out or _last_backward.get(trainer) == _num_batches(trainer)


def _num_batches(trainer: Trainer) -> int:
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)


def trained_parameters(trainer: Trainer) -> set[nn.Parameter]:
    """Those that an optimizer of the trainer holds."""
    return {parameter for optimizer in trainer.optimizers for parameter in parameters_of(optimizer)}


def index_of(trainer: Trainer, optimizer: Optimizer) -> int:
    """Which of the trainer's optimizers it is; a module may have given Lightning's handle of it.

    Raises:
        ValueError: it is none of them.
    """
    held = behind_handle(optimizer)
    for index, own in enumerate(trainer.optimizers):
        if behind_handle(own) is held:
            return index
    raise ValueError(f"{type(optimizer).__name__} is none of the trainer's optimizers")


def is_fitting(trainer: Trainer) -> bool:
    """Whether it is in `fit`, be it in a validation there, and not in `validate`, `test` or `predict`."""
    return trainer.state.fn == "fit"
