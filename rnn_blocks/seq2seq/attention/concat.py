"""The score of a query and a memory side by side."""

import math

from torch import nn

from rnn_blocks.seq2seq.attention.additive import AdditiveAttention


class ConcatAttention(AdditiveAttention):
    """``score(q, h) = vᵀ tanh(W [q; h])`` (Luong et al. 2015, eq. 8, "concat").

    With ``W`` cut in two it is :class:`~rnn_blocks.AdditiveAttention`'s score, and is had in the same way. They differ
    in that there is no bias here, and that ``W`` starts as the one matrix that it is: within one over the root of
    ``query_size + memory_size``.

    Arguments are those of :class:`~rnn_blocks.AdditiveAttention`.

    >>> import torch
    >>> attention = ConcatAttention(3, 4)
    >>> context, weights = attention(torch.randn(2, 1, 3), attention.on(torch.randn(2, 5, 4)))
    >>> context.shape, weights.shape
    (torch.Size([2, 1, 4]), torch.Size([2, 1, 5]))
    """

    key_bias = False

    def reset_parameters(self) -> None:
        """Draw the weights anew, both parts of ``W`` as those of one matrix."""
        super().reset_parameters()
        bound = 1 / math.sqrt(self.query_size + self.memory_size)
        for part in (self.query_layer, self.key_layer):
            nn.init.uniform_(part.weight, -bound, bound)
