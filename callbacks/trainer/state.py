"""What a trainer knows that gradients are read by."""

import torch

from rnn_blocks.callbacks.trainer.namespaces import Trainer


def gradient_scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    """The trainer's gradient scaler under ``precision="16-mixed"``, else None."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if isinstance(scaler, torch.amp.GradScaler) and scaler.is_enabled() else None


def is_fitting(trainer: Trainer) -> bool:
    """Whether it is in `fit`, be it in a validation there, and not in `validate`, `test` or `predict`."""
    return trainer.state.fn == "fit"
