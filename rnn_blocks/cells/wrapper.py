"""The base of the cells that hold a cell and change what one step of it does."""

from collections.abc import Callable
from typing import ClassVar, final

import torch
from torch import Tensor

from rnn_blocks.cells.cell import Cell
from rnn_blocks.engine import State, hidden_of, map_state


class CellWrapper(Cell):
    """A cell around another cell, which by itself changes nothing: the base of wrappers, yours included.

    A wrapper takes any cell, wrapped ones and a user's own among them, and is a cell, so wrappers compose in any order.
    It says in :meth:`advance` what a step is; :meth:`step` follows from that. What it does not say is the inner cell's.
    One of yours says ``fusable = True`` where that is a pure function of tensors, which ``"auto"`` then records.

    Wrappers change what is remembered or what is read. Where the inner cell's output is its ``h`` itself (the same
    tensor, as in the Elman network, the LSTM and the GRU; or ``output_is_hidden``) the output is the ``h`` that the
    wrapper makes of it; an output of the inner cell's own stays as it is.

    Args:
        cell: the inner cell, kept as ``cell``.

    Raises:
        ValueError: where ``cell`` is not a :class:`~rnn_blocks.Cell`.

    >>> import torch, rnn_blocks
    >>> class Forgetful(CellWrapper):
    ...     def advance(self, projected, state, hidden):
    ...         return super().advance(projected, state, 0.5 * hidden)
    >>> layer = rnn_blocks.Recurrent(Forgetful(rnn_blocks.GRUCell(3, 4)))
    >>> layer(torch.ones(2, 7, 3))[0].shape
    torch.Size([2, 7, 4])
    """

    fusable = True

    keeps_state: ClassVar[bool] = False
    """Whether the state is ``(the inner cell's, and the wrapper's own, …)``; else it is the inner cell's."""

    def __init__(self, cell: Cell) -> None:
        given: object = cell
        if not isinstance(given, Cell):
            raise ValueError(
                f"{type(self).__name__} needs a cell to wrap, got {type(given).__name__} "
                "(layers, such as Recurrent or LSTM, are made of the wrapped cell)"
            )
        super().__init__(cell.input_size, cell.hidden_size)
        self.cell = cell
        self.fusable = type(self).fusable and cell.fusable
        self.output_is_hidden = cell.output_is_hidden

    def project(self, inputs: Tensor) -> State:
        """The inner cell's."""
        return self.cell.project(inputs)

    @final
    def step(self, projected: State, state: State) -> tuple[Tensor, State]:
        """One time step, by :meth:`advance`."""
        return self.advance(projected, state, hidden_of(state))

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """The inner cell's."""
        return self.cell.advance(projected, state, hidden)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """The inner cell's."""
        return self.cell.initial_state(batch_size, like)

    def begin(self, state: State) -> State:
        """The inner cell's."""
        return (self.cell.begin(state[0]), *state[1:]) if self.keeps_state else self.cell.begin(state)

    def extra_repr(self) -> str:
        """Nothing: the sizes are the inner cell's, shown with it."""
        return ""


def first_state(cell: Cell) -> State:
    """The state from which one sequence starts: what a wrapper learns its shapes from.

    >>> from rnn_blocks.cells import GRUCell
    >>> first_state(GRUCell(3, 4)).shape
    torch.Size([1, 4])
    """
    return cell.initial_state(1, torch.zeros(0, device="cpu"))  # a device with numbers, whatever the default is


def real_units(cell: Cell, wrapper: str) -> int:
    """How many units the ``h`` of ``cell`` has, for a ``wrapper`` whose layers read it.

    Raises:
        ValueError: where it is complex.

    >>> from rnn_blocks.cells import GRUCell
    >>> real_units(GRUCell(3, 4), "DeepTransition")
    4
    """
    h = hidden_of(first_state(cell))
    if h.is_complex():
        raise ValueError(f"{wrapper} needs a cell with a real h, got {type(cell).__name__}, whose is complex")
    return h.shape[-1]


def with_output(cell: Cell, output: Tensor, after: State, changed: State) -> tuple[Tensor, State]:
    """What a step gives once a wrapper of ``cell`` made ``changed`` of ``after``: an output that is ``h`` follows it.

    >>> from rnn_blocks.cells import GRUCell
    >>> cell, h = GRUCell(1, 1), torch.ones(1)
    >>> with_output(cell, h, h, 2 * h)
    (tensor([2.]), tensor([2.]))
    >>> with_output(cell, 3 * h, h, 2 * h)
    (tensor([3.]), tensor([2.]))
    """
    if output is hidden_of(after) or cell.output_is_hidden:
        output = hidden_of(changed).to(output.dtype)
    return output, changed


def unit_tensors(cell: Cell, state: State) -> list[Tensor]:
    """The tensors of ``state`` that hold one number a unit: see :func:`map_units`.

    >>> from rnn_blocks.cells import LSTMCell
    >>> cell = LSTMCell(3, 4)
    >>> len(unit_tensors(cell, first_state(cell)))
    2
    """
    found: list[Tensor] = []

    def note(old: Tensor, new: Tensor) -> Tensor:
        found.append(new)
        return new

    map_units(note, cell, state, state)
    return found


def map_units(function: Callable[[Tensor, Tensor], Tensor], cell: Cell, before: State, after: State) -> State:
    """``after`` with ``function(old, new)`` in place of each tensor that holds one number a unit.

    Those are the tensors of ``h``'s shape, real or complex, in the innermost cell's state (``h`` first); what wrappers
    keep beside it (histories, counters, noise) is their own.

    >>> from rnn_blocks.cells import LSTMCell
    >>> before, after = (torch.zeros(1, 4),) * 2, (torch.ones(1, 4),) * 2
    >>> map_units(lambda old, new: old, LSTMCell(3, 4), before, after)
    (tensor([[0., 0., 0., 0.]]), tensor([[0., 0., 0., 0.]]))
    """
    if isinstance(cell, CellWrapper):
        if not cell.keeps_state:
            return map_units(function, cell.cell, before, after)
        return map_units(function, cell.cell, before[0], after[0]), *after[1:]
    shape = hidden_of(before).shape

    def one(old: Tensor, new: Tensor) -> Tensor:
        unit = new.shape == shape and (new.is_floating_point() or new.is_complex())
        return function(old, new) if unit else new

    return map_state(one, before, after)
