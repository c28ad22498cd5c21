"""The score is a product after a learned map."""

import torch
from torch import Tensor, nn

from rnn_blocks.seq2seq.attention.attention import Attention


class GeneralAttention(Attention):
    """``score(q, h) = qᵀ W h`` (Luong et al. 2015, eq. 8, "general"). ``W h`` is had once a sequence.

    Arguments are those of :class:`~rnn_blocks.Attention`.

    >>> import torch
    >>> attention = GeneralAttention(3, 4)
    >>> context, weights = attention(torch.randn(2, 1, 3), attention.on(torch.randn(2, 5, 4)))
    >>> context.shape, weights.shape
    (torch.Size([2, 1, 4]), torch.Size([2, 1, 5]))
    """

    def __init__(self, query_size: int, memory_size: int, *, coverage: bool = False) -> None:
        super().__init__(query_size, memory_size, coverage=coverage)
        self.key_layer = nn.Linear(memory_size, query_size, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """``W h``."""
        keys: Tensor = self.key_layer(values)
        return keys

    def scores(self, query: Tensor, keys: Tensor, coverage: Tensor | None) -> Tensor:
        """``qᵀ (W h)``."""
        return self.covered(torch.bmm(query, keys.mT), coverage)
