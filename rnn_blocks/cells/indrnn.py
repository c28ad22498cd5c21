"""The independently recurrent network."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from rnn_blocks.cells.cell import Cell
from rnn_blocks.engine import State, hidden_of, input_product


class IndRNNCell(Cell):
    """The independently recurrent network of Li et al. (2018), "Independently recurrent neural network (IndRNN):
    building a longer and deeper RNN", eq. 2: each unit remembers itself alone, and units mix in the next layer.

    ``h_t = f(W x_t + u · h_{t-1} + b)``, with ``f`` the rectifier or the hyperbolic tangent.

    ``u`` starts uniform within 0 and 1, as in the paper; ``W`` and ``b`` within ``±1/√hidden_size``. Over ``T`` steps a
    gradient grows by up to ``|u|^T``, so with the rectifier the paper holds ``|u|`` below ``2^(1/T)``: after each step
    of the optimizer, ``cell.u.data.clamp_(-limit, limit)``.

    Args:
        input_size: features of each input.
        hidden_size: features of the state ``h``, which is also the output.
        nonlinearity: ``"relu"`` or ``"tanh"``.

    Raises:
        ValueError: for another nonlinearity.

    >>> output, h = IndRNNCell(2, 3)(torch.ones(5, 2))
    >>> output.shape
    torch.Size([5, 3])
    """

    recurrent_names = ("u",)
    fusable = True

    def __init__(self, input_size: int, hidden_size: int, *, nonlinearity: Literal["relu", "tanh"] = "relu") -> None:
        if nonlinearity not in ("relu", "tanh"):
            raise ValueError(f"nonlinearity must be 'relu' or 'tanh', got {nonlinearity!r}")
        super().__init__(input_size, hidden_size)
        self.nonlinearity = nonlinearity
        self.num_gates = 1
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size))
        self.u = nn.Parameter(torch.empty(hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        bound = 1 / math.sqrt(self.hidden_size)
        nn.init.uniform_(self.weight_ih, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        nn.init.uniform_(self.u, 0.0, 1.0)

    def project(self, inputs: Tensor) -> Tensor:
        """``W x + b`` for all steps in one product: ``(time, batch, hidden_size)``."""
        return input_product(inputs, self.weight_ih, self.bias)

    def step(self, projected: State, state: State) -> tuple[Tensor, State]:
        """One time step, by :meth:`advance`."""
        return self.advance(projected, state, hidden_of(state))

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """``(batch, hidden_size)`` and ``h`` to the next ``h``, twice."""
        assert isinstance(projected, Tensor)
        pre_activation = torch.addcmul(projected, self.u, hidden)
        h = pre_activation.relu() if self.nonlinearity == "relu" else pre_activation.tanh()
        return h, h
