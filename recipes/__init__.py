"""Trainings that run as they are, from the command line: ``rnn-blocks RECIPE COMMAND``, and their parts.

Each recipe has a room: ``language_model``, ``translation``, ``cloze``, ``long_range``. They share ``data`` (text of any
source, tokenized once), ``run`` (the life of a run: its folder, checkpoints, tracking, plots) and ``command_line``;
``tools`` serve them all. What is useful in a program of your own is imported from here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnn_blocks.recipes.cloze.data import ClozeDataModule as ClozeDataModule
    from rnn_blocks.recipes.cloze.fill import Filler as Filler
    from rnn_blocks.recipes.language_model.data import TextDataModule as TextDataModule
    from rnn_blocks.recipes.language_model.recipe import load_language_model as load_language_model
    from rnn_blocks.recipes.long_range.data import LongRangeData as LongRangeData
    from rnn_blocks.recipes.long_range.model import LongRangeModel as LongRangeModel
    from rnn_blocks.recipes.run.averaging import average_checkpoints as average_checkpoints
    from rnn_blocks.recipes.run.folder import RunFolder as RunFolder
    from rnn_blocks.recipes.run.folder import runs as runs
    from rnn_blocks.recipes.run.metrics import read_metrics as read_metrics
    from rnn_blocks.recipes.tools.export.command import load_any as load_any
    from rnn_blocks.recipes.tools.export.folder import export_model as export_model
    from rnn_blocks.recipes.translation.pairs.data import ParallelDataModule as ParallelDataModule
    from rnn_blocks.recipes.translation.translator import SearchOptions as SearchOptions
    from rnn_blocks.recipes.translation.translator import Translation as Translation
    from rnn_blocks.recipes.translation.translator import Translator as Translator

# Each is imported when it is asked for: a recipe's room takes seconds, and its extra.
_ROOMS = {
    "ClozeDataModule": "cloze.data",
    "Filler": "cloze.fill",
    "LongRangeData": "long_range.data",
    "LongRangeModel": "long_range.model",
    "ParallelDataModule": "translation.pairs.data",
    "RunFolder": "run.folder",
    "SearchOptions": "translation.translator",
    "TextDataModule": "language_model.data",
    "Translation": "translation.translator",
    "Translator": "translation.translator",
    "average_checkpoints": "run.averaging",
    "export_model": "tools.export.folder",
    "load_any": "tools.export.command",
    "load_language_model": "language_model.recipe",
    "read_metrics": "run.metrics",
    "runs": "run.folder",
}
__all__ = ["InputError", *_ROOMS]


class InputError(ValueError):
    """What the user gave cannot be used: the message names the value, the place and the valid choices.

    The command line prints it without a traceback and ends with exit code 2.

    >>> raise InputError("corpus.txt: no such file")
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: corpus.txt: no such file
    """


if not TYPE_CHECKING:  # a type checker would take every name for one that is here

    def __getattr__(name: str) -> Any:
        if name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
