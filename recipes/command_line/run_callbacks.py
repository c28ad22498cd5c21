"""What watches a run beside the user's callbacks: its checkpoints, its plots, its tracking, and how it ends."""

from collections.abc import Sequence

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.weights_and_biases import model_logging, watching
from rnn_blocks.recipes.run.checkpoints import (
    KeptCheckpoints,
    LastCheckpoint,
    Mode,
    MovedFolder,
    RandomState,
    best_checkpoint,
)
from rnn_blocks.recipes.run.ending.callback import EndInGoodOrder
from rnn_blocks.recipes.run.ending.early import StopsEarly
from rnn_blocks.recipes.run.finite import StopOnNonFinite
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.run.host.precision import BegunPrecision
from rnn_blocks.recipes.run.host.watch import ThreadWatch
from rnn_blocks.recipes.run.plots import RunPlots
from rnn_blocks.recipes.run.ranks.same_training import SameTraining
from rnn_blocks.recipes.run.tracking import TrackedRun


def add_callbacks(
    trainer: pl.Trainer,
    folder: RunFolder,
    options: Namespace,
    *,
    recipe: str,
    monitors: dict[str, Mode],
    config: str,
    step: int,
    extra: Sequence[pl.Callback],
) -> None:
    """Put a run's callbacks around the user's.

    Args:
        trainer: with the user's callbacks.
        folder: the run's.
        options: of the command.
        recipe: its name.
        monitors: the metrics that may be monitored, and whether each is better low or high.
        config: the run's, as YAML.
        step: at which the training goes on; 0 where it starts.
        extra: the recipe's own.

    Raises:
        InputError: where one of the user's is the run's own already.
    """
    monitor, average = options["monitor"], options["average_checkpoints"]
    mode = monitors[monitor]
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    best = best_checkpoint(folder, monitor, mode)
    for one in callbacks:
        if isinstance(one, ModelCheckpoint) and one.dirpath is None:
            one.dirpath = best.dirpath
        if one.state_key == best.state_key:
            raise InputError(
                f"trainer.callbacks: a ModelCheckpoint by {monitor} is the run's own already, best.ckpt; "
                "--average_checkpoints N keeps the N best"
            )
    shared = "--average_checkpoints" if average else None
    chosen = {"trainer.precision": str(trainer.precision)}
    callbacks[:0] = [
        ThreadWatch(),
        SameTraining(folder, config, step=step, shared=shared, chosen=chosen),
        TrackedRun(folder, config),
        *watching(options),
        *extra,
    ]
    last = LastCheckpoint(folder, options["checkpoint_every_n_steps"])
    callbacks += [
        BegunPrecision(str(trainer.precision)),
        MovedFolder(),
        RandomState(),
        StopOnNonFinite(),
        StopsEarly(monitors),
        RunPlots(folder),
        best,
    ]
    if average:
        callbacks.append(KeptCheckpoints(folder, monitor, mode, average))
    callbacks.append(last)  # it holds what the others have just written
    callbacks += [*model_logging(options, folder, recipe, mode), EndInGoodOrder(last)]
