"""What a training of the bench is: a model, its data, its optimizers and what is minimised, drawn by a seed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Batch = tuple[Tensor, ...]


class Training(nn.Module, ABC):
    """A small training, of seconds on one thread.

    Args:
        seed: draws weights and batches.
        rate: learning rate.
        length: how many times as many steps as the shortest.

    Attributes:
        short: optimizer steps of the short training.
        rates: learning rates to train at, ascending; the usual one is among the middle two.
        thresholds: hand-set clipping thresholds to sweep: eight, or three to five of the later trainings.
        trivial_loss: held-out loss of a model that has learnt nothing; a training that ends above it has diverged.
        asks_the_loss: whether the loss is handed to the clipper, as a Trainer does under automatic optimisation.
        chosen_on: whether the rule's settings were chosen on this training (among others), or it was only shown on it.
    """

    short: ClassVar[int]
    rates: ClassVar[tuple[float, ...]]
    thresholds: ClassVar[tuple[float, ...]]
    trivial_loss: ClassVar[float]
    asks_the_loss: ClassVar[bool] = True
    chosen_on: ClassVar[bool] = False

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.rate = rate
        self.steps = length * self.short

    @abstractmethod
    def make_optimizers(self) -> list[Optimizer]:
        """The optimizers, at this training's rate."""

    @abstractmethod
    def objectives(self, step: int) -> Iterator[tuple[int, Tensor]]:
        """What a step minimises, one after the other: the optimizer's index and the loss, made when it is asked for."""

    @abstractmethod
    def held_out_loss(self) -> float:
        """On data that is not trained on, the same for every seed."""

    def schedule(self, step: int) -> float:
        """What the learning rate is multiplied by: it falls to 0 over the second half."""
        return min(1.0, 2 * (1 - step / self.steps))


class Supervised(Training):
    """A training with one optimizer and one loss, of batches."""

    @abstractmethod
    def make_optimizer(self) -> Optimizer:
        """The one optimizer."""

    @abstractmethod
    def batch(self) -> Batch:
        """The next to train on."""

    @abstractmethod
    def held_out(self) -> list[Batch]:
        """Batches to test on."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Of one batch, ``()``."""

    def make_optimizers(self) -> list[Optimizer]:
        return [self.make_optimizer()]

    def objectives(self, step: int) -> Iterator[tuple[int, Tensor]]:
        yield 0, self.loss(self.batch())

    @torch.no_grad()
    def held_out_loss(self) -> float:
        self.eval()
        losses = [float(self.loss(batch)) for batch in self.held_out()]
        self.train()
        return sum(losses) / len(losses)
