"""Which cells have a kernel of torch's that does what they do."""

from rnn_blocks.cells.cell import STEP_METHODS, Cell
from rnn_blocks.cells.settled import has_own_step
from rnn_blocks.cells.wrapper import CellWrapper


def has_kernel(cell: Cell) -> bool:
    """Whether :meth:`~rnn_blocks.Cell.native` of a cell does what its steps do.

    Not in a subclass that changes the steps of a cell that has a kernel, nor where somebody has put a method on one.

    >>> from rnn_blocks.cells import GRUCell, LearnedState
    >>> class Fading(GRUCell):
    ...     def advance(self, projected, state, hidden):
    ...         return super().advance(projected, 0.9 * state, hidden)
    >>> has_kernel(GRUCell(2, 3)), has_kernel(Fading(2, 3)), has_kernel(LearnedState(Fading(2, 3)))
    (True, False, False)
    """
    kind = type(cell)
    written_in = next(base for base in kind.__mro__ if "native" in vars(base))
    same = all(getattr(kind, name, None) is getattr(written_in, name, None) for name in STEP_METHODS)
    inner = cell.cell if isinstance(cell, CellWrapper) else None
    return same and not has_own_step(cell) and (inner is None or has_kernel(inner))
