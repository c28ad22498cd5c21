"""Two tasks of which a memory is all that is asked: the adding problem and the copy memory."""

import difflib
import math
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from rnn_blocks.recipes import InputError

Split: TypeAlias = Literal["train", "val", "test"]
Batch: TypeAlias = tuple[Tensor, Tensor]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Task:
    """A task whose sequences are made as they are needed: batch ``i`` follows from the seed and ``i`` alone.

    Args:
        length: ``T``, over how many steps something has to be remembered.

    Raises:
        InputError: for a length that is too short for the task.
    """

    name: ClassVar[str]
    input_size: ClassVar[int]
    output_size: ClassVar[int]
    every_step: ClassVar[bool]
    """Whether there is a prediction at every step, or one after the last."""
    least_length: ClassVar[int]
    guess: float
    """The loss of the best that can be said without a memory."""
    solved_below: float
    """The loss below which the task counts as solved."""

    def __init__(self, length: int) -> None:
        if length < self.least_length:
            raise InputError(f"length {length}: the {self.name} task needs at least {self.least_length}")
        self.length = length

    @property
    def steps(self) -> int:
        """Time steps of a sequence."""
        raise NotImplementedError

    def batch(self, batch_size: int, *, split: Split, seed: int, index: int) -> Batch:
        """Inputs, time first, and targets: the same for the same arguments, on every machine."""
        return self.draw(batch_size, np.random.default_rng((SPLITS.index(split), seed, index)))

    def draw(self, batch_size: int, numbers: np.random.Generator) -> Batch:
        """A batch of a stream of random numbers."""
        raise NotImplementedError

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """What is trained on and reported, as in the literature: a mean over all that is predicted."""
        raise NotImplementedError

    def loss_at_the_end(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The loss of the last step alone: whose gradient shows how far back it reaches."""
        raise NotImplementedError

    def accuracy(self, predictions: Tensor, targets: Tensor) -> Tensor | None:
        """The share of what had to be remembered that is right; None where nothing is counted."""
        return None


class AddingProblem(Task):
    """Add up two marked numbers of a sequence (Hochreiter & Schmidhuber 1997, section 5.4, as Bai et al. 2018 have it).

    Inputs are ``(T, batch, 2)``: a number uniform in [0, 1], and a mark that is 1 at two different steps, uniform among
    all, and else 0. The target, ``(batch, 1)``, is the sum of the two marked numbers, told after the last step; the
    loss is the mean squared error. To say 1 always costs the variance of that sum, 1/6.

    It counts as solved below a tenth of that.

    Args:
        length: ``T``, at least 2.

    >>> inputs, targets = AddingProblem(100).batch(3, split="train", seed=1, index=0)
    >>> inputs.shape, targets.shape, inputs[..., 1].sum(0).tolist()
    (torch.Size([100, 3, 2]), torch.Size([3, 1]), [2.0, 2.0, 2.0])
    >>> torch.allclose((inputs[..., 0] * inputs[..., 1]).sum(0), targets[:, 0])
    True
    """

    name = "adding"
    input_size = 2
    output_size = 1
    every_step = False
    least_length = 2
    guess = 1 / 6
    solved_below = guess / 10

    @property
    def steps(self) -> int:
        """``T``."""
        return self.length

    def draw(self, batch_size: int, numbers: np.random.Generator) -> Batch:
        """``(T, batch, 2)`` and ``(batch, 1)``."""
        values = numbers.random((self.length, batch_size), dtype=np.float32)
        first = numbers.integers(self.length, size=batch_size)
        second = (first + numbers.integers(1, self.length, size=batch_size)) % self.length  # never the first again
        marks = np.zeros_like(values)
        rows = np.arange(batch_size)
        marks[first, rows] = marks[second, rows] = 1
        targets = values[first, rows] + values[second, rows]
        return torch.from_numpy(np.stack([values, marks], axis=-1)), torch.from_numpy(targets[:, None])

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of ``(batch, 1)`` both."""
        return mse_loss(predictions, targets)

    def loss_at_the_end(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The same: there is no other."""
        return mse_loss(predictions, targets)


class CopyMemory(Task):
    """Recall ten symbols after ``T`` steps (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016, section 4.1).

    A sequence of ``T + 20`` steps: ten symbols out of eight, ``T - 1`` blanks, a marker, ten blanks. To be said are
    ``T + 10`` blanks and then the ten symbols in order. Inputs are one-hot, ``(T + 20, batch, 10)``, of the eight
    symbols, the blank and the marker; targets ``(T + 20, batch)``, of the symbols and the blank; the loss is the
    cross-entropy, in nats, averaged over *all* steps. To say blanks and then guess costs ``10 ln 8 / (T + 20)``.

    It counts as solved below 0.001.

    Args:
        length: ``T``, at least 1.

    >>> inputs, targets = CopyMemory(5).batch(1, split="train", seed=1, index=0)
    >>> inputs[:, 0].argmax(-1).tolist()
    [4, 7, 7, 4, 2, 6, 1, 7, 7, 0, 8, 8, 8, 8, 9, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8]
    >>> targets[:, 0].tolist()
    [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 4, 7, 7, 4, 2, 6, 1, 7, 7, 0]
    >>> round(CopyMemory(500).guess, 5)
    0.03999
    """

    name = "copy"
    symbols, recalled = 8, 10
    blank, marker = 8, 9
    input_size = 10
    output_size = 9
    every_step = True
    least_length = 1
    solved_below = 1e-3

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.guess = self.recalled * math.log(self.symbols) / self.steps

    @property
    def steps(self) -> int:
        """``T + 20``."""
        return self.length + 2 * self.recalled

    def draw(self, batch_size: int, numbers: np.random.Generator) -> Batch:
        """``(T + 20, batch, 10)`` and ``(T + 20, batch)``."""
        drawn = numbers.integers(self.symbols, size=(self.recalled, batch_size))
        inputs = np.full((self.steps, batch_size), self.blank)
        inputs[: self.recalled] = drawn
        inputs[-self.recalled - 1] = self.marker
        targets = np.full((self.steps, batch_size), self.blank)
        targets[-self.recalled :] = drawn
        one_hot = np.eye(self.input_size, dtype=np.float32)[inputs]
        return torch.from_numpy(one_hot), torch.from_numpy(targets)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of ``(T + 20, batch, 9)`` and ``(T + 20, batch)``, in nats."""
        return cross_entropy(predictions.flatten(0, 1), targets.flatten())

    def loss_at_the_end(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Of the tenth symbol, seen ``T + 10`` steps before."""
        return cross_entropy(predictions[-1], targets[-1])

    def accuracy(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Of the ten symbols."""
        recalled = predictions[-self.recalled :].argmax(-1)
        return (recalled == targets[-self.recalled :]).float().mean()


TASKS: dict[str, type[Task]] = {task.name: task for task in (AddingProblem, CopyMemory)}


def make_task(name: str, length: int) -> Task:
    """The task called ``name``.

    Raises:
        InputError: for another name, or a length too short for it.

    >>> make_task("copy", 0)
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: length 0: the copy task needs at least 1
    """
    if name not in TASKS:
        raise InputError(f"task {name!r}: {hint(name, list(TASKS))}")
    return TASKS[name](length)


def hint(given: str, valid: list[str]) -> str:
    """What may have been meant, and all that is valid.

    >>> hint("lsmt", ["lstm", "gru"])
    "did you mean 'lstm'? Valid are lstm, gru"
    """
    near = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"{'V' if near else 'v'}alid are {', '.join(valid)}"
