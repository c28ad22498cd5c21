"""The model of the long-range tasks: a recurrent layer and a linear readout."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.long_range.cells import check_cell, hidden_size_for, make_layer
from rnn_blocks.recipes.long_range.tasks import Batch, make_task


class LongRangeModel(pl.LightningModule):
    """A recurrent layer and a linear readout, on a task of ``rnn_blocks.recipes.long_range.tasks``.

    Trained by Adam with a learning rate that does not change.

    Logged: ``train/loss``; ``val/loss`` (``test/loss``), that as a multiple of a guess's, ``val/relative_loss``, and,
    for the copy memory, ``val/accuracy``, the share of recalled symbols that are right.

    Args:
        task: ``"adding"`` or ``"copy"``.
        length: the task's ``T``.
        cell: a name in the table of cells.
        parameters: how many, about: the hidden size follows.
        hidden_size: in place of what follows from ``parameters``.
        lr: the learning rate; by default the cell's own in the table.

    Raises:
        InputError: for another task or cell, or a number out of its range.

    >>> model = LongRangeModel("copy", length=20, cell="gru", parameters=2000)
    >>> inputs, targets = model.task.batch(3, split="train", seed=1, index=0)
    >>> model(inputs).shape, model.hidden_size
    (torch.Size([40, 3, 9]), 20)
    """

    def __init__(
        self,
        task: str,
        length: int,
        cell: str,
        *,
        parameters: int = 70_000,
        hidden_size: int | None = None,
        lr: float | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if hidden_size is not None and hidden_size < 1:
            raise InputError(f"hidden_size {hidden_size}: give 1 or more")
        if lr is not None and not lr > 0:
            raise InputError(f"lr {lr}: give more than 0")
        self.task = make_task(task, length)
        self.lr = check_cell(cell).lr if lr is None else lr
        sizes = self.task.input_size, self.task.output_size
        self.hidden_size = hidden_size or hidden_size_for(cell, *sizes, length, parameters)
        self.layer = make_layer(cell, sizes[0], length, self.hidden_size)
        self.output = nn.Linear(self.layer.output_size, sizes[1])

    def forward(self, inputs: Tensor) -> Tensor:
        """``(time, batch, input_size)`` to predictions at every step, ``(time, batch, output_size)``, or the last."""
        hidden, _ = self.layer(inputs)
        predictions: Tensor = self.output(hidden if self.task.every_step else hidden[-1])
        return predictions

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        inputs, targets = batch
        loss = self.task.loss(self(inputs), targets)
        self.log("train/loss", loss, batch_size=inputs.shape[1])
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the pass's means."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the pass's means."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        inputs, targets = batch
        predictions = self(inputs)
        loss = self.task.loss(predictions, targets)
        metrics = {f"{split}/loss": loss, f"{split}/relative_loss": loss / self.task.guess}
        accuracy = self.task.accuracy(predictions, targets)
        if accuracy is not None:
            metrics[f"{split}/accuracy"] = accuracy
        self.log_dict(metrics, batch_size=inputs.shape[1], sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)
