"""Skip connections through time."""

import torch
from torch import Tensor, nn

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.wrapper import CellWrapper, first_state
from rnn_blocks.checks import whole
from rnn_blocks.engine import State, hidden_of


class SkipThroughTime(CellWrapper):
    """A skip connection through time around any cell: the ``h`` of ``d`` steps back joins the previous one.

    Lin et al. (1996), "Learning long-term dependencies in NARX recurrent neural networks"; Goodfellow et al., section
    10.9.1: gradients then pass ``T`` steps back in ``T/d`` factors as well as in ``T``. The recurrent connections
    read::

        h_{t-1} + s · h_{t-d}

    with ``s`` a learned strength of each unit. Both go through the same recurrent weights, so there is no further
    product. What the cell remembers is not touched (:meth:`~rnn_blocks.Cell.advance`). Before the sequence ``h`` is
    taken to have been what it starts from.

    The state is ``(the inner cell's, (h_{t-2}, …, h_{t-d}))``; the older ones are handed on without a copy. Dropout
    on both paths is ``SkipThroughTime(RecurrentDropout(cell))``; the other way round it is on ``h_{t-1}`` alone.

    Args:
        cell: any cell.
        delay: ``d`` in steps, at least 2.
        strength: what each ``s`` starts from. With recurrent weights as torch draws them, which shorten ``h`` by 0.58 a
            step, the default makes that 0.87 for an ``h`` that stays: a longer memory that still fades.

    Raises:
        ValueError: for a delay below 2.

    >>> import torch, rnn_blocks
    >>> cell = SkipThroughTime(rnn_blocks.GRUCell(2, 3), delay=4)
    >>> outputs, (h, history) = rnn_blocks.Recurrent(cell)(torch.randn(1, 7, 2))
    >>> torch.equal(torch.stack((h, *history)), outputs[0, [6, 5, 4, 3], None])
    True
    """

    keeps_state = True

    def __init__(self, cell: Cell, *, delay: int, strength: float = 0.5) -> None:
        super().__init__(cell)
        self.delay = whole("delay", delay, 2, " steps (the cell reads 1 step back itself)")
        self.initial_strength = strength
        self.strength = nn.Parameter(torch.empty(hidden_of(first_state(cell)).shape[-1]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the strengths to what they start from."""
        nn.init.constant_(self.strength, self.initial_strength)

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """The inner cell's step, reading what is ``d`` steps back as well."""
        inner, history = state
        assert isinstance(history, tuple)
        output, after = self.cell.advance(projected, inner, hidden + self.strength * hidden_of(history[-1]))
        return output, (after, (hidden_of(inner), *history[:-1]))

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """The inner cell's, and its ``h`` as all there was before."""
        inner = self.cell.initial_state(batch_size, like)
        return inner, (hidden_of(inner),) * (self.delay - 1)

    def extra_repr(self) -> str:
        """The delay."""
        return f"delay={self.delay}"
