"""What the model writes at each validation."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from rnn_blocks.callbacks.trainer import logged_step
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.run.tracking import wandb_logger


class ValidationSamples(Callback):
    """At each validation of a training, rows of text: to ``samples.txt`` and, as a table, to Weights & Biases.

    A recipe says in :meth:`rows` and :meth:`told` what they are.

    Args:
        folder: the run's.
        table: the table's name in Weights & Biases.
        columns: of the table, behind the step.

    >>> from pathlib import Path
    >>> ValidationSamples(RunFolder(Path("run")), "val/samples", ["prompt", "sample"]).state_key
    'ValidationSamples'
    """

    def __init__(self, folder: RunFolder, table: str, columns: list[str]) -> None:
        self._folder = folder
        self._table = table
        self._columns = columns

    def rows(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[list[Any]]:
        """The rows of this validation."""
        return []

    def told(self, row: list[Any]) -> str:
        """A row in ``samples.txt``."""
        return "\n".join(map(str, row))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write them."""
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != TrainerFn.FITTING:
            return
        step = trainer.global_step
        rows = self.rows(trainer, pl_module)
        with self._folder.samples.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(f"=== step {step} ===\n{self.told(row)}\n\n")
        logger = wandb_logger(trainer)
        if logger is not None and rows:
            columns, data = ["step", *self._columns], [[str(step), *row] for row in rows]
            logger.log_text(self._table, columns=columns, data=data, step=logged_step(trainer))
