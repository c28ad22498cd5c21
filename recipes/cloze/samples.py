"""What the model fills in at each validation."""

from typing import Any

import lightning.pytorch as pl

from rnn_blocks.modules import ClozeModel
from rnn_blocks.recipes.cloze.data import ClozeDataModule
from rnn_blocks.recipes.cloze.fill import Filler, table
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.run.samples import ValidationSamples


class ClozeSamples(ValidationSamples):
    """Fills in the blanks of a few texts at each validation.

    Args:
        folder: the run's.
        texts: with blanks, ``___``.
        top_k: candidates of each blank.

    >>> from pathlib import Path
    >>> ClozeSamples(RunFolder(Path("run")), ["the ___"], top_k=3).state_key
    'ClozeSamples'
    """

    def __init__(self, folder: RunFolder, texts: list[str], *, top_k: int) -> None:
        super().__init__(folder, "val/fills", ["text", "candidates"])
        self._texts = texts
        self._top_k = top_k

    def rows(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[list[Any]]:
        """Each text and the candidates of its blanks."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ClozeDataModule):
            return []
        assert isinstance(pl_module, ClozeModel)
        filler = Filler(pl_module, data.tokenizer, data.unit)
        return [[text, table(filler(text, top_k=self._top_k))] for text in self._texts]
