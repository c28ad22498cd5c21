"""The score is a small network of one hidden layer."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rnn_blocks.checks import whole
from rnn_blocks.seq2seq.attention.attention import Attention


class AdditiveAttention(Attention):
    """``score(q, h) = vᵀ tanh(W q + U h + b)`` (Bahdanau et al. 2015, appendix A.1.2, with the bias left out there).

    ``U h + b`` is had once a sequence, ``W q`` once a step. With ``coverage`` ``c``, ``w c`` is added inside the tanh
    (Tu et al. 2016, eq. 6; See et al. 2017, eq. 11).

    As ``tanh(x) = 2 σ(2x) - 1``, and weights stay the same where all scores are shifted alike, what is reckoned is
    ``2 vᵀ σ(2 W q + 2 (U h + b))``: on a CPU torch has ``σ`` in a third of the time of ``tanh``, and that is most of
    what a step takes.

    Args:
        query_size: features of a query.
        memory_size: features of what is attended to.
        attention_size: features inside the tanh; by default ``query_size``.
        coverage: see :class:`~rnn_blocks.Attention`.

    Raises:
        ValueError: where a size is not positive.

    >>> import torch
    >>> attention = AdditiveAttention(3, 4, attention_size=8)
    >>> context, weights = attention(torch.randn(2, 1, 3), attention.on(torch.randn(2, 5, 4)))
    >>> context.shape, weights.shape
    (torch.Size([2, 1, 4]), torch.Size([2, 1, 5]))
    """

    key_bias = True

    def __init__(
        self, query_size: int, memory_size: int, *, attention_size: int | None = None, coverage: bool = False
    ) -> None:
        super().__init__(query_size, memory_size, coverage=coverage)
        size = query_size if attention_size is None else attention_size
        whole("attention_size", size)
        self.attention_size = size
        self.query_layer = nn.Linear(query_size, size, bias=False)
        self.key_layer = nn.Linear(memory_size, size, bias=self.key_bias)
        self.v = nn.Parameter(torch.empty(size))
        if coverage:
            self.coverage_weight = nn.Parameter(torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: uniform, within one over the root of the features that a sum is over."""
        self.query_layer.reset_parameters()
        self.key_layer.reset_parameters()
        bound = 1 / math.sqrt(self.attention_size)
        nn.init.uniform_(self.v, -bound, bound)
        if self.coverage_weight is not None:
            nn.init.uniform_(self.coverage_weight, -bound, bound)

    def keys(self, values: Tensor) -> Tensor:
        """``2 U h + 2 b``."""
        keys: Tensor = 2 * self.key_layer(values)
        return keys

    def scores(self, query: Tensor, keys: Tensor, coverage: Tensor | None) -> Tensor:
        """``vᵀ tanh(W q + U h + b)``, and for all alike the sum of ``v`` more."""
        inside = 2 * self.query_layer(query).unsqueeze(2) + keys.unsqueeze(1)  # (batch, target, source, attention)
        if coverage is not None:
            weight = self.coverage_weight
            assert weight is not None
            inside = inside + coverage.unsqueeze(-1) * (2 * weight)
        return linear(inside.sigmoid(), 2 * self.v.unsqueeze(0)).squeeze(-1)
