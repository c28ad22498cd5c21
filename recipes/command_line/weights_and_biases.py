"""What is said of Weights & Biases on the command line of a training."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.checkpoints import Mode
from rnn_blocks.recipes.run.folder import BEST, LAST, RunFolder
from rnn_blocks.recipes.run.metrics import metrics_until
from rnn_blocks.recipes.run.weights_and_biases.mode import PROJECT
from rnn_blocks.recipes.run.weights_and_biases.models import LoggedModels
from rnn_blocks.recipes.run.weights_and_biases.watch import Watched, WatchHistograms


def add_wandb_options(add_argument: Callable[..., Any]) -> None:
    """Add the options to a group of a parser's.

    Args:
        add_argument: the group's.
    """
    add_argument(
        "--project",
        type=str | None,
        default=None,
        help=f"Project in Weights & Biases; by default $WANDB_PROJECT, or {PROJECT}",
    )
    add_argument(
        "--log_model",
        type=bool,
        default=False,
        help="Keep the best and the last checkpoint in Weights & Biases, as the artifact model-RUN_ID",
    )
    add_argument(
        "--watch",
        type=Watched | None,
        default=None,
        help="Histograms in Weights & Biases of gradients, parameters, or all",
    )
    add_argument("--watch_every_n_steps", type=int, default=100, help="Optimizer steps from a watched one to the next")


def check_wandb_options(options: Namespace) -> None:
    """Look at them before any long work.

    Raises:
        InputError: where one is out of its range, or needs Weights & Biases and it is not chosen.
    """
    if options["watch_every_n_steps"] < 1:
        raise InputError(f"--watch_every_n_steps must be at least 1, got {options['watch_every_n_steps']}")
    if options["logger"] == "wandb":
        return
    for name in ("log_model", "watch"):
        if options[name]:
            raise InputError(f"--{name} is of Weights & Biases: give --logger wandb with it, not {options['logger']}")


def watching(options: Namespace) -> list[pl.Callback]:
    """What makes the histograms, where they are asked for."""
    return [WatchHistograms(options["watch"], options["watch_every_n_steps"])] if options["watch"] else []


def model_logging(options: Namespace, folder: RunFolder, recipe: str, mode: Mode) -> list[pl.Callback]:
    """What logs checkpoints, where that is asked for.

    Args:
        options: of the command.
        folder: the run's.
        recipe: the recipe's name.
        mode: whether the best checkpoint has the lowest or the highest of what is monitored.
    """
    if not options["log_model"]:
        return []
    told = {"monitor": options["monitor"], "mode": mode, "recipe": recipe}
    metrics = partial(metrics_until, folder.metrics)
    return [LoggedModels(folder.checkpoint(BEST), folder.checkpoint(LAST), told, metrics)]
