"""Stop before a run that has diverged costs its checkpoint."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from rnn_blocks.callbacks.trainer import is_logging_step

ADVICE = (
    "The checkpoints written before are whole. Start anew with a lower learning rate, or clip: AdaptiveGradientClipping"
)


class StopOnNonFinite(Callback):
    """Stops when the loss is NaN or infinite and the weights are too, and never lets such weights into a checkpoint.

    A non-finite loss whose update a callback has skipped leaves the weights whole, and the training goes on, but not
    after so many of them in a row. On an accelerator the loss is looked at on logging steps alone, so as not to wait
    for the device.

    Args:
        patience: this many non-finite losses in a row stop the training whatever the weights are.

    Raises:
        FloatingPointError: with the step and the first parameter that is not finite.

    >>> StopOnNonFinite.first_non_finite(nn.Linear(2, 1)) is None
    True
    """

    def __init__(self, patience: int = 25) -> None:
        self._patience = patience
        self._in_a_row = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, torch.Tensor):
            return
        look = loss.device.type == "cpu" or is_logging_step(trainer)
        if not look:
            return
        self._in_a_row = 0 if bool(loss.isfinite()) else self._in_a_row + 1
        if self._in_a_row:
            self._check(trainer, pl_module, f"the loss is {loss.item()}")
        if self._in_a_row == self._patience:
            raise FloatingPointError(
                f"step {trainer.global_step}: the loss was not finite {self._patience} times in a row. {ADVICE}"
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look at the weights."""
        self._check(trainer, pl_module, "no checkpoint is written")

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, what: str) -> None:
        name = self.first_non_finite(pl_module)
        if name is not None:
            raise FloatingPointError(
                f"step {trainer.global_step}: {what}, and {name!r} holds values that are not finite. {ADVICE}"
            )

    @staticmethod
    def first_non_finite(module: nn.Module) -> str | None:
        """The name of the first parameter that is not finite."""
        named = list(module.named_parameters())
        if not named:
            return None
        largest = torch.stack([parameter.detach().abs().max().float() for _, parameter in named])
        finite = largest.isfinite().tolist()
        return next((name for (name, _), fine in zip(named, finite, strict=True) if not fine), None)
