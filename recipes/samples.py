"""Text that the model writes at each validation."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from rnn_blocks.modules import LanguageModel
from rnn_blocks.recipes.run_folder import RunFolder
from rnn_blocks.recipes.text.data import TextDataModule
from rnn_blocks.recipes.tracking import wandb_logger


class TextSamples(Callback):
    """Continues a few prompts at each validation: to ``samples.txt`` and, as a table, to Weights & Biases.

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
        self._folder = folder
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._temperature = temperature

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write them."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(data, TextDataModule):
            return
        assert isinstance(pl_module, LanguageModel)
        step = trainer.global_step
        rows: list[list[str]] = []
        for prompt in self._prompts:
            ids = data.tokenizer.encode(prompt).ids
            if ids:
                tokens = pl_module.generate(ids, self._max_tokens, temperature=self._temperature, seed=0)[0].tolist()
                rows.append([str(step), prompt, data.tokenizer.decode(tokens[len(ids) :])])
        with self._folder.samples.open("a", encoding="utf-8") as file:
            for _, prompt, text in rows:
                file.write(f"=== step {step} ===\n{prompt}|{text}\n\n")
        logger = wandb_logger(trainer)
        if logger is not None and rows:
            logger.log_text("val/samples", columns=["step", "prompt", "sample"], data=rows)
