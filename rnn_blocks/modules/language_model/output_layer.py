"""The layer that turns features into words: a full softmax, or an adaptive one for large vocabularies."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rnn_blocks.modules.linear_cross_entropy import linear_cross_entropy

OutputLayer = nn.Module
"""`torch.nn.Linear`, what stands in its place (a quantised one), or `torch.nn.AdaptiveLogSoftmaxWithLoss`."""


def adaptive_softmax(
    features: int, vocab_size: int, cutoffs: Sequence[int], div_value: float
) -> nn.AdaptiveLogSoftmaxWithLoss:
    """Torch's adaptive softmax, Grave et al. (2017), "Efficient softmax approximation for GPUs", its numbers checked.

    Args:
        features: of the hidden states.
        vocab_size: how many words there are, the most frequent first.
        cutoffs: where one group of words ends and the next begins, ascending; the last group ends the vocabulary.
        div_value: each group has ``features / div_value^k`` features, the first ``k = 0``.

    Raises:
        ValueError: for cutoffs that do not ascend within the vocabulary, or a ``div_value`` that leaves no feature.

    >>> output = adaptive_softmax(8, 100, [10, 40], 2.0)
    >>> torch.testing.assert_close(output.log_prob(torch.randn(3, 8)).exp().sum(-1), torch.ones(3))
    """
    ends = list(cutoffs)
    if not ends or ends != sorted(set(ends)) or ends[0] < 1 or ends[-1] >= vocab_size:
        raise ValueError(
            f"cutoffs must ascend from at least 1 to at most {vocab_size - 1}, one less than the vocabulary of "
            f"{vocab_size}, got {ends}"
        )
    if not 0 < div_value < math.inf or features // div_value ** len(ends) < 1:
        raise ValueError(
            f"div_value must be above 0 and leave each of the {len(ends)} groups of rarer words a feature of the "
            f"{features}, got {div_value}"
        )
    return nn.AdaptiveLogSoftmaxWithLoss(features, vocab_size, ends, div_value)


def word_logits(output: OutputLayer, hidden: Tensor) -> Tensor:
    """``(…, features)`` to ``(…, vocab_size)``; log-probabilities where the softmax is adaptive."""
    if not isinstance(output, nn.AdaptiveLogSoftmaxWithLoss):
        logits: Tensor = output(hidden)
        return logits
    rows = hidden.reshape(-1, hidden.shape[-1]).to(output.head.weight.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        log_probs: Tensor = output.log_prob(rows)
    return log_probs.view(*hidden.shape[:-1], -1)


def word_loss(output: OutputLayer, hidden: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Mean cross-entropy of the rows whose target counts, in nats; ``nan`` where none does.

    Args:
        output: the layer.
        hidden: ``(rows, features)``.
        targets: ids, ``(rows,)``; ``ignore_index`` where a row does not count.
        ignore_index: the target that does not count.
    """
    if isinstance(output, nn.Linear):
        return linear_cross_entropy(hidden, output.weight, output.bias, targets, ignore_index=ignore_index)
    if not isinstance(output, nn.AdaptiveLogSoftmaxWithLoss):
        return cross_entropy(output(hidden).float(), targets, ignore_index=ignore_index)
    counted = targets != ignore_index
    hidden, targets = hidden[counted], targets[counted]
    if len(targets) == 0:
        return hidden.sum() * torch.nan
    # torch's module puts results of several dtypes into one tensor under autocast, and fails
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = output(hidden.to(output.head.weight.dtype), targets).loss
    return loss
