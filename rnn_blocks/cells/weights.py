"""The weights that the gated cells share."""

import math

import torch
from torch import Tensor, nn

from rnn_blocks.cells.cell import Cell
from rnn_blocks.engine import State, hidden_of, input_product


class WeightedCell(Cell):
    """A cell whose gates are ``W x + U h + b``, stacked gate by gate in torch's order.

    The weights start as torch's do, uniform within ``±1/√hidden_size``.

    Args:
        input_size: features of each input.
        hidden_size: features of the state and of each output.
        num_gates: how many blocks of ``hidden_size`` rows the weights hold; an attribute, so that initialisers can cut.

    >>> WeightedCell(2, 3, num_gates=4).weight_ih.shape
    torch.Size([12, 2])
    """

    fusable = True

    forget_block: int | None = None
    """Which block is the gate that keeps the past where it is open, if there is one."""

    input_block: int | None = None
    """Which block is the gate that lets the present in, if that is not just what the forget gate leaves."""

    def __init__(self, input_size: int, hidden_size: int, *, num_gates: int) -> None:
        super().__init__(input_size, hidden_size)
        self.num_gates = num_gates
        self.weight_ih = nn.Parameter(torch.empty(num_gates * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(num_gates * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_gates * hidden_size))
        WeightedCell.reset_parameters(self)  # a subclass' own may ask for parameters that are not there yet

    def reset_parameters(self) -> None:
        """Draw the cell's own parameters anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)

    def project(self, inputs: Tensor) -> State:
        """``W x + b`` for all steps in one product: ``(time, batch, gates * hidden_size)``."""
        return input_product(inputs, self.weight_ih, self.bias)

    def step(self, projected: State, state: State) -> tuple[Tensor, State]:
        """One time step, by :meth:`advance`."""
        return self.advance(projected, state, hidden_of(state))

    def gate_bias(self, gate: int) -> Tensor:
        """The part of the bias that opens or shuts a gate, ``(hidden_size,)``, for initialisers to write to."""
        return self.bias.view(self.num_gates, -1)[gate]

    def recurrent_blocks(self) -> tuple[Tensor, ...]:
        """The square matrices of the recurrent weights, one a gate, for initialisers to write to."""
        return self.weight_hh.view(-1, *[self.weight_hh.shape[1]] * 2).unbind(0)

    def reset_biases(self) -> None:
        """Set the biases to zero, or to what the cell wants there: what initialisers of the weights leave behind."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("bias"):
                nn.init.zeros_(parameter)

    def native_weights(self) -> list[Tensor]:
        """The weights as torch's kernels take them: theirs has a second bias, zero here."""
        return [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
