"""Computation deepened by an MLP: in the transition, before the cell, and after it."""

from torch import Tensor

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.mlp import MLP, Nonlinearity
from rnn_blocks.cells.wrapper import CellWrapper, real_units
from rnn_blocks.engine import State


class DeepTransition(CellWrapper):
    """A deep transition around any cell: an MLP between ``h_{t-1}`` and the recurrent connections that read it.

    Pascanu et al. (2014), "How to construct deep recurrent neural networks"; Goodfellow et al., figure 10.13b and, with
    the shortcut, c. With ``φ`` the nonlinearity, the recurrent connections read::

        φ(V_k φ(… φ(V_1 h_{t-1} + b_1) …) + b_k)    (+ h_{t-1}, with the shortcut)

    What the cell remembers is not touched (:meth:`~rnn_blocks.Cell.advance`). It costs ``k`` products a step. The
    paper's networks are

    ========== ==============================================================================
    sRNN       ``Stack([Recurrent(ElmanCell(i, h)), Recurrent(ElmanCell(h, h))])``
    DT-RNN     ``DeepTransition(ElmanCell(i, h), layers=1)``
    DT(S)-RNN  ``DeepTransition(ElmanCell(i, h), layers=1, shortcut=True)``
    DOT-RNN    ``DeepOutput(DeepTransition(ElmanCell(i, h), layers=1), layers=1)``
    DOT(S)-RNN ``DeepOutput(DeepTransition(ElmanCell(i, h), layers=1, shortcut=True), layers=1)``
    ========== ==============================================================================

    and :class:`~rnn_blocks.DeepInput` deepens what comes before. The weights start orthogonal and the biases at zero,
    so that the path which the layers make longer does not for that reason fade faster.

    Args:
        cell: any cell with a real ``h``.
        layers: how many nonlinear layers, ``k``.
        width: units of each layer but the last, which has ``h``'s; by default as many.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        shortcut: whether ``h_{t-1}`` itself is read too, so that gradients have a path past the layers.

    Raises:
        ValueError: for fewer than one layer, a width below 1, another nonlinearity, or a cell with a complex ``h``.

    >>> import torch, rnn_blocks
    >>> cell = DeepTransition(rnn_blocks.LSTMCell(3, 4), layers=2, width=8, shortcut=True)
    >>> outputs, (h, c) = rnn_blocks.Recurrent(cell)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        cell: Cell,
        layers: int,
        *,
        width: int | None = None,
        nonlinearity: Nonlinearity = "tanh",
        shortcut: bool = False,
    ) -> None:
        super().__init__(cell)
        size = real_units(cell, "DeepTransition")
        self.transition = MLP(size, size, layers, width=width, nonlinearity=nonlinearity)
        self.shortcut = shortcut

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """The inner cell's step, reading ``h`` through the layers."""
        deep = self.transition(hidden)
        return self.cell.advance(projected, state, deep + hidden if self.shortcut else deep)

    def extra_repr(self) -> str:
        """Whether there is a shortcut."""
        return f"shortcut={self.shortcut}"


class DeepInput(CellWrapper):
    """A deep input around any cell: an MLP before it, of all time steps at once.

    Pascanu et al. (2014), section 3.1: the cell is given ``φ(V_k φ(… φ(V_1 x_t + b_1) …) + b_k)`` in place of ``x_t``.

    Args:
        cell: any cell.
        layers: how many nonlinear layers, ``k``.
        input_size: features of each ``x_t``; by default the cell's.
        width: units of each layer but the last, which has the cell's ``input_size``; by default as many.
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Raises:
        ValueError: for fewer than one layer, a size below 1, or another nonlinearity.

    >>> import torch, rnn_blocks
    >>> cell = DeepInput(rnn_blocks.GRUCell(8, 4), layers=1, input_size=3)
    >>> outputs, h = rnn_blocks.Recurrent(cell)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        cell: Cell,
        layers: int,
        *,
        input_size: int | None = None,
        width: int | None = None,
        nonlinearity: Nonlinearity = "tanh",
    ) -> None:
        super().__init__(cell)
        self.input_size = cell.input_size if input_size is None else input_size
        self.input = MLP(self.input_size, cell.input_size, layers, width=width, nonlinearity=nonlinearity)

    def project(self, inputs: Tensor) -> State:
        """The inner cell's, of what the layers make of ``(time, batch, input_size)``."""
        return self.cell.project(self.input(inputs))


class DeepOutput(CellWrapper):
    """A deep output around any cell: an MLP after it, which the state does not see.

    Pascanu et al. (2014), section 3.3.2: with ``y_t`` the cell's output, this one's is ``φ(V_k φ(… φ(V_1 y_t + b_1)
    …) + b_k)``; a linear layer to classes or words comes after that. It costs ``k`` products a step.

    Args:
        cell: any cell.
        layers: how many nonlinear layers, ``k``.
        output_size: features of each output, the new ``hidden_size``; by default the cell's.
        width: units of each layer but the last; by default ``output_size``.
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Raises:
        ValueError: for fewer than one layer, a size below 1, or another nonlinearity.

    >>> import torch, rnn_blocks
    >>> cell = DeepOutput(rnn_blocks.GRUCell(3, 4), layers=1, output_size=8)
    >>> outputs, h = rnn_blocks.Recurrent(cell)(torch.randn(2, 7, 3))
    >>> outputs.shape, h.shape
    (torch.Size([2, 7, 8]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        cell: Cell,
        layers: int,
        *,
        output_size: int | None = None,
        width: int | None = None,
        nonlinearity: Nonlinearity = "tanh",
    ) -> None:
        super().__init__(cell)
        self.hidden_size = cell.hidden_size if output_size is None else output_size
        self.output_is_hidden = False
        self.output = MLP(cell.hidden_size, self.hidden_size, layers, width=width, nonlinearity=nonlinearity)

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """The inner cell's step, and the layers on its output."""
        output, after = self.cell.advance(projected, state, hidden)
        return self.output(output), after
