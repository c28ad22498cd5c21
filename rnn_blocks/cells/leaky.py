"""Leaky units."""

import math

import torch
from torch import Tensor, nn

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.wrapper import CellWrapper, first_state, with_output
from rnn_blocks.checks import is_within
from rnn_blocks.engine import State, hidden_of, with_hidden


class Leaky(CellWrapper):
    """Leaky units around any cell: a running average keeps what the cell's ``h`` has been for some ``τ`` steps.

    Jaeger et al. (2007), "Optimization and applications of echo state networks with leaky-integrator neurons"; units of
    several time scales are El Hihi & Bengio's (1996); Goodfellow et al., section 10.9.2. With ``h̃_t`` the inner cell's
    new ``h``::

        h_t = (1 - 1/τ) · h_{t-1} + 1/τ · h̃_t

    The average is over the state's first tensor, ``h``; what else the cell remembers is its own. ``τ = 1`` is the inner
    cell.

    Args:
        cell: any cell.
        time_constant: ``τ`` in steps, at least 1; or ``(shortest, longest)``, between which the units' own are spaced
            evenly on a logarithmic scale, the first unit's the shortest.
        learned: whether each unit's ``τ`` is a parameter, as ``1/τ = σ(a)``: it stays above 1, and so starts above 1.

    Raises:
        ValueError: for a time constant below 1 (or of 1, where it is learned), or a longest below the shortest.

    >>> import torch, rnn_blocks
    >>> cell = Leaky(rnn_blocks.LSTMCell(2, 3), time_constant=(1, 100))
    >>> cell.time_constants
    tensor([  1.,  10., 100.])
    >>> outputs, (h, c) = rnn_blocks.Recurrent(cell)(torch.randn(2, 7, 2))
    >>> torch.equal(h, outputs[:, -1])
    True
    """

    rates: Tensor
    rate_logits: nn.Parameter

    def __init__(self, cell: Cell, *, time_constant: float | tuple[float, float], learned: bool = False) -> None:
        super().__init__(cell)
        ends = tuple(time_constant) if isinstance(time_constant, tuple | list) else (time_constant,) * 2
        if len(ends) != 2 or not all(is_within(end, 1) for end in ends) or ends[0] > ends[1]:
            raise ValueError(
                f"time_constant must be at least 1 step, or (shortest, longest) of such, got {time_constant!r}"
            )
        shortest, longest = ends
        if learned and shortest == 1:
            raise ValueError(
                f"a learned time_constant must start above 1, which its parameter reaches only at infinity, "
                f"got {time_constant}"
            )
        self.shortest, self.longest = float(shortest), float(longest)
        self.learned = learned
        width = hidden_of(first_state(cell)).shape[-1]
        if learned:
            self.rate_logits = nn.Parameter(torch.empty(width))
        else:
            self.register_buffer("rates", torch.empty(width), persistent=False)  # the arguments say it all
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the time constants to those of the arguments."""
        target = self.rate_logits if self.learned else self.rates
        ends = math.log(self.shortest), math.log(self.longest)
        logs = torch.linspace(*ends, len(target), dtype=torch.float64, device=target.device)
        with torch.no_grad():
            target.copy_(-logs.expm1().log() if self.learned else (-logs).exp())

    @property
    def time_constants(self) -> Tensor:
        """Each unit's ``τ``, in steps."""
        return 1 / self._rates().detach()

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """The inner cell's step, and the average of its ``h``."""
        output, after = self.cell.advance(projected, state, hidden)
        h = hidden_of(state)
        h = h + self._rates() * (hidden_of(after) - h)
        return with_output(self.cell, output, after, with_hidden(after, h))

    def _rates(self) -> Tensor:
        return self.rate_logits.sigmoid() if self.learned else self.rates

    def extra_repr(self) -> str:
        """The time constants that the arguments set."""
        ends = self.shortest if self.shortest == self.longest else (self.shortest, self.longest)
        return f"time_constant={ends}, learned={self.learned}"
