"""Cells for the tests of every cell, with their equations: gated."""

from collections.abc import Callable

import torch
from oracles import by_gate, equations_of, sigmoid
from torch import Tensor

from rnn_blocks import (
    Cell,
    GRUCell,
    IndRNNCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    PeepholeLSTMCell,
    RHNCell,
    SLSTMCell,
)
from rnn_blocks.engine import State


def shaken(cell: Cell) -> Cell:
    """``cell`` with no parameter at a value, such as one, that hides it."""
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return cell


CELLS: dict[str, Callable[[int, int], Cell]] = {
    "gru-reset-before": lambda i, h: GRUCell(i, h, reset_after=False),
    "peephole-lstm": PeepholeLSTMCell,
    "layer-norm-lstm": lambda i, h: shaken(LayerNormLSTMCell(i, h)),
    "layer-norm-gru": lambda i, h: shaken(LayerNormGRUCell(i, h, eps=1e-3)),
    "indrnn": IndRNNCell,
    "indrnn-tanh": lambda i, h: IndRNNCell(i, h, nonlinearity="tanh"),
    "slstm": SLSTMCell,
    "slstm-exponential": lambda i, h: SLSTMCell(i, h, forget_gate="exponential"),
    "slstm-heads": lambda i, h: SLSTMCell(i, 2 * h, num_heads=2),
    "rhn-1": lambda i, h: RHNCell(i, h, depth=1),
    "rhn-3": lambda i, h: RHNCell(i, h, depth=3, transform_bias=-1.0),
}


def normalised(a: Tensor, eps: float) -> Tensor:
    centred = a - a.sum() / len(a)
    return centred / torch.sqrt((centred * centred).sum() / len(a) + eps)


@equations_of(PeepholeLSTMCell)
def peephole_lstm(cell: PeepholeLSTMCell, x: Tensor, state: State) -> tuple[Tensor, State]:
    h, c = state
    W, U, b = by_gate(cell, "weight_ih", "weight_hh", "bias")
    i, f, g, o = (W[k] @ x + U[k] @ h + b[k] for k in range(4))
    i, f = sigmoid(i + cell.peephole_i * c), sigmoid(f + cell.peephole_f * c)
    c = f * c + i * torch.tanh(g)
    h = sigmoid(o + cell.peephole_o * c) * torch.tanh(c)
    return h, (h, c)


@equations_of(LayerNormLSTMCell)
def layer_norm_lstm(cell: LayerNormLSTMCell, x: Tensor, state: State) -> tuple[Tensor, State]:
    h, c = state
    from_input = cell.gain_ih * normalised(cell.weight_ih @ x, cell.eps) + cell.bias
    from_before = cell.gain_hh * normalised(cell.weight_hh @ h, cell.eps)
    i, f, g, o = (from_input + from_before).view(4, cell.hidden_size)
    c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
    h = sigmoid(o) * torch.tanh(cell.gain_c * normalised(c, cell.eps) + cell.bias_c)
    return h, (h, c)


@equations_of(LayerNormGRUCell)
def layer_norm_gru(cell: LayerNormGRUCell, x: Tensor, h: State) -> tuple[Tensor, State]:
    size = cell.hidden_size
    a, d = cell.weight_ih @ x, cell.weight_hh @ h
    gates = cell.gain_ih[: 2 * size] * normalised(a[: 2 * size], cell.eps) + cell.bias[: 2 * size]
    r, z = sigmoid(gates + cell.gain_hh[: 2 * size] * normalised(d[: 2 * size], cell.eps)).view(2, size)
    from_input = cell.gain_ih[2 * size :] * normalised(a[2 * size :], cell.eps) + cell.bias[2 * size :]
    from_before = cell.gain_hh[2 * size :] * normalised(d[2 * size :], cell.eps) + cell.bias_hn
    h = (1 - z) * torch.tanh(from_input + r * from_before) + z * h
    return h, h


@equations_of(IndRNNCell)
def indrnn(cell: IndRNNCell, x: Tensor, h: State) -> tuple[Tensor, State]:
    a = cell.weight_ih @ x + torch.diag(cell.u) @ h + cell.bias
    h = torch.tanh(a) if cell.nonlinearity == "tanh" else torch.clamp(a, min=0)
    return h, h


@equations_of(SLSTMCell)
def slstm(cell: SLSTMCell, x: Tensor, state: State) -> tuple[Tensor, State]:
    """The paper's, unstabilised: cell ``C`` and normaliser ``N`` as they are; the cell carries C/N and log N."""
    h, c, m = state
    N = torch.exp(m)
    C = c * N
    W, b = by_gate(cell, "weight_ih", "bias")
    size = cell.hidden_size // cell.num_heads
    U = [torch.block_diag(*gate.split(size)) for gate in cell.weight_hh.split(cell.hidden_size)]
    i, f, z, o = (W[k] @ x + U[k] @ h + b[k] for k in range(4))
    f = sigmoid(f) if cell.forget_gate == "sigmoid" else torch.exp(f)
    C = f * C + torch.exp(i) * torch.tanh(z)
    N = f * N + torch.exp(i)
    h = sigmoid(o) * C / N
    return h, (h, C / N, torch.log(N))


@equations_of(RHNCell)
def rhn(cell: RHNCell, x: Tensor, s: State) -> tuple[Tensor, State]:
    from_input = (cell.weight_ih @ x).view(2, -1)
    for layer in [cell, *cell.deeper]:
        U, b = layer.weight_hh.view(2, cell.hidden_size, -1), layer.bias.view(2, -1)
        t = sigmoid(from_input[1] + U[1] @ s + b[1])
        s = torch.tanh(from_input[0] + U[0] @ s + b[0]) * t + s * (1 - t)
        from_input = torch.zeros_like(from_input)
    return s, s
