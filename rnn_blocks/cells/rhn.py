"""The recurrent highway network."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.checks import whole
from rnn_blocks.engine import State


class RHNCell(WeightedCell):
    """The recurrent highway network of Zilly et al. (2017), "Recurrent highway networks", eqs. 6-9: ``depth`` highway
    layers within one step of time, with the carry gate coupled to the transform gate, ``1 - t``, as in its experiments.

    From ``s_0 = h_{t-1}``, for each layer ``l``, with ``g, t = U_l s_{l-1} + b_l`` cut into two, to which the first
    layer adds ``W x_t``::

        s_l = tanh(g) · σ(t) + s_{l-1} · (1 - σ(t))

    The output and the state are ``h_t = s_depth``. ``W``, ``U_1`` and ``b_1`` are the cell's own ``weight_ih``,
    ``weight_hh`` and ``bias``; each layer of ``deeper`` has its ``weight_hh`` and ``bias``. A gradient passes unchanged
    where ``t`` is closed, so its biases start below zero.

    Args:
        input_size: features of each input.
        hidden_size: features of the state ``h``, which is also the output.
        depth: how many highway layers a step has.
        transform_bias: what the biases of ``t`` start at.

    Raises:
        ValueError: for a ``depth`` below one.

    >>> output, h = RHNCell(2, 3, depth=4)(torch.ones(5, 2))
    >>> output.shape
    torch.Size([5, 3])
    """

    gate_names = ("g", "t")

    def __init__(self, input_size: int, hidden_size: int, *, depth: int = 5, transform_bias: float = -2.0) -> None:
        whole("depth", depth)
        super().__init__(input_size, hidden_size, num_gates=2)
        self.depth = depth
        self.transform_bias = transform_bias
        self.deeper = nn.ModuleList(_HighwayLayer(hidden_size) for _ in range(depth - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; the biases of the transform gates are what was asked for."""
        super().reset_parameters()
        for layer in self._layers():
            layer.reset_parameters()
        self._shut()

    def reset_biases(self) -> None:
        """Set the biases to zero, those of the transform gates to what was asked for."""
        super().reset_biases()
        for layer in self._layers():
            nn.init.zeros_(layer.bias)
        self._shut()

    def recurrent_blocks(self) -> tuple[Tensor, ...]:
        """Those of all the layers."""
        deeper = [block for layer in self._layers() for block in layer.weight_hh.chunk(2)]
        return *super().recurrent_blocks(), *deeper

    @torch.no_grad()
    def _shut(self) -> None:
        for bias in (self.bias, *(layer.bias for layer in self._layers())):
            bias[self.hidden_size :] = self.transform_bias

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """``(batch, 2 * hidden_size)`` and ``h`` to the next ``h``, twice."""
        s = state
        assert isinstance(projected, Tensor)
        assert isinstance(s, Tensor)
        s = _highway(s, projected + linear(hidden, self.weight_hh))
        for layer in self._layers():
            s = _highway(s, linear(s, layer.weight_hh, layer.bias))
        return s, s

    def _layers(self) -> "list[_HighwayLayer]":
        return cast("list[_HighwayLayer]", list(self.deeper))


def _highway(s: Tensor, gates: Tensor) -> Tensor:
    g, t = gates.chunk(2, dim=-1)
    return s + t.sigmoid() * (g.tanh() - s)


class _HighwayLayer(nn.Module):
    """The weights of a layer after the first: ``U_l`` and ``b_l``."""

    gate_names = RHNCell.gate_names

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_gates = 2
        self.weight_hh = nn.Parameter(torch.empty(2 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(2 * hidden_size))

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size)
        nn.init.uniform_(self.weight_hh, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
