"""An initial state that is learned."""

import torch
from torch import Tensor, nn

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.wrapper import CellWrapper, first_state
from rnn_blocks.engine import State, like_state, state_tensors


class LearnedState(CellWrapper):
    """A learned initial state around any cell: what starts at zero becomes a parameter, zero at first.

    Every real or complex tensor of the inner cell's initial state that is all zeros is learned, one for all sequences;
    others (counters, noise, what is learned already) start as they did. Gradients reach the parameters from sequences
    that start without a state, and from ``resets``.

    Args:
        cell: any cell.

    Raises:
        ValueError: where no tensor of the initial state is all zeros.

    >>> import torch, rnn_blocks
    >>> cell = LearnedState(rnn_blocks.LSTMCell(2, 3))
    >>> [tuple(start.shape) for start in cell.starts]
    [(3,), (3,)]
    >>> outputs, _ = rnn_blocks.Recurrent(cell)(torch.randn(5, 7, 2))
    >>> outputs.sum().backward()
    >>> cell.starts[0].grad.shape
    torch.Size([3])
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.native_on, self.native_from = cell.native_on, cell.native_from
        with torch.enable_grad():
            tensors = state_tensors(first_state(cell))
        self.learned = [k for k, tensor in enumerate(tensors) if _starts_at_zero(tensor)]
        if not self.learned:
            raise ValueError(f"no tensor of the initial state of {type(cell).__name__} is all zeros: nothing to learn")
        # complex numbers as pairs of real ones, which every optimizer and every conversion of a module understands
        parts = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
        self.starts = nn.ParameterList([nn.Parameter(torch.zeros(parts[k].shape[1:])) for k in self.learned])

    def reset_parameters(self) -> None:
        """Set the initial state to zero."""
        for start in self.starts:
            nn.init.zeros_(start)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """The inner cell's, with the parameters in place of zeros."""
        state = self.cell.initial_state(batch_size, like)
        tensors = state_tensors(state)
        for k, start in zip(self.learned, self.starts, strict=True):
            if start.is_meta and not like.is_meta:  # a wrapper around this one asks for shapes before there are numbers
                continue
            zeros = tensors[k]
            value = start.to(zeros.device, zeros.real.dtype)
            tensors[k] = (torch.view_as_complex(value) if zeros.is_complex() else value).expand_as(zeros)
        return like_state(state, tensors)

    def native(self, inputs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State] | None:
        """The inner cell's."""
        return self.cell.native(inputs, state, lengths)


def _starts_at_zero(tensor: Tensor) -> bool:
    number = tensor.is_floating_point() or tensor.is_complex()
    return number and not tensor.requires_grad and not bool(tensor.any())
