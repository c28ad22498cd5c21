"""A threshold that you set."""

import math
from dataclasses import dataclass

import torch

from rnn_blocks.callbacks.clipping.policies.policy import Clip, ClippingPolicy, History, Step
from rnn_blocks.callbacks.settings import as_float, number


@dataclass(frozen=True)
class Fixed(ClippingPolicy):
    """A threshold that you set: ĝ ← c·ĝ/‖ĝ‖ if ‖ĝ‖ ≥ c.

    Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks", Algorithm 1.

    Args:
        threshold: c, in units of the gradient's norm.

    Raises:
        ValueError: the threshold is not a positive number.

    >>> Fixed(5.0).clip({}, Step(torch.tensor(80.0), None, torch.tensor(1.0)))
    Clip(threshold=tensor(5.), target=tensor(5.), reason=None, restart=None)
    """

    threshold: float

    def __post_init__(self) -> None:
        if not 0 < number(self.threshold) < math.inf:
            raise ValueError(f"Fixed: threshold is {self.threshold!r}; it must be a positive number")
        as_float(self, "threshold")

    def clip(self, history: History, step: Step) -> Clip:
        """Bring every norm above c down to c."""
        threshold = torch.full_like(step.norm, self.threshold)
        return Clip(threshold, threshold)
