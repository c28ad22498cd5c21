"""The simple recurrent unit."""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rnn_blocks.cells.linear_cell import LinearCell
from rnn_blocks.engine import State, input_product

Activation: TypeAlias = Literal["tanh", "relu", "identity"]
ACTIVATIONS: tuple[Activation, ...] = ("tanh", "relu", "identity")


class SRUCell(LinearCell):
    """The simple recurrent unit of Lei et al. (2018), in the form whose gates see the input alone.

    That is the first version of the paper ("Training RNNs as fast as CNNs", 2017, eqs. 3–7); the later one lets the
    gates read ``c_{t-1}`` as well, and is no linear recurrence any more. With ``f, r, n = W x_t``, cut into three::

        f, r = σ(f + b_f), σ(r + b_r)
        c_t = f · c_{t-1} + (1 - f) · n
        h_t = r · g(c_t) + (1 - r) · x_t

    The state is ``c``, the output is ``h``. The last line is a highway around the recurrence; where the sizes differ it
    carries ``P x_t``, with ``P`` the last ``hidden_size`` rows of ``W``.

    Args:
        input_size: features of each input.
        hidden_size: features of the state ``c`` and of each output.
        activation: ``g``: ``"tanh"``, ``"relu"`` or ``"identity"``.

    Raises:
        ValueError: for another ``activation``.

    >>> output, c = SRUCell(3, 3)(torch.ones(5, 3))
    >>> output.shape
    torch.Size([5, 3])
    """

    gate_names = ("f", "r", "n")

    def __init__(self, input_size: int, hidden_size: int, *, activation: Activation = "tanh") -> None:
        super().__init__(input_size, hidden_size)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
        self.activation = activation
        self.num_gates = 3 if input_size == hidden_size else 4
        self.weight_ih = nn.Parameter(torch.empty(self.num_gates * hidden_size, input_size))
        self.bias = nn.Parameter(torch.empty(2 * hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, uniform of variance ``1 / input_size`` (section 3.2), and zero the biases."""
        bound = math.sqrt(3 / self.input_size)
        nn.init.uniform_(self.weight_ih, -bound, bound)
        nn.init.zeros_(self.bias)

    def project(self, inputs: Tensor) -> State:
        """All products in one: ``(time, batch, 3 * hidden_size)``, and what the highway carries."""
        gates = input_product(inputs, self.weight_ih, pad(self.bias, (0, len(self.weight_ih) - len(self.bias))))
        if self.input_size == self.hidden_size:
            return gates, inputs
        gates, carried = gates.split([3 * self.hidden_size, self.hidden_size], dim=-1)
        return gates, carried

    def coefficients(self, projected: State) -> tuple[Tensor, Tensor]:
        """``f`` and ``(1 - f) · n``."""
        gates, _ = projected
        assert isinstance(gates, Tensor)
        f, _, n = gates.chunk(3, dim=-1)
        f = f.sigmoid()
        return f, (1 - f) * n

    def output(self, projected: State, h: Tensor) -> Tensor:
        """``r · g(c) + (1 - r) · x``."""
        gates, carried = projected
        assert isinstance(gates, Tensor)
        assert isinstance(carried, Tensor)
        _, r, _ = gates.chunk(3, dim=-1)
        if self.activation != "identity":
            h = h.tanh() if self.activation == "tanh" else h.relu()
        return carried + r.sigmoid() * (h - carried)

    def extra_repr(self) -> str:
        """The sizes and the activation."""
        return f"{super().extra_repr()}, activation={self.activation!r}"
