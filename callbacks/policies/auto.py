"""A threshold that nobody has to set."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_blocks.callbacks.policies.policy import Clip, ClippingPolicy, History, Step


@dataclass(frozen=True)
class Auto(ClippingPolicy):
    r"""A threshold that nobody has to set: it bounds the outliers, and with SGD also the length of the step.

    *Outliers.* Among the last `window` finite log-norms let m be the median and s = 1.4826·MAD the robust deviation,
    taken for smaller samples towards a prior: σ² = (n·s² + n₀σ₀²)/(n + n₀), n₀ = 8, σ₀ = ½. A norm of
    z = (ln‖g‖ − m)/σ above `deviations` =: k is an outlier, and brought down the more the further out it lies::

        threshold = exp(m + k·σ),  target = exp(m + k²·σ/z)

    A lasting change of scale moves the median within half a window; one spike does not move it at all. Until the first
    norm is known nothing is an outlier, nor need it be: the first step of an adaptive optimizer does not depend on it.

    *Step length.* An outlier rule follows the norms, and so follows them up when a training runs away. Where the update
    scales with the gradient (`torch.optim.SGD`, `ASGD`), no step may therefore be longer than `update_ratio` =: ρ of
    the weights' initial norm, in the long run of its momentum::

        ‖ΔW‖ = lr/(1−momentum)·‖g‖ ≤ ρ·‖W₀‖,  so  threshold = ρ·‖W₀‖·(1−momentum)/lr

    The lower of the two holds. The bound falls as the learning rate rises, which is what the hand-set thresholds of
    published recipes do too: 5/lr to 10/lr against weights of norm 125 to 190 is 4–5 %. The *initial* norm, because a
    hot training inflates its weights and would loosen its own bound. With a learning rate of 0, or weights that all
    start at 0 and so have no scale, there is no such bound, and the outlier rule is left.

    Related: Pascanu et al. 2013 (Algorithm 1) for the clip; Kumar et al. 2025 (ZClip) for the reciprocal target; You et
    al. 2017 (LARS) and Brock et al. 2021 (AGC) for measuring gradients against weights.

    Args:
        update_ratio: ρ, the longest SGD step as a share of the initial weights' norm.
        deviations: k, how many robust deviations above the median an outlier begins.
        window: how many norms are remembered.

    Raises:
        ValueError: a setting is out of its range.

    >>> policy, weights = Auto(), torch.tensor(100.0)
    >>> history = policy.initial_history(weights)
    >>> for norm in [0.9, 1.1, 1.0, 1.2, 0.8]:
    ...     history = policy.observe(history, Step(torch.tensor(norm), None, weights))
    >>> spike = Step(torch.tensor(1000.0), None, weights)
    >>> round(policy.clip(history, spike).target.item(), 2)  # no higher than a usual norm
    1.16
    >>> policy.clip(history, spike._replace(learning_rate=20.0)).target.item()  # 5 % of 100, at a rate of 20
    0.25
    """

    update_ratio: float = 0.05
    deviations: float = 2.5
    window: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.update_ratio < math.inf:
            raise ValueError(f"Auto: update_ratio is {self.update_ratio!r}; it must be a positive number")
        if not 0 < self.deviations < math.inf:
            raise ValueError(f"Auto: deviations is {self.deviations!r}; it must be a positive number")
        if self.window < 2:
            raise ValueError(f"Auto: window is {self.window!r}; it must be at least 2 norms")

    def initial_history(self, norm: Tensor) -> History:
        """An empty ring of log-norms, unfilled places at infinity."""
        return {
            "log_norms": norm.new_full((self.window, *norm.shape), math.inf),
            "count": torch.zeros_like(norm, dtype=torch.int64),
        }

    def clip(self, history: History, step: Step) -> Clip:
        """The lower of the outlier rule's and the step length's bound."""
        outlier = outlier_clip(history["log_norms"], history["count"], step.norm, self.deviations)
        length = step_length_bound(step.learning_rate, step.initial_weight_norm, self.update_ratio)
        if length is None:
            return outlier
        return Clip(torch.minimum(outlier.threshold, length), torch.minimum(outlier.target, length))

    def observe(self, history: History, step: Step) -> History:
        """Put the log-norm in the place of the oldest, unless it is not finite."""
        log_norms, count = history["log_norms"], history["count"]
        log_norm = step.norm.log()
        usable = log_norm.isfinite()
        places = torch.arange(self.window, device=log_norms.device).view(-1, *[1] * count.ndim)
        place = places == count % self.window
        return {"log_norms": torch.where(place & usable, log_norm, log_norms), "count": count + usable}


PRIOR_WEIGHT = 8.0
PRIOR_DEVIATION = 0.5


def outlier_clip(log_norms: Tensor, count: Tensor, norm: Tensor, deviations: float) -> Clip:
    """`Auto`'s outlier rule.

    Args:
        log_norms: natural logarithms of norms, ``(window, *S)``, infinite where not yet filled.
        count: how many norms have been seen, S, int64; the first ``min(count, window)`` places are filled.
        norm: norm of this step, S.
        deviations: k.
    """
    filled = count.clamp(max=len(log_norms))
    middle = ((filled - 1) // 2).clamp(min=0).unsqueeze(0)
    median = log_norms.sort(dim=0).values.gather(0, middle).squeeze(0)
    # Infinity less a finite median sorts last again, so `middle` is the median's place here too.
    deviation = 1.4826 * (log_norms - median).abs().sort(dim=0).values.gather(0, middle).squeeze(0)
    variance = (filled * deviation.square() + PRIOR_WEIGHT * PRIOR_DEVIATION**2) / (filled + PRIOR_WEIGHT)
    sigma = variance.sqrt()
    z = ((norm.log() - median) / sigma).clamp(min=deviations)
    threshold = torch.exp(median + deviations * sigma)
    target = torch.exp(median + deviations**2 * sigma / z)
    unknown = count == 0
    return Clip(threshold.masked_fill(unknown, math.inf), target.masked_fill(unknown, math.inf))


def step_length_bound(
    learning_rate: float | Tensor | None, initial_weight_norm: Tensor, update_ratio: float
) -> Tensor | None:
    """The norm ρ·‖W₀‖/lr at which a step is as long as `Auto` lets it be, S; None or infinite: no bound."""
    if learning_rate is None or (isinstance(learning_rate, float) and learning_rate == 0):
        return None
    bound = update_ratio * initial_weight_norm / learning_rate
    return bound.masked_fill((initial_weight_norm == 0) | bound.isnan(), math.inf)
