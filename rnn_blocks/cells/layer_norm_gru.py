"""The gated recurrent unit with layer normalisation."""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.checks import number
from rnn_blocks.engine import State, input_product


class LayerNormGRUCell(WeightedCell):
    """The gated recurrent unit with the layer normalisation of Ba, Kiros & Hinton (2016), "Layer normalization", as in
    their skip-thoughts encoder (supplementary material).

    With ``LN(a; γ, β) = γ · (a - mean(a)) / √(var(a) + eps) + β``, where mean and (biased) variance are those of all
    the features of ``a``, for one sequence at one step::

        r, z = σ(LN(W_rz x_t; γ_x, b) + LN(U_rz h_{t-1}; γ_h, 0))
        n = tanh(LN(W_n x_t; γ_xn, b_n) + r · LN(U_n h_{t-1}; γ_hn, b_hn))
        h_t = (1 - z) · n + z · h_{t-1}

    So four vectors are normalised, each by itself: the two products of the gates ``r`` and ``z``, over both gates'
    features together (``2 * hidden_size``), and the two of the candidate ``n``, over its own (``hidden_size``). The
    gates' two biases, which in the paper add up, are one; ``z`` keeps what is there, as in
    :class:`~rnn_blocks.GRUCell`, where the paper's replaces it.

    Gains start at one and biases at zero.

    Args:
        input_size: features of each input.
        hidden_size: features of the state ``h``, which is also the output.
        eps: added to each variance.

    Raises:
        ValueError: for an ``eps`` that is not positive.

    >>> output, h = LayerNormGRUCell(2, 3)(torch.ones(5, 2))
    >>> output.shape
    torch.Size([5, 3])
    """

    forget_block = 1  # z
    gate_names = ("r", "z", "n")

    def __init__(self, input_size: int, hidden_size: int, *, eps: float = 1e-5) -> None:
        number("eps", eps, above=True)
        super().__init__(input_size, hidden_size, num_gates=3)
        self.eps = eps
        self.gain_ih = nn.Parameter(torch.empty(3 * hidden_size))
        self.gain_hh = nn.Parameter(torch.empty(3 * hidden_size))
        self.bias_hn = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; gains are one, biases zero."""
        super().reset_parameters()
        for gain in (self.gain_ih, self.gain_hh):
            nn.init.ones_(gain)
        for bias in (self.bias, self.bias_hn):
            nn.init.zeros_(bias)

    def project(self, inputs: Tensor) -> State:
        """``LN(W x)`` for all steps at once: of the gates, ``(time, batch, 2 * hidden_size)``, and of the candidate."""
        b_rz, b_n = self._split(self.bias)
        return self._normalise(input_product(inputs, self.weight_ih), self.gain_ih, b_rz, b_n)

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """A slice of :meth:`project`'s pair and ``h`` to the next ``h``, twice."""
        h = state
        x_rz, x_n = projected
        assert isinstance(h, Tensor)
        assert isinstance(x_rz, Tensor)
        assert isinstance(x_n, Tensor)
        h_rz, h_n = self._normalise(linear(hidden, self.weight_hh), self.gain_hh, None, self.bias_hn)
        r, z = (x_rz + h_rz).sigmoid().chunk(2, dim=-1)
        n = (x_n + r * h_n).tanh()
        h = n + z * (h - n)
        return h, h

    def _normalise(
        self, product: Tensor, gain: Tensor, bias_rz: Tensor | None, bias_n: Tensor
    ) -> tuple[Tensor, Tensor]:
        (rz, n), (gain_rz, gain_n) = self._split(product), self._split(gain)
        rz = layer_norm(rz, gain_rz.shape, gain_rz, bias_rz, self.eps)
        n = layer_norm(n, gain_n.shape, gain_n, bias_n, self.eps)
        return rz.to(product.dtype), n.to(product.dtype)

    def _split(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        rz, n = tensor.split([2 * self.hidden_size, self.hidden_size], dim=-1)
        return rz, n
