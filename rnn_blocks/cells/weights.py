"""The weights that the gated cells share."""

import math

import torch
from torch import Tensor, nn

from rnn_blocks.cells.cell import Cell
from rnn_blocks.engine import State, hidden_of


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

    def __init__(self, input_size: int, hidden_size: int, *, num_gates: int) -> None:
        super().__init__(input_size, hidden_size)
        self.num_gates = num_gates
        self.weight_ih = nn.Parameter(torch.empty(num_gates * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(num_gates * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_gates * hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def project(self, inputs: Tensor) -> Tensor:
        """``W x + b`` for all steps in one product: ``(time, batch, gates * hidden_size)``."""
        return nn.functional.linear(inputs, self.weight_ih, self.bias)

    def step(self, projected: State, state: State) -> tuple[Tensor, State]:
        """One time step, by :meth:`advance`."""
        return self.advance(projected, state, hidden_of(state))

    def native_weights(self) -> list[Tensor]:
        """The weights as torch's kernels take them: theirs has a second bias, zero here."""
        return [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
