"""A threshold that nobody has to set."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rnn_blocks.callbacks.clipping.policies.outliers import outlier_clip, stretch_so_far, stretched
from rnn_blocks.callbacks.clipping.policies.policy import Clip, ClippingPolicy, History, Step, put_into_ring
from rnn_blocks.callbacks.clipping.policies.predicted_decrease import PredictedDecrease
from rnn_blocks.callbacks.measuring.numbers import logarithm, minimum, where
from rnn_blocks.callbacks.settings import as_float, number, whole_number


@dataclass(frozen=True)
class Auto(ClippingPolicy):
    r"""A threshold that nobody has to set: it brings down outliers, and SGD's steps that promise too much of the loss.

    *Outliers.* Among the last `window` finite log-norms let m be the median and s = 1.4826·MAD the robust deviation,
    taken for smaller samples towards a prior: σ² = (n·s² + n₀σ₀²)/(n + n₀), n₀ = 8, σ₀ = ½, and m₅ the median of the
    last five. A norm of z = (ln‖g‖ − m)/σ above `deviations` =: k, and above r times those of just before, is an
    outlier, and brought down the more the further out it lies::

        threshold = exp(max(m + k·σ, m₅ + ln r)),  target = exp(max(m + k²·σ/z, m₅))

    r is 3 where the update scales with the gradient, as SGD's does, and 10 with all other optimizers: a gradient of ten
    times the usual length moves Adam's weights no further than a usual one, and raises its second moment by a tenth.

    One spike moves neither median; norms that grow by up to 44 % a step, as where a training leaves a plateau, are no
    outliers; a lasting change of scale is followed within three steps. Where weights start small the first norms grow
    manyfold: until five are known, an outlier is a thousand times m. To the first norm nothing is an outlier. What
    keeps coming back is none either: each outlier raises ln(threshold) by ¼, and each other step lowers it by 1 % of
    that, down to where it was, so that no more than one step in a hundred stays an outlier for long.

    *Promises.* An outlier rule follows the norms, and so follows them up when a training runs away. Where the update
    scales with the gradient (`torch.optim.SGD`, `ASGD`), a gradient that lasts moves the weights by lr·‖g‖ a step, with
    momentum by lr·‖g‖/(1−momentum), and so predicts, at first order, that the loss falls by lr·‖g‖². A loss L that is
    bounded below by 0 cannot fall by more than it is, and if it is smooth, a gradient with lr·‖g‖² > 4·L proves that
    steps of this length diverge (for then its curvature is above 2/lr). With lr₊ the highest learning rate so far::

        threshold = √(c·L/lr₊),  target = min(threshold, f·threshold²/‖g‖)

    Hand-set thresholds of well-known recipes, squared, times their learning rates and over their losses, are 0.15 to
    0.6; c begins at `largest_decrease` = 0.2, which it is at least, and opens as far as 200 times that for a training
    that keeps its promises, for such a one may make larger ones, and beyond that, up to 10,000 times, with steps that
    promise a tenth of what they may: a momentum of 0.9 bears 380 times, one of 0.99 4,000. What tells are two moving
    averages of the loss, the recent one over one in 16 of the steps so far, the usual one over one in four, both over
    two at least, as single batches vary and progress slows down. With every new low of the recent loss c opens by 3 %,
    else, where it is 4 % below the usual one, by 1 %; where it is 5 % above it c closes by 1.5 %, and in between by
    0.3 %. With a momentum of m steps are stable that promise up to 4·(1+m)/(1−m) times the loss: once c has opened to
    1.5·c₀ it counts 1/(1−m) times as much. A loss above 1.5·L, a step that promises more than (1+m)/(1−m) times it, or
    c back at c₀ ends that for good, and the velocity, which would carry the weights on, is set to zero (as by the
    restarts of O'Donoghue and Candès 2015). The host has to know for that: it is left out where nothing is read from
    the device, and in every scope but "global".
    f is 4, and 1 until 16 norms are known, while nothing is known of what the training bears and a momentum's
    velocity builds up.
    L is the loss as it was, followed by at most 1 % down and 5 % up a step, and up to ten times the first one, so that
    one batch changes little and no blow-up raises its own threshold for long. Where the loss is above 2·L the target is
    the threshold: the velocity carries the weights away, and a gradient cut to nothing could not turn it.

    Scale-invariant weights, as before a batch norm, bear steps of any length. In the scope "global" their gradients are
    left out of ‖g‖ here once they are known (see `ScaleInvariance`); the threshold that is told is that of the whole.

    Nothing of this depends on the scale of weights or of the loss. A loss of 0 or less says that 0 is not its bound.
    If c has opened to 1.2·c₀ by then, as much is supposed to be left to gain as has been gained since the first loss:
    everything is measured above a floor as far below, which moves on each time that the loss reaches it. Otherwise,
    and once c is back at c₀ while the recent loss is a quarter higher above that floor than its lowest, this rule rests
    for good, as it does without a loss (see `AdaptiveGradientClipping` on where that is), with a learning rate of 0,
    and with adaptive optimizers, whose update does not scale with the gradient. There the outlier rule is left.

    *Length of adaptive optimizers' updates.* Off unless `longest_update` is given: `AdaptiveGradientClipping` then
    measures the updates of the weight matrices of Adam and its kin and, where that of the middle one is longer than
    `longest_update`·‖W₀ᵢ‖·lr/lr₊, multiplies the step's learning rate (see `UpdateBound`). It makes a learning rate
    that is too high harmless; where weights are small on purpose it also holds up trainings that are well.

    Related: Pascanu et al. 2013 (Algorithm 1) for the clip; Polyak 1987 and Loizou et al. 2021 (SPS_max) for steps in
    units of the loss; Heo et al. 2021 (AdamP) for scale-invariant weights; Chorowski et al. 2014 for outliers among
    log-norms; Kumar et al. 2025 (ZClip) for the reciprocal target.

    Args:
        largest_decrease: c₀, the share of the loss by which a step of SGD may predict to lower it; None: any.
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
    >>> step = Step(torch.tensor(0.9), 20.0, weights, loss=torch.tensor(5.0))
    >>> round(policy.clip(history, step).threshold.item(), 3)  # √(0.2·5/20)
    0.224
    """

    uses_loss: ClassVar[bool] = True
    takes_numbers: ClassVar[bool] = True
    reasons: ClassVar[tuple[str, ...]] = ("outlier", "promise")

    largest_decrease: float | None = 0.2
    longest_update: float | None = None
    deviations: float = 2.5
    window: int = 64

    def __post_init__(self) -> None:
        for name in ("largest_decrease", "longest_update", "deviations"):
            value = getattr(self, name)
            if (value is not None or name == "deviations") and not 0 < number(value) < math.inf:
                raise ValueError(f"Auto: {name} is {value!r}; it must be a positive number")
        if not whole_number(self.window) >= 2:
            raise ValueError(f"Auto: window is {self.window!r}; it must be at least 2 norms, a whole number")
        as_float(self, "largest_decrease", "longest_update", "deviations")

    def needs_loss(self, scales: bool) -> bool:
        """Only where steps can promise anything."""
        return scales and self.largest_decrease is not None

    def initial_history(self, norm: Tensor) -> History:
        """An empty ring of log-norms, unfilled places at infinity; no loss."""
        norms = {
            "log_norms": norm.new_full((self.window, *norm.shape), math.inf),
            "count": torch.zeros_like(norm, dtype=torch.int64),
            "stretch": torch.zeros_like(norm),
        }
        return norms if self._promises is None else norms | self._promises.initial_history(norm)

    def clip(self, history: History, step: Step) -> Clip:
        """The lower of the two rules' thresholds."""
        stretch, scales = stretch_so_far(history), step.learning_rate is not None
        norms, count = history["log_norms"], history["count"]
        outlier = outlier_clip(norms, count, step.norm, self.deviations, stretch, scales=scales)
        if self._promises is None or step.loss is None or step.learning_rate is None:
            return outlier
        promise = self._promises.clip(history, step, step.loss)
        return Clip(
            minimum(outlier.threshold, promise.threshold),
            minimum(outlier.target, promise.target),
            (promise.target < outlier.target) * 1,
            promise.restart,
        )

    def observe(self, history: History, step: Step) -> History:
        """Put the log-norm in the place of the oldest, unless it is not finite, and follow the loss."""
        log_norms, count = history["log_norms"], history["count"]
        log_norm = logarithm(step.norm)
        takes = abs(log_norm) < math.inf  # in half of the operations of `isfinite`
        log_norms = put_into_ring(log_norms, count, log_norm, takes)
        before = stretch_so_far(history)
        scales = step.learning_rate is not None
        stretch = stretched(history["log_norms"], count, step.norm, self.deviations, before, scales=scales)
        stretch = where(takes, stretch, before)
        seen = history | {"log_norms": log_norms, "count": count + takes, "stretch": stretch}
        if self._promises is None or step.loss is None or step.learning_rate is None:
            return seen
        return seen | self._promises.observe(history, step, step.loss)

    @property
    def _promises(self) -> PredictedDecrease | None:
        return None if self.largest_decrease is None else PredictedDecrease(self.largest_decrease)
