"""Early stopping by a metric that exists, which says why it stopped."""

import sys
from collections.abc import Iterable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping

from rnn_blocks.recipes import InputError


class StopsEarly(Callback):
    """Refuses a metric of validation that validation does not log, and says what ended a training early.

    Lightning notices such a name where it is first needed: after the first validation, or the first epoch. What the
    checks before the training have logged tells it at once. Names that do not begin with "val" may be those of metrics
    that the training logs, and are left to Lightning.

    Args:
        known: metrics that validation may log later, as where the first sentences are too short for BLEU.

    >>> StopsEarly(["val/bleu"]).state_dict()
    {}
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = set(known)

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the names.

        Raises:
            InputError: with the metrics that there are.
        """
        logged = {name for name in (*trainer.callback_metrics, *self._known) if name.startswith("val")}
        for one in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(one, "monitor", None)
            needed = isinstance(one, Checkpoint) or (isinstance(one, EarlyStopping) and one.strict)
            if needed and monitor is not None and monitor.startswith("val") and monitor not in logged:
                raise InputError(
                    f"trainer.callbacks: {type(one).__name__} monitors {monitor!r}, which validation does not log; "
                    f"it logs {', '.join(sorted(logged))}"
                )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say why, where it is not said yet."""
        if not (trainer.should_stop and trainer.is_global_zero):
            return
        for one in trainer.callbacks:  # type: ignore[attr-defined]
            reason = getattr(one, "stopping_reason_message", None)  # since Lightning 2.6
            if isinstance(one, EarlyStopping) and reason is not None and not one.verbose:
                sys.stderr.write(f"stopped early: {reason.removesuffix(' Signaling Trainer to stop.')}\n")
