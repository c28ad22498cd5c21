"""The Mogrifier: input and state gate each other before the cell sees them."""

from torch import Tensor, nn

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.wrapper import CellWrapper, real_units
from rnn_blocks.checks import whole
from rnn_blocks.engine import State


class Mogrifier(CellWrapper):
    """A Mogrifier around any cell: ``x_t`` and ``h_{t-1}`` scale each other, by turns, before the cell reads them.

    Melis, Kočiský & Blunsom (2020), "Mogrifier LSTM", section 2. With ``x⁻¹ = x_t`` and ``h⁰ = h_{t-1}``::

        xⁱ = 2σ(Qⁱ hⁱ⁻¹ + qⁱ) · xⁱ⁻²    for odd i of 1 … rounds
        hⁱ = 2σ(Rⁱ xⁱ⁻¹ + rⁱ) · hⁱ⁻²    for even i

    and the cell is given the last of each. The biases ``q`` and ``r``, zero at first, are those of the authors' own
    code. What the cell remembers is not touched (:meth:`~rnn_blocks.Cell.advance`); no rounds are the inner cell. As
    the input depends on the state, the cell's product with it is made at each step, not for all steps at once.

    Args:
        cell: any cell with a real ``h``.
        rounds: how many scalings, ``x_t``'s first; the paper's models have five or six.
        rank: of each matrix, as a product of two, ``Q = Q_left Q_right``; by default full. The paper's model of the
            Penn Treebank has 84.

    Raises:
        ValueError: for a negative number of rounds, a rank below 1, or a cell with a complex ``h``.

    >>> import torch, rnn_blocks
    >>> cell = Mogrifier(rnn_blocks.LSTMCell(3, 4), rounds=5, rank=2)
    >>> outputs, (h, c) = rnn_blocks.Recurrent(cell)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(self, cell: Cell, *, rounds: int = 5, rank: int | None = None) -> None:
        super().__init__(cell)
        self.rounds = whole("rounds", rounds, 0)
        self.rank = None if rank is None else whole("rank", rank, 1, ", or None for full matrices")
        sizes = (real_units(cell, "Mogrifier"), cell.input_size)
        self.scalings = nn.ModuleList(_affine(*(sizes if i % 2 == 0 else sizes[::-1]), rank) for i in range(rounds))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, as ``torch.nn.Linear`` does, and set the biases to zero."""
        for part in self.scalings.modules():
            if isinstance(part, nn.Linear):
                part.reset_parameters()
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def project(self, inputs: Tensor) -> State:
        """The inputs themselves: what the inner cell makes of them depends on the state."""
        return inputs

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """The rounds, and the inner cell's step with what they leave."""
        assert isinstance(projected, Tensor)
        x = projected
        for i, scaling in enumerate(self.scalings):
            if i % 2 == 0:
                x = 2 * scaling(hidden).sigmoid() * x
            else:
                hidden = 2 * scaling(x).sigmoid() * hidden
        return self.cell.advance(self.cell.project_step(x), state, hidden)

    def extra_repr(self) -> str:
        """The rounds and the rank."""
        return f"rounds={self.rounds}" + ("" if self.rank is None else f", rank={self.rank}")


def _affine(input_size: int, output_size: int, rank: int | None) -> nn.Module:
    if rank is None:
        return nn.Linear(input_size, output_size)
    return nn.Sequential(nn.Linear(input_size, rank, bias=False), nn.Linear(rank, output_size))
