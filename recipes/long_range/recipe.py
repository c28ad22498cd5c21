"""The long-range recipe: one training on a task of memory, and many compared."""

import sys
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.cli import RecipeCLI
from rnn_blocks.recipes.long_range.comparison.compare import compare, list_cells
from rnn_blocks.recipes.long_range.comparison.training import StopWhenSolved
from rnn_blocks.recipes.long_range.data import LongRangeData
from rnn_blocks.recipes.long_range.model import LongRangeModel


class LongRangeCLI(RecipeCLI):
    """``rnn-blocks long-range fit|validate|test``."""

    recipe = "long-range"

    def __init__(self, args: list[str]) -> None:
        super().__init__(LongRangeModel, LongRangeData, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the model and the data share, under short names."""
        super().add_arguments_to_parser(parser)
        group = parser.add_argument_group("task", "What is to be remembered, and by which cell")
        group.add_argument("--task", type=str, default="adding", help="adding or copy")
        group.add_argument("--length", type=int, default=200, help="The task's T: steps to remember over")
        group.add_argument("--cell", type=str, default="lstm", help="A name that 'rnn-blocks long-range cells' lists")
        group.add_argument("--parameters", type=int, default=70_000, help="Of the model, about; hidden sizes follow")
        group.add_argument(
            "--stop_below", type=float | None, default=None, help="End the training once val/loss is below this"
        )
        for name in ("task", "length"):
            parser.link_arguments(name, f"model.{name}")
            parser.link_arguments(name, f"data.{name}")
        for name in ("cell", "parameters"):
            parser.link_arguments(name, f"model.{name}")

    def extra_callbacks(self, options: Namespace) -> list[pl.Callback]:
        """What ends the training early, where that is asked for."""
        threshold = options["stop_below"]
        if threshold is None:
            return []
        if not threshold > 0:
            raise InputError(f"--stop_below {threshold}: give more than 0")
        return [StopWhenSolved(threshold)]

    def after_fit(self) -> None:
        """Say what came of it, and where things lie."""
        if self.trainer.is_global_zero and "val/loss" in self.trainer.callback_metrics:
            self._say("val")
        super().after_fit()

    def _say(self, split: str) -> None:
        metrics: Any = self.trainer.callback_metrics
        if not self.trainer.is_global_zero:
            return
        loss, task = float(metrics[f"{split}/loss"]), self.model.task
        recalled = f", {float(metrics[f'{split}/accuracy']):.1%} of the symbols recalled" if task.every_step else ""
        told = "solved" if loss < task.solved_below else "not solved"
        sys.stdout.write(
            f"{split}: loss {loss:.3g}, {loss / task.guess:.3g} of a guess's {task.guess:.3g}: {told}{recalled}\n"
        )


CLI = LongRangeCLI
FUNCTIONS: dict[str, Callable[..., None]] = {"compare": compare, "cells": list_cells}
