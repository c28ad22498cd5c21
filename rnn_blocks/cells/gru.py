"""The gated recurrent unit."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.engine import State, run_native


class GRUCell(WeightedCell):
    """The gated recurrent unit of Cho et al. (2014), in cuDNN's form: the reset gate acts after the recurrent product.

    With ``W x_t + b`` and ``U h_{t-1}`` each cut into three::

        r = σ(W_r x + b_r + U_r h)
        z = σ(W_z x + b_z + U_z h)
        n = tanh(W_n x + b_n + r · (U_n h + b_hn))
        h = (1 - z) · n + z · h

    Args:
        input_size: features of each input.
        hidden_size: features of the state ``h``, which is also the output.

    >>> output, h = GRUCell(2, 3)(torch.ones(5, 2))
    >>> output.shape
    torch.Size([5, 3])
    """

    native_on = frozenset({"cuda"})

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, num_gates=3)
        self.bias_hn = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """``(batch, 3 * hidden_size)`` and ``h`` to the next ``h``, twice."""
        h = state
        assert isinstance(projected, Tensor)
        assert isinstance(h, Tensor)
        x_rz, x_n = projected.split([2 * self.hidden_size, self.hidden_size], dim=-1)
        h_rz, h_n = linear(hidden, self.weight_hh).split([2 * self.hidden_size, self.hidden_size], dim=-1)
        r, z = (x_rz + h_rz).sigmoid().chunk(2, dim=-1)
        n = (x_n + r * (h_n + self.bias_hn)).tanh()
        h = n + z * (h - n)
        return h, h

    def native(self, inputs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Through ``torch.gru``."""
        return run_native(torch.gru, inputs, state, self.native_weights(), training=self.training, lengths=lengths)

    def native_weights(self) -> list[Tensor]:
        """The weights as ``torch.gru`` takes them: of its second bias only the candidate's part is needed."""
        zeros = self.bias.new_zeros(2 * self.hidden_size)
        return [self.weight_ih, self.weight_hh, self.bias, torch.cat([zeros, self.bias_hn])]
