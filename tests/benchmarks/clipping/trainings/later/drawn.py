"""What the later trainings share: batches drawn from a distribution, and a schedule."""

import math
from abc import abstractmethod

import torch

from trainings.training import Batch, Supervised


class Drawn(Supervised):
    """A training with no table of examples: every batch is new."""

    batch_size, test_size = 32, 512

    @abstractmethod
    def draw(self, generator: torch.Generator, size: int) -> Batch:
        """So many examples."""

    def batch(self) -> Batch:
        return self.draw(self.generator, self.batch_size)

    def held_out(self) -> list[Batch]:
        return [self.draw(torch.Generator().manual_seed(-1), self.test_size)]


def cosine(step: int, steps: int, warm: int = 0) -> float:
    """From 0 to 1 over `warm` steps, then by half a cosine back to 0."""
    if step < warm:
        return step / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (steps - warm))
