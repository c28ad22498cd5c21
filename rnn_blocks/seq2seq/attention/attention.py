"""The face of every attention: what is projected once a sequence, and what is done at each step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnn_blocks.checks import whole
from rnn_blocks.engine import State, state_tensors
from rnn_blocks.layers.layer import checked_lengths


class Memory(NamedTuple):
    """What an attention looks at, projected once a sequence. It is passed, never kept on the attention.

    >>> import torch, rnn_blocks
    >>> memory = rnn_blocks.DotAttention(4, 4).on(torch.randn(2, 3, 4), torch.tensor([3, 1]))
    >>> memory.keys.shape, (memory.bias == 0).tolist()
    (torch.Size([2, 3, 4]), [[True, True, True], [True, False, False]])
    """

    keys: Tensor
    """What queries are compared with: ``(batch, source, features)``, or with heads before the source."""

    values: Tensor
    """What is averaged, zero past each length: ``(batch, source, features)``, or with heads before the source."""

    bias: Tensor
    """``(batch, source)``: 0 where a position counts, and a finite number low enough to leave no weight past it."""


class Attention(nn.Module):
    """Where to look: a weighted mean of a sequence, with weights that a query decides (Bahdanau et al. 2015, eq. 5-6).

    With ``k_j`` and ``v_j`` the keys and values of position ``j``, and ``q_i`` the query of target ``i``::

        a_ij = exp(score(q_i, k_j)) / Σ_j' exp(score(q_i, k_j'))
        context_i = Σ_j a_ij v_j

    An attention of your own needs :meth:`scores`, and :meth:`keys` where they are not the values themselves.

    Args:
        query_size: features of a query.
        memory_size: features of what is attended to.
        coverage: whether the score sees how much weight a position has had so far (Tu et al. 2016), so that what was
            translated is left alone, and what was not is not forgotten. The score gets a learned number times it,
            which starts at 0, unless the kind of attention says otherwise.

    Raises:
        ValueError: where a size is not positive, or ``coverage`` neither True nor False.

    >>> import torch
    >>> class Distance(Attention):
    ...     def scores(self, query, keys, coverage):
    ...         return self.covered(-torch.cdist(query, keys), coverage)
    >>> attention = Distance(4, 4)
    >>> memory = attention.on(torch.randn(2, 5, 4), torch.tensor([5, 0]))
    >>> context, weights = attention(torch.randn(2, 3, 4), memory)
    >>> context.shape, weights.sum(-1).round(decimals=3).tolist()
    (torch.Size([2, 3, 4]), [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    """

    def __init__(self, query_size: int, memory_size: int, *, coverage: bool = False) -> None:
        super().__init__()
        self.query_size = whole("query_size", query_size)
        self.memory_size = self.output_size = whole("memory_size", memory_size)
        if not isinstance(coverage, bool):
            raise ValueError(f"coverage must be True or False, got {coverage!r}")
        self.coverage = coverage
        self.coverage_weight = nn.Parameter(torch.zeros(())) if coverage else None

    def keys(self, values: Tensor) -> Tensor:
        """What queries are compared with, of values ``(batch, source, memory_size)``; by default they themselves."""
        return values

    def scores(self, query: Tensor, keys: Tensor, coverage: Tensor | None) -> Tensor:
        """How well each query fits each key: ``(batch, target, source)``, the more the better."""
        raise NotImplementedError(f"{type(self).__name__} needs a `scores(query, keys, coverage)`")

    def covered(self, scores: Tensor, coverage: Tensor | None) -> Tensor:
        """The scores with a learned number times the coverage added, if there is one."""
        if coverage is None:
            return scores
        weight = self.coverage_weight
        assert weight is not None
        return scores + weight * coverage

    def on(self, values: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Memory:
        """All that can be done once for a sequence, whatever the queries.

        Args:
            values: ``(batch, source, memory_size)``; what is past a length is not looked at, whatever it holds.
            lengths: positions that count in each sequence, ``(batch,)``, zeros allowed; by default all.

        Raises:
            ValueError: where a shape does not fit, or (on a CPU) a length is negative or beyond the source.
        """
        if values.dim() != 3 or values.shape[-1] != self.memory_size:
            raise ValueError(
                f"values must be (batch, source, memory_size) with memory_size {self.memory_size}, "
                f"got a tensor of shape {tuple(values.shape)}"
            )
        batch, source = values.shape[:2]
        if lengths is None:
            bias = values.new_zeros(batch, source)
        else:
            lengths = checked_lengths(lengths, source, batch, values.device)
            past = torch.arange(source, device=values.device) >= lengths[:, None]  # (batch, source)
            # half the lowest number: a score added to it stays finite, and a sequence of length 0 has no NaN
            bias = values.new_zeros(batch, source).masked_fill(past, torch.finfo(values.dtype).min / 2)
            values = values.masked_fill(past.unsqueeze(-1), 0.0)  # a weight of 0 would not stop an infinity
        return self._memory(values.contiguous(), bias)

    def _memory(self, values: Tensor, bias: Tensor) -> Memory:
        return Memory(self.keys(values), values, bias)

    def forward(self, query: Tensor, memory: State, coverage: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Look at the memory, once for each query.

        Args:
            query: ``(batch, target, query_size)``: a step of a decoder, all of its steps, or a beam's hypotheses.
            memory: what :meth:`on` gave.
            coverage: ``(batch, target, source)``, the sum of the weights of all steps before; needed where the
                attention has ``coverage``, and only there.

        Returns:
            The context, ``(batch, target, output_size)``, and the weights, ``(batch, target, source)``: they sum to 1,
            and are 0 past each length. A sequence of length 0 gets zeros alone.

        Raises:
            ValueError: where a shape does not fit, or the coverage is missing or not asked for.
        """
        keys, values, bias = state_tensors(memory)
        self._check(query, bias, coverage)
        weights = masked_softmax(self.scores(query, keys, coverage), bias)
        return torch.bmm(weights.to(values.dtype), values), weights

    def extra_repr(self) -> str:
        """The sizes, and whether there is coverage."""
        return f"{self.query_size}, {self.memory_size}" + (", coverage=True" if self.coverage else "")

    def _check(self, query: Tensor, bias: Tensor, coverage: Tensor | None) -> None:
        if query.dim() != 3 or query.shape[-1] != self.query_size or query.shape[0] != bias.shape[0]:
            raise ValueError(
                f"query must be (batch, target, query_size) for {bias.shape[0]} sequences with query_size "
                f"{self.query_size}, got a tensor of shape {tuple(query.shape)}"
            )
        if (coverage is not None) != self.coverage:
            asked = "needs the sum of the weights so far as coverage" if self.coverage else "was made without coverage"
            raise ValueError(
                f"this {type(self).__name__} {asked}, got {'none' if coverage is None else tuple(coverage.shape)}"
            )
        shape = (*query.shape[:2], bias.shape[1])
        if coverage is not None and coverage.shape != shape:
            raise ValueError(f"coverage must be (batch, target, source), {shape} here, got {tuple(coverage.shape)}")


def masked_softmax(scores: Tensor, bias: Tensor) -> Tensor:
    """Weights that sum to 1 and are exactly 0 where ``bias`` is low; all of them 0 where it is low everywhere.

    Args:
        scores: ``(batch, target, source)``.
        bias: ``(batch, source)``, see :class:`Memory`.

    >>> import torch
    >>> low = torch.finfo(torch.float32).min / 2
    >>> masked_softmax(torch.zeros(2, 1, 2), torch.tensor([[0.0, 0.0], [low, low]])).tolist()
    [[[0.5, 0.5]], [[0.0, 0.0]]]
    """
    bias = bias.unsqueeze(1)  # (batch, 1, source)
    return torch.softmax(scores + bias, dim=-1) * bias.exp()  # exactly 1 or 0
