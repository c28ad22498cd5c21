"""The gated recurrent unit."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.engine import State, run_native


class GRUCell(WeightedCell):
    """The gated recurrent unit of Cho et al. (2014), "Learning phrase representations using RNN encoder–decoder for
    statistical machine translation", eqs. 5-8.

    With ``W``, ``U`` and ``b`` each cut into three::

        r = σ(W_r x + b_r + U_r h)
        z = σ(W_z x + b_z + U_z h)
        n = tanh(W_n x + b_n + r · (U_n h + b_hn))    with reset_after, cuDNN's and torch's form
        n = tanh(W_n x + b_n + U_n (r · h))           without, the paper's
        h = (1 - z) · n + z · h

    The paper's form takes two recurrent products one after the other, and torch has no kernel for it.

    Args:
        input_size: features of each input.
        hidden_size: features of the state ``h``, which is also the output.
        reset_after: whether the reset gate acts after the recurrent product of the candidate, or on ``h`` before it.

    >>> output, h = GRUCell(2, 3)(torch.ones(5, 2))
    >>> output.shape
    torch.Size([5, 3])
    """

    forget_block = 1  # z
    gate_names = ("r", "z", "n")

    def __init__(self, input_size: int, hidden_size: int, *, reset_after: bool = True) -> None:
        super().__init__(input_size, hidden_size, num_gates=3)
        self.reset_after = reset_after
        self.native_on = frozenset({"cuda"} if reset_after else ())
        self.bias_hn = nn.Parameter(torch.empty(hidden_size)) if reset_after else None
        self.reset_parameters()

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """``(batch, 3 * hidden_size)`` and ``h`` to the next ``h``, twice."""
        h = state
        assert isinstance(projected, Tensor)
        assert isinstance(h, Tensor)
        sizes = [2 * self.hidden_size, self.hidden_size]
        x_rz, x_n = projected.split(sizes, dim=-1)
        if self.bias_hn is not None:
            h_rz, h_n = linear(hidden, self.weight_hh).split(sizes, dim=-1)
            r, z = (x_rz + h_rz).sigmoid().chunk(2, dim=-1)
            n = (x_n + r * (h_n + self.bias_hn)).tanh()
        else:
            weight_rz, weight_n = self.weight_hh.split(sizes)
            r, z = (x_rz + linear(hidden, weight_rz)).sigmoid().chunk(2, dim=-1)
            n = (x_n + linear(r * hidden, weight_n)).tanh()
        h = n + z * (h - n)
        return h, h

    def native(self, inputs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State] | None:
        """Through ``torch.gru``, with ``reset_after``."""
        if not self.reset_after:
            return None
        return run_native(torch.gru, inputs, state, self.native_weights(), training=self.training, lengths=lengths)

    def native_weights(self) -> list[Tensor]:
        """The weights as ``torch.gru`` takes them: of its second bias only the candidate's part is needed."""
        assert self.bias_hn is not None
        zeros = self.bias.new_zeros(2 * self.hidden_size)
        return [self.weight_ih, self.weight_hh, self.bias, torch.cat([zeros, self.bias_hn])]
