"""The simple recurrent network."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.engine import State, run_native


class ElmanCell(WeightedCell):
    """The simple recurrent network of Elman (1990), "Finding structure in time".

    ``h_t = f(W x_t + U h_{t-1} + b)``, with ``f`` the hyperbolic tangent or the rectifier.

    Args:
        input_size: features of each input.
        hidden_size: features of the state ``h``, which is also the output.
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Raises:
        ValueError: for another nonlinearity.

    >>> output, h = ElmanCell(2, 3)(torch.ones(5, 2))
    >>> output.shape
    torch.Size([5, 3])
    """

    native_on = frozenset({"cuda"})

    def __init__(self, input_size: int, hidden_size: int, *, nonlinearity: Literal["tanh", "relu"] = "tanh") -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(input_size, hidden_size, num_gates=1)
        self.nonlinearity = nonlinearity

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """``(batch, hidden_size)`` and ``h`` to the next ``h``, twice."""
        assert isinstance(projected, Tensor)
        pre_activation = projected + linear(hidden, self.weight_hh)
        h = pre_activation.tanh() if self.nonlinearity == "tanh" else pre_activation.relu()
        return h, h

    def native(self, inputs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Through ``torch.rnn_tanh`` or ``torch.rnn_relu``."""
        kernel = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
        return run_native(kernel, inputs, state, self.native_weights(), training=self.training, lengths=lengths)
