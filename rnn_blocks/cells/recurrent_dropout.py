"""Dropout of what recurrent connections read, the same at all steps."""

import torch
from torch import Tensor

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.wrapper import CellWrapper
from rnn_blocks.checks import number
from rnn_blocks.engine import State, hidden_of


class RecurrentDropout(CellWrapper):
    """Variational dropout around any cell: recurrent connections read ``h`` through one mask for the whole sequence.

    Gal & Ghahramani (2016), "A theoretically grounded application of dropout in recurrent neural networks", with the
    gates sharing the mask. In training, with noise ``u`` uniform in [0, 1) for each unit of each sequence, they
    read::

        h_{t-1} · [u ≥ p] / (1 - p)

    and in evaluation ``h_{t-1}`` itself. What the cell remembers is not touched (:meth:`~rnn_blocks.Cell.advance`).

    The state is ``(the inner cell's, u)``: the mask goes with the sequence from one chunk to the next, and a sequence
    that starts afresh gets another. Noise is drawn in evaluation too, so that a state fits either mode. All the
    sequences that start afresh within one call, at whatever step, start from one draw, each from its own row of it.

    Args:
        cell: any cell.
        p: the part of the units that is not read.
        each_call: draw new noise at each call in training, so at each chunk of a truncated BPTT, in place of the
            state's: a mask that goes with a stream for a whole epoch would train each lane on one part of the units.
            Every step read by itself is a call.

    Raises:
        ValueError: for a ``p`` outside of [0, 1).

    >>> import torch, rnn_blocks
    >>> cell = RecurrentDropout(rnn_blocks.GRUCell(2, 3), p=0.5)
    >>> outputs, (h, noise) = rnn_blocks.Recurrent(cell)(torch.randn(5, 7, 2))
    >>> noise.shape
    torch.Size([5, 3])
    """

    keeps_state = True

    def __init__(self, cell: Cell, p: float, *, each_call: bool = False) -> None:
        super().__init__(cell)
        number("p", p, high=1)
        self.p = p
        self.each_call = each_call

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """The inner cell's step, reading through the mask."""
        inner, noise = state
        assert isinstance(noise, Tensor)
        if self.training and self.p:
            hidden = hidden * ((noise >= self.p).to(noise.dtype) / (1 - self.p))  # the mask: once a sequence
        output, after = self.cell.advance(projected, inner, hidden)
        return output, (after, noise)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """The inner cell's, and noise ``(batch, units)``."""
        inner = self.cell.initial_state(batch_size, like)
        return inner, torch.rand(hidden_of(inner).shape, dtype=like.dtype, device=like.device)

    def begin(self, state: State) -> State:
        """The inner cell's; with ``each_call``, and in training, with new noise."""
        inner, noise = super().begin(state)
        assert isinstance(noise, Tensor)
        return inner, torch.rand_like(noise) if self.each_call and self.training else noise

    def extra_repr(self) -> str:
        """The probability, and whether each call draws anew."""
        return f"p={self.p}" + (", each_call=True" if self.each_call else "")
