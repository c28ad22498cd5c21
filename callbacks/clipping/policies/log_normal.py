"""Outliers among log-norms, by a running mean and deviation."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_blocks.callbacks.clipping.policies.policy import Clip, ClippingPolicy, History, Step, usable
from rnn_blocks.callbacks.settings import as_float, number, whole_number


@dataclass(frozen=True)
class LogNormal(ClippingPolicy):
    r"""Norms whose logarithm is far above its running mean are brought down to that mean.

    Chorowski, Bahdanau, Cho and Bengio 2014, "End-to-end Continuous Speech Recognition using Attention-based Recurrent
    NN: First Results", §3.2.1, as in TensorFlow 1's `adaptive_clipping_fn`. With m and s the exponential mean and
    deviation of ln‖g‖ over the steps before::

        threshold = exp(m + k·s),  target = exp(m)

    Mean and mean square begin at 0 and are corrected for it, as Adam's are. Norms of 0 and those that are not finite
    are kept out. As the authors do, a norm enters as it was before clipping.

    Args:
        deviations: k.
        decay: how much of the running means stays at each step.
        warmup: how many norms are seen before the first may be clipped.

    Raises:
        ValueError: a setting is out of its range.

    >>> policy, weights = LogNormal(decay=0.5, warmup=2), torch.tensor(1.0)
    >>> history = policy.initial_history(weights)
    >>> for norm in [1.0, 4.0]:  # logarithms 0 and 2·ln 2, weights 1/3 and 2/3
    ...     history = policy.observe(history, Step(torch.tensor(norm), None, weights))
    >>> threshold, target, *_ = policy.clip(history, Step(torch.tensor(90.0), None, weights))
    >>> round(target.item(), 3), round(threshold.item(), 3)
    (2.52, 9.311)
    """

    deviations: float = 2.0
    decay: float = 0.95
    warmup: int = 10

    def __post_init__(self) -> None:
        if not 0 < number(self.deviations) < math.inf:
            raise ValueError(f"LogNormal: deviations is {self.deviations!r}; it must be a positive number")
        if not 0 < number(self.decay) < 1:
            raise ValueError(f"LogNormal: decay is {self.decay!r}; it must be above 0 and below 1")
        if not whole_number(self.warmup) >= 1:
            raise ValueError(f"LogNormal: warmup is {self.warmup!r}; it must be at least 1 norm, a whole number")
        as_float(self, "deviations", "decay")

    def initial_history(self, norm: Tensor) -> History:
        """No norm seen."""
        zeros = torch.zeros_like(norm)
        return {"mean": zeros, "square": zeros.clone(), "count": torch.zeros_like(norm, dtype=torch.int64)}

    def clip(self, history: History, step: Step) -> Clip:
        """Bring outliers down to the mean; nothing is one in the warm-up."""
        count = history["count"]
        share = 1 - self.decay ** count.clamp(min=1).to(step.norm.dtype)
        mean = history["mean"] / share
        deviation = (history["square"] / share - mean.square()).clamp(min=0).sqrt()
        warming = count < self.warmup
        threshold, target = (mean + self.deviations * deviation).exp(), mean.exp()
        return Clip(threshold.masked_fill(warming, math.inf), target.masked_fill(warming, math.inf))

    def observe(self, history: History, step: Step) -> History:
        """Move the means towards the log-norm and its square."""
        takes = usable(step.norm)
        log_norm = step.norm.log().masked_fill(~takes, 0.0)
        share = (1 - self.decay) * takes.to(log_norm)
        return {
            "mean": torch.lerp(history["mean"], log_norm, share),
            "square": torch.lerp(history["square"], log_norm.square(), share),
            "count": history["count"] + takes,
        }
