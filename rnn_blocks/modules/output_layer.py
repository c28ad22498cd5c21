"""The layer that turns features into words: a full softmax, or an adaptive one for large vocabularies."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rnn_blocks.cells.settled import computed, has_hooks
from rnn_blocks.checks import is_within
from rnn_blocks.modules.linear_cross_entropy import linear_cross_entropy, smoothing_term

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
    if not is_within(div_value, above=True) or features // div_value ** len(ends) < 1:
        raise ValueError(
            f"div_value must be above 0 and leave each of the {len(ends)} groups of rarer words a feature of the "
            f"{features}, got {div_value!r}"
        )
    return nn.AdaptiveLogSoftmaxWithLoss(features, vocab_size, ends, div_value)


def word_logits(output: OutputLayer, hidden: Tensor) -> Tensor:
    """``(…, features)`` to ``(…, vocab_size)``; log-probabilities where the softmax is adaptive."""
    if not isinstance(output, nn.AdaptiveLogSoftmaxWithLoss):
        logits: Tensor = output(hidden)
        return logits
    rows = hidden.reshape(-1, hidden.shape[-1]).to(_dtype_of(output))
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
    if not isinstance(output, nn.AdaptiveLogSoftmaxWithLoss):
        return word_losses(output, hidden, targets, ignore_index=ignore_index, smoothing=False)[0]
    counted = targets != ignore_index
    hidden, targets = hidden[counted], targets[counted]
    if len(targets) == 0:
        parts = (part[:0].sum().to(hidden.dtype) for part in (hidden, *output.parameters()))
        return sum(parts, hidden.new_full((), torch.nan))  # with a graph of them all
    # torch's module puts results of several dtypes into one tensor under autocast, and fails
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = output(hidden.to(_dtype_of(output)), targets).loss
    return loss


def word_losses(
    output: OutputLayer, hidden: Tensor, targets: Tensor, *, smoothing: bool, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy as :func:`word_loss` has it, and what label smoothing adds to it per unit of ε, or 0.

    The logits of a linear layer are never had as a whole, so it is not called as a module, but for one that has hooks
    or is linear in a way of its own.

    >>> output, hidden, targets = nn.Linear(3, 9), torch.randn(4, 3), torch.tensor([1, 8, 3, 0])
    >>> loss, extra = word_losses(output, hidden, targets, smoothing=True)
    >>> expected = cross_entropy(output(hidden), targets, label_smoothing=0.1)
    >>> torch.testing.assert_close(loss + 0.1 * extra, expected)
    """
    called = getattr(output.forward, "__func__", None)  # a subclass's, or what somebody has put on this layer alone
    if isinstance(output, nn.Linear) and called is nn.Linear.forward and not has_hooks(output):
        plain = computed(output)
        loss = linear_cross_entropy(hidden, plain.weight, plain.bias, targets, ignore_index=ignore_index)
        if not smoothing:
            return loss, torch.zeros_like(loss)
        return loss, smoothing_term(hidden, plain.weight, plain.bias, targets, ignore_index=ignore_index)
    counted = targets != ignore_index
    logits = output(torch.where(counted.unsqueeze(-1), hidden, 0.0))  # what does not count may be NaN
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = cross_entropy(logits, targets, ignore_index=ignore_index)
    if not smoothing:
        return loss, torch.zeros_like(loss)
    smoothed = cross_entropy(logits, targets, ignore_index=ignore_index, label_smoothing=1.0)
    return loss, smoothed - loss


def _dtype_of(output: nn.AdaptiveLogSoftmaxWithLoss) -> torch.dtype:
    return next(output.parameters()).dtype
