"""Gradients measured against the weights of each output unit (AGC)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from rnn_blocks.callbacks.clipping.policies.policy import Clip, ClippingPolicy, History, Scope, Step
from rnn_blocks.callbacks.settings import as_float, number


@dataclass(frozen=True)
class Unitwise(ClippingPolicy):
    """The gradient of an output unit may be no longer than a small share of the unit's weights.

    Brock, De, Smith and Simonyan 2021, "High-Performance Large-Scale Image Recognition Without Normalization" (NFNets),
    adaptive gradient clipping (AGC). For row i of a weight matrix W and of its gradient G::

        threshold_i = target_i = λ·max(‖W_i‖, ε)

    ε lets units that start at zero be trained. A bias or other vector counts as one unit. In the paper λ = 0.01 goes
    with batches of 4096 and up to 0.16 with small ones; it leaves the classifier's last layer out, as does
    ``AdaptiveGradientClipping(Unitwise(), exclude="head")`` for a layer of that name. The rule has no history. It knows
    nothing of the learning rate, and under an adaptive optimizer it bounds what enters the moments, not the update.

    Args:
        ratio: λ, the longest gradient as a share of the unit's weights.
        floor: ε, what the norm of a unit's weights is at least taken for.

    Raises:
        ValueError: a setting is not a positive number, or a step comes without the weights' norms.

    >>> import torch
    >>> step = Step(torch.tensor([3.0, 3.0]), None, torch.ones(2), weight_norm=torch.tensor([50.0, 0.0]))
    >>> Unitwise(ratio=0.1).clip({}, step).threshold
    tensor([5.0000e+00, 1.0000e-04])
    """

    default_scope: ClassVar[Scope] = "unit"
    uses_weights: ClassVar[bool] = True

    ratio: float = 0.01
    floor: float = 1e-3

    def __post_init__(self) -> None:
        for name, value in (("ratio", self.ratio), ("floor", self.floor)):
            if not 0 < number(value) < math.inf:
                raise ValueError(f"Unitwise: {name} is {value!r}; it must be a positive number")
        as_float(self, "ratio", "floor")

    def clip(self, history: History, step: Step) -> Clip:
        """Bring every norm above λ·max(‖W‖, ε) down to it."""
        if step.weight_norm is None:
            raise ValueError("Unitwise: weight_norm of the step is None; it must be the norms of the weights")
        threshold = self.ratio * step.weight_norm.clamp(min=self.floor)
        return Clip(threshold, threshold)
