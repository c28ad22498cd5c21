"""How gradients flowed back through one recurrence, over a training: a bounded history, and the decay of each curve."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAX_ROWS, MAX_DISTANCES = 256, 256


class FlowHistory:
    """Norms of ``∂L/∂h_t`` by the distance of ``t`` from the sequence's end, at some of the training's steps.

    Bounded: of a curve of more than 256 distances as many evenly spread ones are kept; when there are more than 256
    curves every other is dropped, and from then on only every other is kept, so that the whole training stays in view.

    Attributes:
        steps: of each curve, the training step.
        distances: of each curve, where it was measured, ``(points,)`` int32.
        norms: the curves, ``(points,)`` float32.
        alarm: ``"vanishing"`` or ``"exploding"``, when it was told and has not passed; else empty.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.distances: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.alarm = ""
        self.seen = 0
        self.stride = 1

    def add(self, step: int, norms: Sequence[float]) -> None:
        """Keep a curve, ``norms[d]`` being that at distance ``d``."""
        self.seen += 1
        if (self.seen - 1) % self.stride:
            return
        self.steps.append(step)
        points = torch.linspace(0, len(norms) - 1, min(len(norms), MAX_DISTANCES)).round().int()
        self.distances.append(points)
        self.norms.append(torch.tensor(norms, dtype=torch.float64)[points].float())
        if len(self.steps) > MAX_ROWS:
            self.stride *= 2
            self.steps, self.distances, self.norms = self.steps[::2], self.distances[::2], self.norms[::2]

    def state_dict(self) -> dict[str, Any]:
        """Lists, numbers, strings and tensors."""
        return {name: list(value) if isinstance(value, list) else value for name, value in vars(self).items()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "FlowHistory":
        """The history that a state dict holds."""
        history = cls()
        vars(history).update({name: list(value) if isinstance(value, list) else value for name, value in state.items()})
        return history


def decay_rate(norms: Sequence[float]) -> float:
    """The factor by which a norm changes with each step back in time: the exponential of a least-squares slope.

    The line is fitted to the logarithms of the norms over the distance. It ends before the first norm that is 0 after
    one that is not: nothing of the gradient is left there.

    Args:
        norms: ``norms[d]`` is that at distance ``d`` from the end.

    Returns:
        Below 1 where gradients vanish, above 1 where they explode. 0 where the gradient is gone after a single step;
        infinity where a norm is not finite; NaN where nothing can be said: all norms are 0, or there is only one.

    >>> round(decay_rate([8.0, 4.0, 2.0, 1.0]), 6)
    0.5
    >>> decay_rate([4.0, 0.0, 0.0])
    0.0
    """
    if not all(map(math.isfinite, norms)):
        return math.inf
    start = next((d for d, norm in enumerate(norms) if norm > 0), len(norms))
    end = next((d for d in range(start, len(norms)) if norms[d] == 0), len(norms))
    if end - start < 2:
        return 0.0 if start < end < len(norms) else math.nan
    logs = [math.log(norm) for norm in norms[start:end]]
    middle, mean = (end - start - 1) / 2, sum(logs) / len(logs)
    slope = sum((d - middle) * (log - mean) for d, log in enumerate(logs))
    return math.exp(slope / sum((d - middle) ** 2 for d in range(end - start)))
