"""How much of a text is unknown to its vocabulary."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from rnn_blocks.recipes.data.corpora.corpus import Split
from rnn_blocks.recipes.data.corpus_module import TextCorpusModule


class UnknownShare(Callback):
    """Logs ``val/unknown`` and ``test/unknown``, the share of a split's tokens that are ``<unk>``.

    Where a tokenizer knows every text there is nothing to log.

    >>> UnknownShare().state_key
    'UnknownShare'
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log it."""
        _log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log it."""
        _log(trainer, pl_module, "test")


def _log(trainer: pl.Trainer, pl_module: pl.LightningModule, split: Split) -> None:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    share = data.unknown_share(split) if isinstance(data, TextCorpusModule) else None
    if share is not None:
        pl_module.log(f"{split}/unknown", share, sync_dist=True)


def unknown_told(data: TextCorpusModule, split: Split) -> str:
    """What is said beside a split's perplexity: a line, or nothing where no token is ``<unk>``."""
    share = data.unknown_share(split)
    return f"{split}: {100 * share:.2f} % of the tokens are <unk>, whichever words they were\n" if share else ""
