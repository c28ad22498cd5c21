"""Weights & Biases' logger as the recipes want it."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from rnn_blocks.recipes.run.weights_and_biases.mode import first_line, say_offline


class WandbRun(WandbLogger):
    """Lightning's logger of Weights & Biases, with one row a step, that is offline where no run can be opened online.

    Args:
        mode: of the run.
        init: what ``wandb.init`` is given besides.

    >>> WandbRun("disabled", project="p").name
    'p'
    """

    def __init__(self, mode: str, **init: Any) -> None:
        super().__init__(mode=mode, **init)
        self._row: int | None = None  # the step whose row is being made

    @property
    def experiment(self) -> Any:
        """The run; it is opened the first time."""
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:  # the server answered, but will not have this run
            if self._wandb_init["mode"] == "offline":
                raise
            say_offline(first_line(error))
            self._wandb_init["mode"] = "offline"
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of ``step``, or without one to the row that is being made."""
        if step is not None and step != self._row:
            self.end_row()
            self._row = step
        told = dict(metrics) if step is None else {**metrics, "trainer/global_step": step}
        self.experiment.log(told, commit=self._row is None)

    @rank_zero_only
    def end_row(self, before: int | None = None) -> None:
        """End the row that is being made; where a step is given, if it is of an earlier one."""
        if self._row is not None and (before is None or self._row < before):
            self._row = None
            self.experiment.log({}, commit=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the last row."""
        self.end_row()
        super().finalize(status)
