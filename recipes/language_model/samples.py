"""What a language model writes at each validation."""

from typing import Any

import lightning.pytorch as pl

from rnn_blocks.modules import LanguageModel
from rnn_blocks.recipes.language_model.data import TextDataModule
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.run.samples import ValidationSamples


class TextSamples(ValidationSamples):
    """Continues a few prompts at each validation.

    Args:
        folder: the run's.
        prompts: what to continue.
        max_tokens: how many tokens to add to each.
        temperature: of the draw; its seed is fixed, so that samples differ by the model alone.

    >>> from pathlib import Path
    >>> TextSamples(RunFolder(Path("run")), ["def "], max_tokens=20, temperature=0.8).state_key
    'TextSamples'
    """

    def __init__(self, folder: RunFolder, prompts: list[str], *, max_tokens: int, temperature: float) -> None:
        super().__init__(folder, "val/samples", ["prompt", "sample"])
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._temperature = temperature

    def rows(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[list[Any]]:
        """Each prompt and what the model goes on with."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, TextDataModule):
            return []
        assert isinstance(pl_module, LanguageModel)
        rows: list[list[Any]] = []
        for prompt in self._prompts:
            ids = data.tokenizer.encode(prompt).ids
            if ids:
                tokens = pl_module.generate(ids, self._max_tokens, temperature=self._temperature, seed=0)[0].tolist()
                rows.append([prompt, data.tokenizer.decode(tokens[len(ids) :])])
        return rows

    def told(self, row: list[Any]) -> str:
        """Prompt and sample with a bar between them."""
        return "|".join(row)
