"""The minimal gated recurrent unit."""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from rnn_blocks.cells.linear_cell import LinearCell
from rnn_blocks.engine import State, input_product

Candidate: TypeAlias = Literal["identity", "positive"]
CANDIDATES: tuple[Candidate, ...] = ("identity", "positive")


class MinimalCell(LinearCell):
    """What the minimal cells share: gates and candidate are ``W x + b``, stacked gate by gate.

    The weights start uniform within ``±1/√input_size``, since no other product adds to theirs.

    Args:
        input_size: features of each input.
        hidden_size: features of the state and of each output.
        num_gates: how many blocks of ``hidden_size`` rows the weights hold, the candidate's last.
        candidate: what is made of the candidate: ``"identity"`` nothing, ``"positive"`` :func:`positive`.

    Raises:
        ValueError: for another ``candidate``.

    >>> MinimalCell(2, 3, num_gates=2).weight_ih.shape
    torch.Size([6, 2])
    """

    def __init__(self, input_size: int, hidden_size: int, *, num_gates: int, candidate: Candidate = "identity") -> None:
        super().__init__(input_size, hidden_size)
        if candidate not in CANDIDATES:
            raise ValueError(f"candidate must be one of {', '.join(map(repr, CANDIDATES))}, got {candidate!r}")
        self.num_gates = num_gates
        self.candidate = candidate
        self.weight_ih = nn.Parameter(torch.empty(num_gates * hidden_size, input_size))
        self.bias = nn.Parameter(torch.empty(num_gates * hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        bound = 1 / math.sqrt(self.input_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def project(self, inputs: Tensor) -> Tensor:
        """``W x + b`` for all steps in one product: ``(time, batch, gates * hidden_size)``."""
        return input_product(inputs, self.weight_ih, self.bias)

    def extra_repr(self) -> str:
        """The sizes, and the candidate where it is not the default."""
        return super().extra_repr() + ("" if self.candidate == "identity" else f", candidate={self.candidate!r}")

    def _activated(self, candidate: Tensor) -> Tensor:
        return positive(candidate) if self.candidate == "positive" else candidate


class MinGRUCell(MinimalCell):
    """The minimal gated recurrent unit of Feng et al. (2024), "Were RNNs all we needed?", section 3.1.

    A GRU whose gate and candidate see the input alone. With ``z, n = W x_t + b``, cut into two::

        h_t = (1 - σ(z)) · h_{t-1} + σ(z) · n

    In linear space, where states may be of either sign; the paper's log space needs positive candidates, which are
    ``candidate="positive"`` here: in the place of ``n``, ``g(n) = n + 0.5`` from zero up and ``σ(n)`` below.

    Args:
        input_size: features of each input.
        hidden_size: features of the state ``h``, which is also the output.
        candidate: ``"identity"`` or ``"positive"``.

    Raises:
        ValueError: for another ``candidate``.

    >>> output, h = MinGRUCell(2, 3)(torch.ones(5, 2))
    >>> output.shape
    torch.Size([5, 3])
    """

    gate_names = ("z", "n")

    def __init__(self, input_size: int, hidden_size: int, *, candidate: Candidate = "identity") -> None:
        super().__init__(input_size, hidden_size, num_gates=2, candidate=candidate)

    def coefficients(self, projected: State) -> tuple[Tensor, Tensor]:
        """``(…, 2 * hidden_size)`` to ``1 - z`` and ``z · n``."""
        assert isinstance(projected, Tensor)
        z, n = projected.chunk(2, dim=-1)
        z = z.sigmoid()
        return 1 - z, z * self._activated(n)


def positive(x: Tensor) -> Tensor:
    """The candidate activation of Feng et al. (2024), appendix B.1: ``x + 0.5`` from zero up, ``σ(x)`` below.

    >>> positive(torch.tensor([-100.0, 0.0, 2.0])).tolist()
    [0.0, 0.5, 2.5]
    """
    return torch.where(x >= 0, x + 0.5, x.sigmoid())
