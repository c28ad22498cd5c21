"""A percentile of the norms seen so far (AutoClip)."""

import math
from dataclasses import dataclass

import torch

from rnn_blocks.callbacks.clipping.policies.policy import Clip, ClippingPolicy, History, Step, put_into_ring, usable
from rnn_blocks.callbacks.settings import as_float, number, whole_number


@dataclass(frozen=True)
class Percentile(ClippingPolicy):
    """The p-th percentile of the last norms, the present one among them.

    Seetharaman, Wichern, Pardo, Le Roux 2020, "AutoClip: Adaptive Gradient Clipping for Source Separation Networks"::

        threshold_t = percentile_p(‖g_1‖, …, ‖g_t‖),  target_t = threshold_t

    At the paper's p = 10 nine steps in ten are clipped: the rule normalises gradients rather than cuts off outliers.
    With `percent=90` it does the latter.

    Unlike in the paper, whose list grows for ever, only the last `window` norms count: after a lasting change of scale
    the rule comes round within so many steps, and its memory is bounded. Non-finite norms are kept out, one of which
    would make every later threshold NaN; norms of 0 too, which would make the threshold 0.

    The norms of every unit are sorted at every step. In scopes of many units, choose a `window` of tens.

    Args:
        percent: p, from 0 (the smallest norm) to 100 (the largest: nothing is clipped); linear between ranks.
        window: how many norms are remembered.

    Raises:
        ValueError: a setting is out of its range.

    >>> import torch
    >>> policy, weights = Percentile(percent=50.0), torch.tensor(1.0)
    >>> history = policy.initial_history(weights)
    >>> for norm in [1.0, 2.0, 4.0, 8.0]:
    ...     history = policy.observe(history, Step(torch.tensor(norm), None, weights))
    >>> policy.clip(history, Step(torch.tensor(100.0), None, weights)).threshold  # of 1, 2, 4, 8, 100
    tensor(4.)
    """

    percent: float = 10.0
    window: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= number(self.percent) <= 100:
            raise ValueError(f"Percentile: percent is {self.percent!r}; it must be a number from 0 to 100")
        if not whole_number(self.window) >= 2:
            raise ValueError(f"Percentile: window is {self.window!r}; it must be at least 2 norms, a whole number")
        as_float(self, "percent")

    def initial_history(self, norm: torch.Tensor) -> History:
        """An empty ring of norms, unfilled places at infinity."""
        return {
            "norms": norm.new_full((self.window, *norm.shape), math.inf),
            "count": torch.zeros_like(norm, dtype=torch.int64),
        }

    def clip(self, history: History, step: Step) -> Clip:
        """Bring every norm above the percentile down to it."""
        known = self.observe(history, step)
        filled = known["count"].clamp(max=self.window)
        rank = ((filled - 1).to(step.norm.dtype) * (self.percent / 100)).clamp(min=0)
        lower = rank.floor()
        ordered = known["norms"].sort(dim=0).values
        low, high = (ordered.gather(0, place.long().unsqueeze(0)).squeeze(0) for place in (lower, rank.ceil()))
        threshold = torch.lerp(low, high, rank - lower).masked_fill(filled == 0, math.inf)
        return Clip(threshold, threshold)

    def observe(self, history: History, step: Step) -> History:
        """Put the norm in the place of the oldest, unless it is 0 or not finite."""
        norms, count = history["norms"], history["count"]
        takes = usable(step.norm)
        return {"norms": put_into_ring(norms, count, step.norm, takes), "count": count + takes}
