"""How many threads a training has: said at its start, and changed where its steps are quicker with others."""

import os
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm  # type: ignore[import-untyped]

from rnn_blocks.recipes.run.host.threads import COUNT
from rnn_blocks.recipes.run.host.trials import Trials


class ThreadWatch(Callback):
    """Makes the steps of a training on a CPU with as many threads as are quickest there, and says so.

    It begins with all that the process may use, and tries fewer on the first steps and from time to time: cores that
    other programs keep busy make every thread wait. ``OMP_NUM_THREADS`` in the environment, several ranks and
    ``Trainer(deterministic=True)`` mean a count that stays.

    >>> ThreadWatch().state_key
    'ThreadWatch'
    """

    def __init__(self) -> None:
        self._trials: Trials | None = None
        self._began: float | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how many threads there are, and whether that can change."""
        if pl_module.device.type != "cpu":
            return
        most = torch.get_num_threads()
        if COUNT in os.environ:
            why = f"as {COUNT} says"
        elif most == 1:
            why = "all that this process may use"
        elif trainer.world_size > 1 or torch.are_deterministic_algorithms_enabled():
            why = "for the whole training"
        else:
            why = f"or fewer where steps are quicker with fewer; {COUNT}=N means N"
            self._trials = Trials(most)
        if trainer.is_global_zero:
            sys.stderr.write(f"CPU threads: {most}, {why}\n")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Note when."""
        if self._trials is not None:
            self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Choose for the next step."""
        if self._trials is None or self._began is None:
            return
        now, before = time.perf_counter(), self._trials.chosen
        self._trials.step_took(now - self._began, now)
        torch.set_num_threads(self._trials.count)
        if self._trials.chosen != before:
            tqdm.write(self._told(trainer.global_step), file=sys.stderr)

    def _told(self, step: int) -> str:
        assert self._trials is not None
        new = self._trials.chosen
        times = ", ".join(f"{1000 * seconds:.0f} ms with {count}" for count, seconds in self._trials.seconds.items())
        return f"CPU threads: {new} from step {step} on (a step takes {times})"

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave off in the middle of a trial, with the count that was chosen."""
        self._leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The same."""
        self._leave()

    def _leave(self) -> None:
        if self._trials is not None:
            torch.set_num_threads(self._trials.chosen)
        self._trials = None
