"""Long short-term memory."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.engine import State, run_native


class LSTMCell(WeightedCell):
    """Long short-term memory: Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000).

    With ``i, f, g, o = W x_t + U h_{t-1} + b``, cut into four::

        c_t = σ(f) · c_{t-1} + σ(i) · tanh(g)
        h_t = σ(o) · tanh(c_t)

    The state is the pair ``(h, c)``; the output is ``h``. There is one bias where ``torch.nn.LSTM`` adds up two.

    Args:
        input_size: features of each input.
        hidden_size: features of ``h`` and of ``c``.

    >>> output, (h, c) = LSTMCell(2, 3)(torch.ones(5, 2))
    >>> output.shape, c.shape
    (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    native_on = frozenset({"cpu", "cuda"})
    input_block, forget_block = 0, 1
    gate_names = ("i", "f", "g", "o")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, num_gates=4)
        self.native_from = hidden_size**2 // 20_000  # oneDNN packs all weights at each call, forward and backward

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """``(batch, 4 * hidden_size)`` and ``(h, c)`` to ``h`` and the next ``(h, c)``."""
        assert isinstance(projected, Tensor)
        _, c = state
        assert isinstance(c, Tensor)
        gates = projected + linear(hidden, self.weight_hh)  # (batch, 4 * hidden_size)
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (h, c)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """Zeros for ``h`` and ``c``, of the dtype and on the device of ``like``."""
        zeros = like.new_zeros(batch_size, self.hidden_size)
        return zeros, zeros

    def native(self, inputs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Through ``torch.lstm``."""
        return run_native(torch.lstm, inputs, state, self.native_weights(), training=self.training, lengths=lengths)
