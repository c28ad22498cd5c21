"""Norms that stand out of those before them."""

import math

import torch
from torch import Tensor

from rnn_blocks.callbacks.clipping.policies.policy import Clip

PRIOR_WEIGHT = 8.0
PRIOR_DEVIATION = 0.5
LATEST = 5
GROWTH, FIRST_GROWTH = 3.0, 1000.0  # times the latest norms; while there are fewer than `LATEST`, times all of them


def outlier_clip(log_norms: Tensor, count: Tensor, norm: Tensor, deviations: float) -> Clip:
    """`Auto`'s outlier rule.

    Args:
        log_norms: natural logarithms of norms, ``(window, *S)``, a ring, infinite where not yet filled.
        count: how many norms have been seen, S, int64; the next one's place is ``count % window``.
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
    early = count < LATEST
    latest = torch.where(early, median, _median_of_latest(log_norms, count))
    margin = early.to(sigma.dtype) * math.log(FIRST_GROWTH / GROWTH) + math.log(GROWTH)
    threshold = torch.maximum(median + deviations * sigma, latest + margin).exp()
    target = torch.maximum(median + deviations**2 * sigma / z, latest).exp()
    target = torch.where(norm > threshold, torch.minimum(target, threshold), threshold)
    unknown = count == 0
    return Clip(threshold.masked_fill(unknown, math.inf), target.masked_fill(unknown, math.inf))


def _median_of_latest(log_norms: Tensor, count: Tensor) -> Tensor:
    """Of the last five; of no meaning before there are as many."""
    number = min(LATEST, len(log_norms))
    back = torch.arange(1, number + 1, device=count.device).view(-1, *[1] * count.ndim)
    latest = log_norms.gather(0, (count - back) % len(log_norms))
    return latest.sort(dim=0).values[(number - 1) // 2]  # `median` is refused on a GPU under deterministic algorithms
