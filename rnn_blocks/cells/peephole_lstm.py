"""Long short-term memory whose gates see the cell."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.engine import State


class PeepholeLSTMCell(WeightedCell):
    """Long short-term memory with the peephole connections of Gers & Schmidhuber (2000), "Recurrent nets that time and
    count", to learn exact timings: the gates see the cell, each unit its own.

    With ``i, f, g, o = W x_t + U h_{t-1} + b``, cut into four, and a vector ``p`` for each gate::

        i = σ(i + p_i · c_{t-1})
        f = σ(f + p_f · c_{t-1})
        c_t = f · c_{t-1} + i · tanh(g)
        o = σ(o + p_o · c_t)
        h_t = o · tanh(c_t)

    The state is the pair ``(h, c)``; the output is ``h``. With ``p = 0`` this is :class:`~rnn_blocks.LSTMCell`.

    Args:
        input_size: features of each input.
        hidden_size: features of ``h`` and of ``c``.

    >>> output, (h, c) = PeepholeLSTMCell(2, 3)(torch.ones(5, 2))
    >>> output.shape, c.shape
    (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    input_block, forget_block = 0, 1
    gate_names = ("i", "f", "g", "o")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, num_gates=4)
        self.peephole_i = nn.Parameter(torch.empty(hidden_size))
        self.peephole_f = nn.Parameter(torch.empty(hidden_size))
        self.peephole_o = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """``(batch, 4 * hidden_size)`` and ``(h, c)`` to ``h`` and the next ``(h, c)``."""
        assert isinstance(projected, Tensor)
        _, c = state
        assert isinstance(c, Tensor)
        i, f, g, o = (projected + linear(hidden, self.weight_hh)).chunk(4, dim=-1)
        i = torch.addcmul(i, self.peephole_i, c).sigmoid()
        f = torch.addcmul(f, self.peephole_f, c).sigmoid()
        c = f * c + i * g.tanh()
        o = torch.addcmul(o, self.peephole_o, c).sigmoid()
        h = o * c.tanh()
        return h, (h, c)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """Zeros for ``h`` and ``c``, of the dtype and on the device of ``like``."""
        zeros = like.new_zeros(batch_size, self.hidden_size)
        return zeros, zeros
