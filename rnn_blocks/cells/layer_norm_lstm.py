"""Long short-term memory with layer normalisation."""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.checks import number
from rnn_blocks.engine import State, input_product


class LayerNormLSTMCell(WeightedCell):
    """Long short-term memory with the layer normalisation of Ba, Kiros & Hinton (2016), "Layer normalization", eqs.
    20-22 (supplementary material).

    With ``LN(a; γ, β) = γ · (a - mean(a)) / √(var(a) + eps) + β``, where mean and (biased) variance are those of all
    the features of ``a``, for one sequence at one step::

        i, f, g, o = LN(W x_t; γ_x, b) + LN(U h_{t-1}; γ_h, 0)
        c_t = σ(f) · c_{t-1} + σ(i) · tanh(g)
        h_t = σ(o) · tanh(LN(c_t; γ_c, β_c))

    The two products are normalised each by itself, over the features of all four gates together (``4 * hidden_size``);
    the cell over its own (``hidden_size``), where it is read and not where it is remembered. The gates' three biases,
    which in the paper add up, are one, ``b``. The state is the pair ``(h, c)``; the output is ``h``.

    Gains start at one and biases at zero.

    Args:
        input_size: features of each input.
        hidden_size: features of ``h`` and of ``c``.
        eps: added to each variance.

    Raises:
        ValueError: for an ``eps`` that is not positive.

    >>> output, (h, c) = LayerNormLSTMCell(2, 3)(torch.ones(5, 2))
    >>> output.shape, c.shape
    (torch.Size([5, 3]), torch.Size([5, 3]))
    """

    input_block, forget_block = 0, 1
    gate_names = ("i", "f", "g", "o")

    def __init__(self, input_size: int, hidden_size: int, *, eps: float = 1e-5) -> None:
        number("eps", eps, above=True)
        super().__init__(input_size, hidden_size, num_gates=4)
        self.eps = eps
        self.gain_ih = nn.Parameter(torch.empty(4 * hidden_size))
        self.gain_hh = nn.Parameter(torch.empty(4 * hidden_size))
        self.gain_c = nn.Parameter(torch.empty(hidden_size))
        self.bias_c = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; gains are one, biases zero."""
        super().reset_parameters()
        for gain in (self.gain_ih, self.gain_hh, self.gain_c):
            nn.init.ones_(gain)
        for bias in (self.bias, self.bias_c):
            nn.init.zeros_(bias)

    def project(self, inputs: Tensor) -> Tensor:
        """``LN(W x; γ_x, b)`` for all steps at once: ``(time, batch, 4 * hidden_size)``."""
        product = input_product(inputs, self.weight_ih)
        return layer_norm(product, self.bias.shape, self.gain_ih, self.bias, self.eps).to(product.dtype)

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """``(batch, 4 * hidden_size)`` and ``(h, c)`` to ``h`` and the next ``(h, c)``."""
        assert isinstance(projected, Tensor)
        _, c = state
        assert isinstance(c, Tensor)
        product = linear(hidden, self.weight_hh)
        gates = projected + layer_norm(product, self.bias.shape, self.gain_hh, None, self.eps).to(product.dtype)
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * layer_norm(c, self.bias_c.shape, self.gain_c, self.bias_c, self.eps).tanh().to(c.dtype)
        return h, (h, c)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """Zeros for ``h`` and ``c``, of the dtype and on the device of ``like``."""
        zeros = like.new_zeros(batch_size, self.hidden_size)
        return zeros, zeros
