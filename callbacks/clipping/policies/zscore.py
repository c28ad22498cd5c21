"""Outliers of a running mean and deviation (ZClip)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_blocks.callbacks.clipping.policies.policy import Clip, ClippingPolicy, History, Step, usable
from rnn_blocks.callbacks.settings import as_float, number, whole_number

EPSILON = 1e-6


@dataclass(frozen=True)
class ZScore(ClippingPolicy):
    r"""Norms far above their running mean are outliers, and brought down the more the further out they lie.

    Kumar, Owen, Chowdhury and Güra 2025, "ZClip: Adaptive Spike Mitigation for LLM Pre-Training". With mean μ and
    deviation σ of the norms before this step, z = (‖g‖ − μ)/(σ + ε) and ε = 10⁻⁶::

        threshold = μ + k·(σ + ε),  target = μ + k²·σ/z

    After the step μ ← αμ + (1−α)·n and σ² ← ασ² + (1−α)·(n − μ)², with the new μ, where n is the norm as it was
    clipped. The first `warmup` norms, which are not clipped, give the mean and variance to begin with.

    Unlike the authors' code, there is no fixed cap unless `max_norm` is given (theirs is 1.0, which on a model of other
    scale clips every step or none). Non-finite norms are kept out, one of which would end all clipping; norms of 0 too,
    for of a mean and deviation of 0 everything is an outlier and brought down to 0, for ever. What the rule cannot do
    is follow a sudden lasting rise: clipped norms are all that it learns of it.

    Args:
        deviations: k, how many deviations above the mean an outlier begins.
        decay: α, how much of the running mean and variance stays at each step.
        warmup: how many norms are seen before the first may be an outlier.
        max_norm: a threshold that holds beside the rule's, in the warm-up too; None: no such threshold.

    Raises:
        ValueError: a setting is out of its range.

    >>> policy, weights = ZScore(warmup=4), torch.tensor(1.0)
    >>> history = policy.initial_history(weights)
    >>> for norm in [0.9, 1.1, 1.1, 0.9]:  # mean 1, deviation 0.1
    ...     history = policy.observe(history, Step(torch.tensor(norm), None, weights))
    >>> clip = policy.clip(history, Step(torch.tensor(1.5), None, weights))  # z = 5
    >>> round(clip.threshold.item(), 3), round(clip.target.item(), 3)
    (1.25, 1.125)
    """

    deviations: float = 2.5
    decay: float = 0.97
    warmup: int = 25
    max_norm: float | None = None

    def __post_init__(self) -> None:
        if not 0 < number(self.deviations) < math.inf:
            raise ValueError(f"ZScore: deviations is {self.deviations!r}; it must be a positive number")
        if not 0 <= number(self.decay) < 1:
            raise ValueError(f"ZScore: decay is {self.decay!r}; it must be at least 0 and below 1")
        if not whole_number(self.warmup) >= 2:
            raise ValueError(f"ZScore: warmup is {self.warmup!r}; it must be at least 2 norms, a whole number")
        if self.max_norm is not None and not 0 < number(self.max_norm) < math.inf:
            raise ValueError(f"ZScore: max_norm is {self.max_norm!r}; it must be a positive number, or None")
        as_float(self, "deviations", "decay", "max_norm")

    def initial_history(self, norm: Tensor) -> History:
        """No norm seen."""
        zeros = torch.zeros_like(norm)
        return {"mean": zeros, "variance": zeros.clone(), "count": torch.zeros_like(norm, dtype=torch.int64)}

    def clip(self, history: History, step: Step) -> Clip:
        """Bring outliers down; nothing is one in the warm-up."""
        clip = self._outlier(history, step.norm)
        if self.max_norm is None:
            return clip
        return Clip(clip.threshold.clamp(max=self.max_norm), clip.target.clamp(max=self.max_norm))

    def observe(self, history: History, step: Step) -> History:
        """Move mean and variance towards the norm as the rule clips it (`max_norm` aside), unless 0 or not finite."""
        mean, variance, count = history["mean"], history["variance"], history["count"]
        outlier = self._outlier(history, step.norm)
        norm = torch.where(step.norm > outlier.threshold, outlier.target, step.norm)
        # In the warm-up 1/(n+1) of the new, which makes mean and variance those of all n+1 norms (Welford).
        warming = count < self.warmup
        share = torch.where(warming, 1 / (count + 1).to(norm.dtype), 1 - self.decay)
        new_mean = torch.lerp(mean, norm, share)
        square = (norm - new_mean) * torch.where(warming, norm - mean, norm - new_mean)
        new_variance = torch.lerp(variance, square, share)
        takes = usable(step.norm)
        return {
            "mean": torch.where(takes, new_mean, mean),
            "variance": torch.where(takes, new_variance, variance),
            "count": count + takes,
        }

    def _outlier(self, history: History, norm: Tensor) -> Clip:
        mean, sigma = history["mean"], history["variance"].sqrt()
        threshold = mean + self.deviations * (sigma + EPSILON)
        z = ((norm - mean) / (sigma + EPSILON)).clamp(min=self.deviations)
        target = mean + self.deviations**2 * sigma / z
        warming = history["count"] < self.warmup
        return Clip(threshold.masked_fill(warming, math.inf), target.masked_fill(warming, math.inf))
