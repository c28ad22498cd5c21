"""A progress bar that shows what matters in a recipe."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar

SHOWN = {
    "train/loss": ("loss", "{:.3f}"),
    "train/perplexity": ("ppl", "{:.4g}"),
    "val/perplexity": ("val_ppl", "{:.4g}"),
    "val/relative_loss": ("val_loss/guess", "{:.3g}"),
    "val/bleu": ("val_bleu", "{:.2f}"),
    "val/chrf": ("val_chrf", "{:.2f}"),
    "throughput/tokens_per_second": ("tok/s", "{:,.0f}"),
}


class RecipeProgressBar(TQDMProgressBar):
    """Lightning's bar with loss, perplexities and tokens per second.

    >>> RecipeProgressBar(refresh_rate=5).refresh_rate
    5
    """

    @property
    def total_train_batches(self) -> int | float:
        """Batches of this epoch, those before a training that goes on within it too."""
        remaining, batches = super().total_train_batches, self.trainer.num_training_batches
        if remaining == batches:
            return batches
        return min(batches, self._batches_before() + remaining * self.trainer.accumulate_grad_batches)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the bar: where a training goes on within an epoch, Lightning starts none."""
        super().on_train_start(trainer, pl_module)
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the epoch's bar, where the training goes on."""
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.initial = self.train_progress_bar.n = self._batches_before()
        self.train_progress_bar.refresh()

    def _batches_before(self) -> int:
        """Batches of the epoch that the checkpoint knew."""
        loop = self.trainer.fit_loop.epoch_loop
        read = loop.batch_progress.current.ready if loop.restarting else 0
        return read if read < self.trainer.num_training_batches else 0

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The last logged values, under short names."""
        known = trainer.callback_metrics
        return {short: form.format(known[name].item()) for name, (short, form) in SHOWN.items() if name in known}
