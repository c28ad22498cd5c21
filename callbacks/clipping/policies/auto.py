"""A threshold that nobody has to set."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_blocks.callbacks.clipping.policies.policy import Clip, ClippingPolicy, History, Step


@dataclass(frozen=True)
class Auto(ClippingPolicy):
    r"""A threshold that nobody has to set: it bounds the outliers, and with SGD also the length of the step.

    *Outliers.* Among the last `window` finite log-norms let m be the median and s = 1.4826·MAD the robust deviation,
    taken for smaller samples towards a prior: σ² = (n·s² + n₀σ₀²)/(n + n₀), n₀ = 8, σ₀ = ½. A norm of
    z = (ln‖g‖ − m)/σ above `deviations` =: k is an outlier, and brought down the more the further out it lies::

        threshold = exp(m + k·σ),  target = exp(m + k²·σ/z)

    A lasting change of scale moves the median within half a window; one spike does not move it at all. Until the first
    norm is known nothing is an outlier, nor need it be: the first step of an adaptive optimizer does not depend on it.

    *Length of SGD's steps.* An outlier rule follows the norms, and so follows them up when a training runs away. Where
    the update scales with the gradient (`torch.optim.SGD`, `ASGD`), a lasting gradient moves the weights by
    lr·‖g‖/(1−momentum) a step. In units of the norm of the *initial* weights, for a hot training inflates its weights
    and would loosen its own bound, and at the *highest* learning rate so far =: lr₊, for otherwise a schedule that
    lowers the rate would raise the bound by as much and never shorten a step that is clipped::

        unit = ‖W₀‖·(1−momentum)/lr₊
        threshold = min(ρ·unit, max(exp q, unit/500))

    ρ := `longest_step`; no step is longer. Steps shorter than 1/500 of the weights are left alone. Between the two, q
    follows the lower quartile of the log-norms, slowly upwards: it rises by 1.25 % at each norm above it and falls by
    3.75 % at each below (Robbins and Monro's quantile by stochastic approximation; in the first 20 steps its gain is
    one over their number), and norms above ρ·unit count as ρ·unit. So where steps are long three in four have the same
    length: the gradient tells the direction and the learning rate the length, as in normalised gradient descent. The
    lower of this and the outlier rule's threshold holds.

    *Length of adaptive optimizers' updates.* Adam and its kin divide by the size of the gradients, so that no threshold
    bounds their updates. There `AdaptiveGradientClipping` measures the updates of the weight matrices themselves and,
    where that of the middle one is longer than `longest_update`·‖W₀ᵢ‖·lr/lr₊, multiplies the step's learning rate (see
    `UpdateBound`).

    With a learning rate of 0, or weights that all start at 0 and so have no scale, neither length is bounded, and the
    outlier rule is left.

    Related: Pascanu et al. 2013 (Algorithm 1) for the clip; Kumar et al. 2025 (ZClip) for the reciprocal target;
    Seetharaman et al. 2020 (AutoClip) for a low percentile as threshold; You et al. 2017 (LARS), Brock et al. 2021
    (AGC) and Tang et al. 2023 (Clippy) for measuring gradients and updates against weights.

    Args:
        longest_step: ρ, the longest step of SGD as a share of the initial weights' norm.
        longest_update: the longest update of any other optimizer as a share of the initial weights, in the middle one
            of the weight matrices; None: not bounded.
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
    >>> round(policy.clip(history, spike._replace(learning_rate=20.0)).target.item(), 2)  # 8 % of 100, at a rate of 20
    0.4
    """

    longest_step: float = 0.08
    longest_update: float | None = 0.05
    deviations: float = 2.5
    window: int = 64

    def __post_init__(self) -> None:
        for name in ("longest_step", "longest_update", "deviations"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"Auto: {name} is {value!r}; it must be a positive number")
        if self.window < 2:
            raise ValueError(f"Auto: window is {self.window!r}; it must be at least 2 norms")

    def initial_history(self, norm: Tensor) -> History:
        """An empty ring of log-norms, unfilled places at infinity."""
        return {
            "log_norms": norm.new_full((self.window, *norm.shape), math.inf),
            "count": torch.zeros_like(norm, dtype=torch.int64),
            "highest_rate": torch.zeros_like(norm),
            "level": torch.full_like(norm, math.inf),
        }

    def clip(self, history: History, step: Step) -> Clip:
        """The lower of the outlier rule's and the step length's threshold."""
        outlier = outlier_clip(history["log_norms"], history["count"], step.norm, self.deviations)
        if step.learning_rate is None:
            return outlier
        unit = _unit(history, step)
        bound = torch.minimum(self.longest_step * unit, torch.maximum(history["level"].exp(), FREE_STEP * unit))
        return Clip(torch.minimum(outlier.threshold, bound), torch.minimum(outlier.target, bound))

    def observe(self, history: History, step: Step) -> History:
        """Put the log-norm in the place of the oldest, unless it is not finite, and move the quartile."""
        log_norms, count = history["log_norms"], history["count"]
        log_norm = step.norm.log()
        usable = log_norm.isfinite()
        places = torch.arange(self.window, device=log_norms.device).view(-1, *[1] * count.ndim)
        place = places == count % self.window
        seen = history | {"log_norms": torch.where(place & usable, log_norm, log_norms), "count": count + usable}
        if step.learning_rate is None:
            return seen
        log_norm = torch.minimum(log_norm, (self.longest_step * _unit(history, step)).log())
        level = torch.minimum(history["level"], log_norm.masked_fill(count > 0, math.inf))
        gain = (1 / seen["count"].to(level.dtype)).clamp(min=GAIN)
        level = level + gain * (QUARTILE - (log_norm <= level).to(level.dtype))
        return seen | {
            "level": torch.where(usable, level, history["level"]),
            "highest_rate": _highest_rate(history, step),
        }


FREE_STEP = 1 / 500  # steps shorter than this share of the initial weights' norm are never shortened to the quartile
QUARTILE = 0.25
GAIN = 0.05

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


def _highest_rate(history: History, step: Step) -> Tensor:
    highest = history["highest_rate"]
    if isinstance(step.learning_rate, Tensor):
        rate = step.learning_rate.to(highest)
        return torch.maximum(highest, rate.masked_fill(rate.isnan(), 0.0))  # NaN: it was weighted by gradients of 0
    return highest if step.learning_rate is None else highest.clamp(min=step.learning_rate)


def _unit(history: History, step: Step) -> Tensor:
    """Norm of a gradient whose step is as long as the initial weights, S; infinite where nothing bounds it."""
    unit = step.initial_weight_norm / _highest_rate(history, step)
    return unit.masked_fill((step.initial_weight_norm == 0) | unit.isnan(), math.inf)
