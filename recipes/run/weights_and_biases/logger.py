"""Weights & Biases' logger as the recipes want it."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from rnn_blocks.recipes.run.weights_and_biases.mode import first_line, say_offline
from rnn_blocks.recipes.run.weights_and_biases.summaries import BestValues

STEP = "trainer/global_step"


class WandbRun(WandbLogger):
    """Lightning's logger of Weights & Biases, with one row a step, that is offline where no run can be opened online.

    Args:
        mode: of the run.
        best: what the run's table shows the best of, with what was before where the run is resumed.
        init: what ``wandb.init`` is given besides.

    >>> WandbRun("disabled", project="p").name
    'p'
    """

    def __init__(self, mode: str, best: BestValues | None = None, **init: Any) -> None:
        super().__init__(mode=mode, **init)
        self._best = best or BestValues({})
        self._row: int | None = None  # the step whose row is being made

    @property
    def mode(self) -> str:
        """``"online"``, ``"offline"``, ``"shared"`` or ``"disabled"``."""
        return str(self._wandb_init["mode"])

    @property
    def experiment(self) -> Any:
        """The run; it is opened the first time."""
        opens = self._experiment is None
        run = self._opened()
        if opens and getattr(rank_zero_only, "rank", 0) == 0:
            for name, best in self._best.modes.items():
                run.define_metric(name, step_metric=STEP, step_sync=True, summary=best)
        return run

    def _opened(self) -> Any:
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
        self._best.add(metrics)
        told = dict(metrics) if step is None else {**metrics, STEP: step}
        self.experiment.log(told, commit=self._row is None)

    @rank_zero_only
    def end_row(self, before: int | None = None) -> None:
        """End the row that is being made; where a step is given, if it is of an earlier one."""
        if self._row is not None and (before is None or self._row < before):
            self._row = None
            self.experiment.log({}, commit=True)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the last row, and put the best of the whole run into its summary."""
        self.end_row()
        if (best := self._best.summary()) and self._experiment is not None:
            self.experiment.summary.update(best)
        super().finalize(status)
