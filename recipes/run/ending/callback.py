"""Trainings that end in good order where a signal asks for it: the step is finished and ``last.ckpt`` written."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from rnn_blocks.callbacks.trainer import is_logging_step
from rnn_blocks.recipes.run.checkpoints import LastCheckpoint, gathers_gradients
from rnn_blocks.recipes.run.ending.signals import Terminated, ending_signals


class OwnSignals(Callback):
    """Leaves the answer to signals as it was: Lightning's to SIGTERM ends a command with exit code 0.

    >>> OwnSignals().state_dict()
    {}
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remember the answers, before Lightning puts its own in their place."""
        self._handlers = {number: signal.getsignal(number) for number in ending_signals()}

    def put_back(self) -> None:
        """Give them again."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put them back."""
        self.put_back()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put them back."""
        self.put_back()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put them back, outside a training."""
        if trainer.state.fn != TrainerFn.FITTING:
            self.put_back()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put them back."""
        self.put_back()


class EndInGoodOrder(OwnSignals):
    """Ends a training after the step in which a signal asks for it, with ``last.ckpt`` as after any other step.

    A validation is broken off, and made again as a whole by whoever goes on from the checkpoint. It is finished where
    several ranks have to agree, and where gradients of a step are gathered, which the end then waits for. A second
    Ctrl-C ends at once. Raises what the signal stands for: ``KeyboardInterrupt``, or :class:`Terminated`.

    Args:
        last: what writes ``last.ckpt``.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        super().__init__()
        self._last = last
        self._asked = 0  # the signal's number
        self._ends = False  # all ranks know, and the state is written
        self._requeue_signal: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on signals are noted."""
        self.put_back()
        numbers = {signal.SIGINT, *ending_signals()}
        connector: Any = trainer._accelerator_connector  # a strategy of one device does not know where it runs
        environment = connector.cluster_environment
        self._requeue_signal = signal.SIGUSR1 if signal.SIGUSR1 in numbers else None
        if isinstance(environment, SLURMEnvironment):
            self._requeue_signal = environment.requeue_signal if environment.auto_requeue else None
        numbers |= {signal.Signals(self._requeue_signal)} if self._requeue_signal else set()
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = self._asked or number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stderr.write("\nInterrupted: ends after this step; Ctrl-C again ends at once\n")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End: the metrics of the step before are logged."""
        self._raise_if_ending()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the state, where a step was made: gradients that are still gathered would be lost."""
        if not gathers_gradients(trainer) and self._agreed(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not begin it."""
        super().on_validation_start(trainer, pl_module)
        if not _within_training(trainer):
            return
        total: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        total.ready = total.started = total.processed = total.completed  # as if none had been broken off before
        if self._ends or self._may_save(trainer):
            self._break_off_validation(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Break it off."""
        if _within_training(trainer) and self._may_save(trainer):
            self._break_off_validation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the state with the validation in it."""
        if _within_training(trainer) and self._may_save(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End: the last state is written."""
        if self._asked_alone(trainer):
            self._ends = True
        self._raise_if_ending()

    def _asked_alone(self, trainer: pl.Trainer) -> bool:
        """Whether this rank, the only one, is to end."""
        return bool(self._asked) and trainer.world_size == 1

    def _may_save(self, trainer: pl.Trainer) -> bool:
        """Whether it can do so in a validation, with nothing lost."""
        return self._asked_alone(trainer) and not gathers_gradients(trainer)

    def _agreed(self, trainer: pl.Trainer) -> bool:
        """Whether any rank is to end; on logging steps alone, so as not to wait for each other more often."""
        if trainer.world_size == 1:
            return bool(self._asked)
        if not is_logging_step(trainer):
            return False
        asked = torch.tensor(float(self._asked), device=trainer.strategy.root_device)
        self._asked = int(trainer.strategy.reduce(asked, reduce_op="max"))
        return bool(self._asked)

    def _save(self, trainer: pl.Trainer) -> None:
        self._last.write(trainer)
        self._ends = True

    def _break_off_validation(self, trainer: pl.Trainer) -> None:
        # As Lightning leaves it where the first batch's step fails: it is then made again, from its beginning.
        progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        progress.current.reset()
        progress.total.ready = progress.total.started = progress.total.completed + 1
        progress.total.processed = progress.total.completed
        self._save(trainer)
        self._raise_if_ending()

    def _raise_if_ending(self) -> None:
        if self._ends:
            if self._asked == signal.SIGINT:
                raise KeyboardInterrupt
            raise Terminated(self._asked, requeue=self._asked == self._requeue_signal)


def _within_training(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
