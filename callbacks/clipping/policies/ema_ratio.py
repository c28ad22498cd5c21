"""A little above the running mean of clipped norms (AdaGC)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rnn_blocks.callbacks.clipping.policies.policy import Clip, ClippingPolicy, History, Scope, Step, usable
from rnn_blocks.callbacks.settings import as_float, number, whole_number


@dataclass(frozen=True)
class EmaRatio(ClippingPolicy):
    """No norm may be more than a few percent above the running mean of the clipped norms before it.

    Wang, Li, Chen et al. 2025, "AdaGC: Improving Training Stability for Large Language Model Pretraining", made for
    each parameter tensor by itself::

        threshold_t = target_t = λ·γ_{t−1},  γ_t = β·γ_{t−1} + (1−β)·min(‖g_t‖, λ·γ_{t−1})

    In the first `warmup` steps γ_t = min(γ_{t−1}, ‖g_t‖), the smallest norm so far. As γ can rise by no more than
    (1−β)(λ−1) of itself in a step, 0.1 % at the defaults, most steps are clipped and a lasting rise of the norms is
    followed over thousands of steps.

    Unlike in the paper, which clips the norm of all gradients to 1 during the warm-up, nothing is clipped there unless
    `warmup_cap` is given, and then each unit by its own norm. Non-finite norms are kept out; norms of 0 too, after one
    of which (as of a layer that starts at zero) γ and every later update would be 0.

    Args:
        ratio: λ, at most so many times the running mean is let through.
        decay: β, how much of the running mean stays at each step.
        warmup: of how many norms the smallest begins the running mean.
        warmup_cap: threshold of the warm-up; None: nothing is clipped there.

    Raises:
        ValueError: a setting is out of its range.

    >>> policy, weights = EmaRatio(warmup=3), torch.tensor(1.0)
    >>> history = policy.initial_history(weights)
    >>> for norm in [3.0, 2.0, 4.0]:
    ...     history = policy.observe(history, Step(torch.tensor(norm), None, weights))
    >>> policy.clip(history, Step(torch.tensor(9.0), None, weights)).threshold
    tensor(2.1000)
    """

    default_scope: ClassVar[Scope] = "parameter"

    ratio: float = 1.05
    decay: float = 0.98
    warmup: int = 100
    warmup_cap: float | None = None

    def __post_init__(self) -> None:
        if not 0 < number(self.ratio) < math.inf:
            raise ValueError(f"EmaRatio: ratio is {self.ratio!r}; it must be a positive number")
        if not 0 <= number(self.decay) < 1:
            raise ValueError(f"EmaRatio: decay is {self.decay!r}; it must be at least 0 and below 1")
        if not whole_number(self.warmup) >= 1:
            raise ValueError(f"EmaRatio: warmup is {self.warmup!r}; it must be at least 1 norm, a whole number")
        if self.warmup_cap is not None and not 0 < number(self.warmup_cap) < math.inf:
            raise ValueError(f"EmaRatio: warmup_cap is {self.warmup_cap!r}; it must be a positive number, or None")
        as_float(self, "ratio", "decay", "warmup_cap")

    def initial_history(self, norm: Tensor) -> History:
        """No norm seen: an infinite smallest norm."""
        return {"gamma": torch.full_like(norm, math.inf), "count": torch.zeros_like(norm, dtype=torch.int64)}

    def clip(self, history: History, step: Step) -> Clip:
        """Bring every norm above λγ down to it; in the warm-up, above the cap."""
        cap = math.inf if self.warmup_cap is None else self.warmup_cap
        threshold = (self.ratio * history["gamma"]).masked_fill(history["count"] < self.warmup, cap)
        return Clip(threshold, threshold)

    def observe(self, history: History, step: Step) -> History:
        """Move γ towards the clipped norm, unless that is 0 or not finite."""
        gamma, count = history["gamma"], history["count"]
        norm = torch.minimum(step.norm, self.clip(history, step).target)
        mean = self.decay * gamma + (1 - self.decay) * norm
        moved = torch.where(count < self.warmup, torch.minimum(gamma, norm), mean)
        takes = usable(step.norm)
        return {"gamma": torch.where(takes, moved, gamma), "count": count + takes}
