"""Several places to look at, at a time."""

import math

import torch
from torch import Tensor, nn

from rnn_blocks.engine import State, state_tensors
from rnn_blocks.seq2seq.attention.attention import Attention, Memory, masked_softmax


class MultiHeadAttention(Attention):
    """Several products side by side, each after learned maps of its own (Vaswani et al. 2017, section 3.2.2).

    With ``q`` a query and ``h`` what is attended to::

        head_i = softmax(Q_i K_iᵀ / √d) V_i    with Q_i = q W_i^Q, K_i = h W_i^K, V_i = h W_i^V
        context = [head_1; …; head_n] W^O

    ``d`` is ``query_size / num_heads``; ``K`` and ``V`` are had once a sequence. The context has ``query_size``
    features, and no map has a bias. The weights handed out are the mean over the heads. With ``coverage``, which is the
    sum of those, each head has a number of its own for it.

    Args:
        query_size: features of a query, and of the context.
        memory_size: features of what is attended to.
        num_heads: how many products.
        coverage: see :class:`~rnn_blocks.Attention`.

    Raises:
        ValueError: where ``num_heads`` does not divide ``query_size``, or a size is not positive.

    >>> import torch
    >>> attention = MultiHeadAttention(8, 4, num_heads=2)
    >>> context, weights = attention(torch.randn(2, 1, 8), attention.on(torch.randn(2, 5, 4)))
    >>> context.shape, weights.shape
    (torch.Size([2, 1, 8]), torch.Size([2, 1, 5]))
    """

    def __init__(self, query_size: int, memory_size: int, *, num_heads: int = 4, coverage: bool = False) -> None:
        super().__init__(query_size, memory_size, coverage=coverage)
        if num_heads < 1 or query_size % num_heads:
            raise ValueError(f"num_heads must divide query_size {query_size} evenly, got {num_heads}")
        self.output_size = query_size
        self.num_heads = num_heads
        self.query_layer = nn.Linear(query_size, query_size, bias=False)
        self.key_layer = nn.Linear(memory_size, query_size, bias=False)
        self.value_layer = nn.Linear(memory_size, query_size, bias=False)
        self.output_layer = nn.Linear(query_size, query_size, bias=False)
        if coverage:
            self.coverage_weight = nn.Parameter(torch.zeros(num_heads, 1, 1))

    def _heads(self, features: Tensor) -> Tensor:
        """``(batch, steps, query_size)`` to ``(batch, heads, steps, query_size / heads)``."""
        heads: Tensor = features.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads

    def _memory(self, values: Tensor, bias: Tensor) -> Memory:
        # scaled here, once a sequence
        keys = self._heads(self.key_layer(values)) / math.sqrt(self.query_size // self.num_heads)
        return Memory(keys.contiguous(), self._heads(self.value_layer(values)).contiguous(), bias)

    def scores(self, query: Tensor, keys: Tensor, coverage: Tensor | None) -> Tensor:
        """``(batch, heads, target, source)``."""
        products = self._heads(self.query_layer(query)) @ keys.mT
        return self.covered(products, None if coverage is None else coverage.unsqueeze(1))

    def forward(self, query: Tensor, memory: State, coverage: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`rnn_blocks.Attention.forward`."""
        keys, values, bias = state_tensors(memory)
        self._check(query, bias, coverage)
        weights = masked_softmax(self.scores(query, keys, coverage), bias.unsqueeze(1))
        context = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)  # (batch, target, query_size)
        return self.output_layer(context), weights.mean(1)
