"""Norms that stand out of those before them."""

import math

import torch
from torch import Tensor

from rnn_blocks.callbacks.clipping.policies.policy import Clip, History
from rnn_blocks.callbacks.measuring.numbers import (
    Number,
    clamped,
    exponential,
    logarithm,
    lower_median,
    maximum,
    minimum,
    root,
    where,
)

PRIOR_WEIGHT = 8.0
PRIOR_DEVIATION = 0.5
LATEST = 5
GROWTH, ADAPTIVE_GROWTH = 3.0, 10.0  # times the latest norms, by whether the update scales with the gradient
FIRST_GROWTH = 1000.0  # while there are fewer than `LATEST`, times all of them
RARE = 0.01  # the share of steps that may be outliers for long
STRETCH = 0.25  # what the logarithm of the threshold rises by at an outlier


def outlier_clip(
    log_norms: Number, count: Number, norm: Number, deviations: float, stretch: Number, *, scales: bool
) -> Clip:
    """`Auto`'s outlier rule, of tensors or numbers.

    Args:
        log_norms: natural logarithms of norms, ``(window, *S)``, a ring, infinite where not yet filled.
        count: how many norms have been seen, S, int64; the next one's place is ``count % window``.
        norm: norm of this step, S.
        deviations: k.
        stretch: by what the logarithm of the threshold is raised, S: see :func:`stretched`.
        scales: whether the update scales with the gradient. Adam's second moment, of a thousand steps, grows by a tenth
            at a gradient of ten times the usual length, and its update is no longer than usual: that needs no clipping.
    """
    threshold, target, *_ = _outlier_clip(log_norms, count, norm, deviations, GROWTH if scales else ADAPTIVE_GROWTH)
    threshold = threshold * exponential(stretch)
    return Clip(threshold, where(norm > threshold, target, threshold))


def stretched(
    log_norms: Number, count: Number, norm: Number, deviations: float, stretch: Number, *, scales: bool
) -> Number:
    """The stretch after a step: what keeps coming back is no outlier.

    It rises at each outlier and falls at each other step, so that no more than one step in a hundred stays an outlier
    for long: a quantile found by stochastic approximation (Robbins and Monro 1951).
    """
    falls = clamped(stretch - RARE * STRETCH, low=0.0)
    if not isinstance(norm, Tensor) and count >= LATEST:
        latest = _median_of_latest(log_norms, count)
        if logarithm(norm) < latest + stretch + 1.0:  # as at most steps: the other medians are not needed
            return falls
    threshold = outlier_clip(log_norms, count, norm, deviations, stretch, scales=scales).threshold
    return where(norm > threshold, stretch + (1 - RARE) * STRETCH, falls)


def stretch_so_far(history: History) -> Number:
    """The stretch; 0 in histories of before there was any."""
    return history["stretch"] if "stretch" in history else history["count"] * 0.0


def _outlier_clip(log_norms: Number, count: Number, norm: Number, deviations: float, growth: float) -> Clip:
    filled = clamped(count, high=len(log_norms))
    median = lower_median(log_norms, filled)
    # Infinity less a finite median sorts last again, so the median's place is the same here.
    deviation = 1.4826 * lower_median(_distances(log_norms, median), filled)
    variance = (filled * (deviation * deviation) + PRIOR_WEIGHT * PRIOR_DEVIATION**2) / (filled + PRIOR_WEIGHT)
    sigma = root(variance)
    z = clamped((logarithm(norm) - median) / sigma, low=deviations)
    early = count < LATEST
    latest = where(early, median, _median_of_latest(log_norms, count))
    grown = where(early, latest + math.log(FIRST_GROWTH), latest + math.log(growth))
    threshold = exponential(maximum(median + deviations * sigma, grown))
    target = exponential(maximum(median + deviations**2 * sigma / z, latest))
    target = where(norm > threshold, minimum(target, threshold), threshold)
    known = count > 0
    return Clip(where(known, threshold, math.inf), where(known, target, math.inf))


def _distances(values: Number, middle: Number) -> Number:
    return (values - middle).abs() if isinstance(values, Tensor) else [abs(value - middle) for value in values]


def _median_of_latest(log_norms: Number, count: Number) -> Number:
    """Of the last five; of no meaning before there are as many."""
    number = min(LATEST, len(log_norms))
    if not isinstance(log_norms, Tensor):
        return sorted(log_norms[(count - back) % len(log_norms)] for back in range(1, number + 1))[(number - 1) // 2]
    back = torch.arange(1, number + 1, device=count.device).view(-1, *[1] * count.ndim)
    latest = log_norms.gather(0, (count - back) % len(log_norms))
    return latest.sort(dim=0).values[(number - 1) // 2]  # `median` is refused on a GPU under deterministic algorithms
