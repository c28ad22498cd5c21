"""What one training of a comparison is, and what came of it."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from rnn_blocks.callbacks import AdaptiveGradientClipping
from rnn_blocks.callbacks.clipping.policies import Fixed
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.long_range.cells import hidden_size_for
from rnn_blocks.recipes.long_range.data import LongRangeData
from rnn_blocks.recipes.long_range.tasks import make_task
from rnn_blocks.recipes.run.folder import write_whole

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Settings:
    """All that decides how a training goes.

    Attributes:
        task: ``"adding"`` or ``"copy"``.
        length: the task's ``T``.
        cell: a name in the table of cells.
        clipping: ``"auto"``, ``"none"`` or a fixed threshold of the gradient norm.
        seed: of the weights and of the training's sequences.
        parameters: how many, about.
        lr: the learning rate; None: the cell's own.
        batch_size: sequences of a batch.
        max_steps: the most optimizer steps.
        eval_every: steps between two evaluations.
        eval_sequences: on how many sequences.
        solved_below: the evaluation's loss below which a training has solved the task and ends.

    >>> Settings("copy", 100, "lstm").key().rsplit("-", 1)[0]
    'copy-lstm-T100-auto-seed1'
    """

    task: str
    length: int
    cell: str
    clipping: str = AUTO
    seed: int = 1
    parameters: int = 16_000
    lr: float | None = None
    batch_size: int = 50
    max_steps: int = 2000
    eval_every: int = 100
    eval_sequences: int = 500
    solved_below: float = 1e-3

    def key(self) -> str:
        """A file's name, of these settings and no others."""
        whole = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
        return f"{self.task}-{self.cell}-T{self.length}-{self.clipping}-seed{self.seed}-{digest}"

    def told(self) -> str:
        """In a line."""
        return f"{self.cell} at length {self.length}, clipping {self.clipping}, seed {self.seed}"

    def check(self) -> None:
        """Make sure that there is such a training.

        Raises:
            InputError: naming the value that there is not.

        >>> Settings("adding", 1, "lstm").check()
        Traceback (most recent call last):
        ...
        rnn_blocks.recipes.InputError: length 1: the adding task needs at least 2
        """
        task = make_task(self.task, self.length)
        LongRangeData(
            self.task, self.length, batch_size=self.batch_size, seed=self.seed, eval_sequences=self.eval_sequences
        )
        hidden_size_for(self.cell, task.input_size, task.output_size, self.length, self.parameters)
        clipping_callbacks(self.clipping)
        for name in ("max_steps", "eval_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: give 1 or more")
        for name in ("lr", "solved_below"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} {value}: give more than 0")


def clipping_callbacks(clipping: str) -> list[pl.Callback]:
    """The callbacks that a choice of clipping stands for.

    Raises:
        InputError: for another choice.

    >>> clipping_callbacks("none")
    []
    >>> clipping_callbacks("1.5")[0].policy
    Fixed(threshold=1.5)
    """
    if clipping == NONE:
        return []
    if clipping == AUTO:
        return [AdaptiveGradientClipping()]
    try:
        threshold = float(clipping)
    except ValueError:
        threshold = math.nan
    if not 0 < threshold < math.inf:
        raise InputError(f"clipping {clipping!r}: valid are {AUTO}, {NONE} or a threshold above 0, such as 1.0")
    return [AdaptiveGradientClipping(Fixed(threshold))]


@dataclass
class Result:
    """What came of a training.

    Attributes:
        settings: the training's.
        hidden_size: of the layer.
        parameters: how many there are.
        guess: the loss without a memory.
        steps: optimizer steps taken.
        solved: whether the loss of an evaluation fell below ``settings.solved_below``.
        diverged: whether the training ended with weights that are not finite.
        loss: of the last evaluation.
        accuracy: the share of recalled symbols that are right, in the last evaluation; None for the adding problem.
        seconds: of training and evaluating.
        curve: step and loss of each evaluation.
        flow_at_start: ``‖∂L/∂h_t‖`` at every step of time before the training, see ``gradient_flow``.
        flow_at_end: the same after it.
    """

    settings: Settings
    hidden_size: int
    parameters: int
    guess: float
    steps: int = 0
    solved: bool = False
    diverged: bool = False
    loss: float = math.nan
    accuracy: float | None = None
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    flow_at_start: list[float] = field(default_factory=list)
    flow_at_end: list[float] = field(default_factory=list)

    @property
    def relative_loss(self) -> float:
        """The loss as a multiple of the guess's."""
        return self.loss / self.guess

    def write(self, path: Path) -> None:
        """As JSON, as a whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Result | None":
        """The result in a file, or None where there is no such file.

        Raises:
            InputError: where the file holds something else.

        >>> Result.read(Path("no-such-file.json")) is None
        True
        """
        if not path.is_file():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            settings = Settings(**content.pop("settings"))
            curve = [(int(step), float(loss)) for step, loss in content.pop("curve")]
            return cls(settings, curve=curve, **content)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}: not a result of this version ({error}); delete it to have that training made again"
            ) from error


def thinned(values: list[float], most: int = 400) -> list[float]:
    """At most so many evenly spread values, the first and the last among them, of four digits.

    >>> thinned([0.123456, 1.0, 2.0], most=2)
    [0.1235, 2.0]
    """
    count = min(len(values), most)
    places = [round(index * (len(values) - 1) / max(1, count - 1)) for index in range(count)]
    return [float(f"{values[place]:.4g}") for place in places]
