"""The score is a product."""

import torch
from torch import Tensor

from rnn_blocks.seq2seq.attention.attention import Attention


class DotAttention(Attention):
    """``score(q, k) = qᵀ k`` (Luong et al. 2015, eq. 8, "dot"): nothing to learn, and both of one size.

    Arguments are those of :class:`~rnn_blocks.Attention`.

    Raises:
        ValueError: where ``query_size`` and ``memory_size`` differ.

    >>> import torch
    >>> attention = DotAttention(4, 4)
    >>> context, weights = attention(torch.randn(2, 1, 4), attention.on(torch.randn(2, 5, 4)))
    >>> context.shape, weights.shape
    (torch.Size([2, 1, 4]), torch.Size([2, 1, 5]))
    """

    def __init__(self, query_size: int, memory_size: int, *, coverage: bool = False) -> None:
        if query_size != memory_size:
            raise ValueError(
                f"dot attention compares a query and a memory of one size, got query_size {query_size} and memory_size "
                f"{memory_size}; general attention takes any two"
            )
        super().__init__(query_size, memory_size, coverage=coverage)

    def scores(self, query: Tensor, keys: Tensor, coverage: Tensor | None) -> Tensor:
        """``qᵀ k``."""
        return self.covered(torch.bmm(query, keys.mT), coverage)
