"""Outliers of the last norms or losses: left out."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rnn_blocks.callbacks.clipping.policies.policy import Clip, ClippingPolicy, History, Step, put_into_ring
from rnn_blocks.callbacks.settings import as_float, number, whole_number


@dataclass(frozen=True)
class SkipOutliers(ClippingPolicy):
    r"""A step whose gradient norm or loss is far above the last ones is made on gradients of zero.

    As the `SkipStepOptimizer` of OLMo-core and the gradient filter of MaxText: where a norm, or a loss if there is one,
    is above mean + k·σ of the last `window` (there must be at least half as many), the gradients are set to 0. Weights
    then move by what momentum and weight decay there is; theirs stay as they are. An outlier enters the window, as it
    does there, so that a second one soon after it passes.

    Args:
        deviations: k.
        window: how many norms and losses are remembered.

    Raises:
        ValueError: a setting is out of its range.

    >>> policy, weights = SkipOutliers(window=4), torch.tensor(1.0)
    >>> history = policy.initial_history(weights)
    >>> for norm in [0.9, 1.1, 0.9, 1.1]:
    ...     history = policy.observe(history, Step(torch.tensor(norm), None, weights))
    >>> threshold, target, *_ = policy.clip(history, Step(torch.tensor(9.0), None, weights))
    >>> round(threshold.item(), 3), target.item()  # deviation 0.115
    (1.693, 0.0)
    """

    uses_loss: ClassVar[bool] = True
    reasons: ClassVar[tuple[str, ...]] = ("norm", "loss")

    deviations: float = 6.0
    window: int = 128

    def __post_init__(self) -> None:
        if not 0 < number(self.deviations) < math.inf:
            raise ValueError(f"SkipOutliers: deviations is {self.deviations!r}; it must be a positive number")
        if not whole_number(self.window) >= 2:
            raise ValueError(f"SkipOutliers: window is {self.window!r}; it must be at least 2, a whole number")
        as_float(self, "deviations")

    def initial_history(self, norm: Tensor) -> History:
        """Two empty rings."""
        empty = norm.new_full((self.window, *norm.shape), math.nan)
        count = torch.zeros_like(norm, dtype=torch.int64)
        return {"norms": empty, "count": count, "losses": empty.clone(), "loss_count": count.clone()}

    def clip(self, history: History, step: Step) -> Clip:
        """Bring outliers down to 0."""
        threshold = self._limit(history["norms"], history["count"])
        reason = torch.zeros_like(threshold, dtype=torch.int64)
        if step.loss is not None:
            above = step.loss > self._limit(history["losses"], history["loss_count"])
            reason = (above & ~(step.norm > threshold)).long()
            threshold = threshold.masked_fill(above, 0.0)
        return Clip(threshold, torch.zeros_like(threshold), reason)

    def observe(self, history: History, step: Step) -> History:
        """Put norm and loss in the places of the oldest, unless they are not finite."""
        seen = self._put(history, "norms", "count", step.norm)
        if step.loss is not None:
            seen |= self._put(history, "losses", "loss_count", step.loss.expand_as(step.norm))
        return history | seen

    def _put(self, history: History, ring: str, counter: str, value: Tensor) -> History:
        values, count = history[ring], history[counter]
        takes = value.isfinite()
        return {ring: put_into_ring(values, count, value, takes), counter: count + takes}

    def _limit(self, values: Tensor, count: Tensor) -> Tensor:
        number = count.clamp(max=self.window)
        mean = values.nansum(0) / number
        variance = (values - mean).square().nansum(0) / (number - 1).clamp(min=1)
        return (mean + self.deviations * variance.sqrt()).masked_fill(number < max(self.window // 2, 2), math.inf)
