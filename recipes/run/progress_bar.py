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

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The last logged values, under short names."""
        known = trainer.callback_metrics
        return {short: form.format(known[name].item()) for name, (short, form) in SHOWN.items() if name in known}
