"""The real-gated linear recurrent unit."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from rnn_blocks.cells.linear_cell import LinearCell
from rnn_blocks.engine import State, input_product

C = 8.0  # "a scalar-valued constant", with which gates that start at ½ give a^(c r) a useful range


class RGLRUCell(LinearCell):
    """The real-gated linear recurrent unit of De et al. (2024), "Griffin", eqs. 1–4.

    ::

        r_t = σ(W_a x_t + b_a)
        i_t = σ(W_x x_t + b_x)
        a_t = exp(-c · softplus(Λ) · r_t)            with c = 8
        h_t = a_t · h_{t-1} + √(1 - a_t²) · (i_t · x_t)

    ``Λ`` starts so that ``exp(-c · softplus(Λ))``, the smallest decay of a unit, is uniform in [0.9, 0.999]. The gates
    are dense, as the equations have them (the paper's models cut them into blocks, to spread them over devices). A unit
    keeps the width of its input; where the sizes differ, ``P x_t`` takes the place of ``x_t`` in the last line, with
    ``P`` the last ``hidden_size`` rows of the weights.

    Args:
        input_size: features of each input.
        hidden_size: features of the state ``h``, which is also the output.

    >>> output, h = RGLRUCell(3, 3)(torch.ones(5, 3))
    >>> output.shape
    torch.Size([5, 3])
    """

    gate_names = ("r", "i")
    recurrent_names = ("forgetting",)

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        blocks = 2 if input_size == hidden_size else 3
        self.weight_ih = nn.Parameter(torch.empty(blocks * hidden_size, input_size))
        self.bias = nn.Parameter(torch.empty(2 * hidden_size))
        self.forgetting = nn.Parameter(torch.empty(hidden_size))  # Λ
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, normal with variance ``1 / input_size``, zero the biases, and draw ``Λ``."""
        nn.init.normal_(self.weight_ih, std=1 / math.sqrt(self.input_size))
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            smallest = torch.empty_like(self.forgetting, dtype=torch.float64).uniform_(0.9, 0.999)
            self.forgetting.copy_(torch.expm1(-smallest.log() / C).log())

    def project(self, inputs: Tensor) -> State:
        """All products in one: both gates, ``(time, batch, 2 * hidden_size)``, and what goes into the state."""
        if self.input_size == self.hidden_size:
            return input_product(inputs, self.weight_ih, self.bias), inputs
        bias = pad(self.bias, (0, self.hidden_size))
        gates, entering = input_product(inputs, self.weight_ih, bias).split(
            [2 * self.hidden_size, self.hidden_size], dim=-1
        )
        return gates, entering

    def coefficients(self, projected: State) -> tuple[Tensor, Tensor]:
        """``a`` and ``√(1 - a²) · i · x``."""
        gates, entering = projected
        assert isinstance(gates, Tensor)
        assert isinstance(entering, Tensor)
        r, i = gates.sigmoid().chunk(2, dim=-1)
        log_a = -C * softplus(self.forgetting.to(gates.dtype)) * r
        # 1 - a² without its cancellation, and away from 0, where the root has no slope
        room = (-torch.expm1(2 * log_a)).clamp(min=torch.finfo(gates.dtype).tiny)
        return log_a.exp(), room.sqrt() * i * entering
