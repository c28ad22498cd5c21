"""Cells for the tests of every cell, with their equations: linear."""

from collections.abc import Callable

import torch
from oracles import by_gate, equations_of, sigmoid
from torch import Tensor

from rnn_blocks import (
    Cell,
    LeakyIntegratorCell,
    LinearCell,
    LRUCell,
    MinGRUCell,
    MinLSTMCell,
    RGLRUCell,
    SRUCell,
)
from rnn_blocks.engine import State


class OwnLinear(LinearCell):
    """A user's own linear recurrence: a nest of inputs, and a state of another shape than the outputs."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.mix = torch.nn.Linear(input_size, hidden_size)

    def project(self, inputs: Tensor) -> State:
        return self.mix(inputs), (inputs.mean(-1),)

    def coefficients(self, projected: State) -> tuple[Tensor, Tensor]:
        mixed, (mean,) = projected
        return mean[..., None, None].cos() * 1.3, torch.stack([mixed, mixed * mixed], -1)

    def output(self, projected: State, h: Tensor) -> Tensor:
        first, second = h.unbind(-1)
        return projected[0] * first + second

    def initial_state(self, batch_size: int, like: Tensor) -> Tensor:
        return like.new_full((batch_size, self.hidden_size, 2), 0.5)


CELLS: dict[str, Callable[[int, int], Cell]] = {
    "leaky-integrator-spectrum": lambda i, h: LeakyIntegratorCell(i, h, time_constant=(1.0, 20.0)),
    "leaky-integrator-learned": lambda i, h: LeakyIntegratorCell(i, h, time_constant=(1.5, 20.0), learned=True),
    "min-gru": MinGRUCell,
    "min-lstm": MinLSTMCell,
    "min-lstm-positive": lambda i, h: MinLSTMCell(i, h, candidate="positive"),
    "sru": SRUCell,
    "sru-identity-own-width": lambda i, h: Widened(SRUCell(h, h, activation="identity"), i),
    "rg-lru": RGLRUCell,
    "rg-lru-own-width": lambda i, h: Widened(RGLRUCell(h, h), i),
    "lru": lambda i, h: LRUCell(i, h, r_min=0.4, r_max=0.9),
    "own-linear": OwnLinear,
}


class Widened(LinearCell):
    """A cell whose input has the width of its output, fed by a fixed spreading of a narrower or wider one."""

    def __init__(self, cell: LinearCell, input_size: int) -> None:
        super().__init__(input_size, cell.hidden_size)
        self.cell = cell

    def project(self, inputs: Tensor) -> State:
        return self.cell.project(inputs @ self.spread(inputs))

    def spread(self, like: Tensor) -> Tensor:
        entries = torch.arange(1.0, self.input_size * self.hidden_size + 1, device=like.device)
        return entries.sin().view(self.input_size, self.hidden_size).to(like.dtype)

    def coefficients(self, projected: State) -> tuple[Tensor, Tensor]:
        return self.cell.coefficients(projected)

    def output(self, projected: State, h: Tensor) -> Tensor:
        return self.cell.output(projected, h)


@equations_of(Widened)
def widened(cell: Widened, x: Tensor, h: State) -> tuple[Tensor, State]:
    inner = {SRUCell: sru, RGLRUCell: rg_lru}[type(cell.cell)]
    return inner(cell.cell, x @ cell.spread(x), h)


@equations_of(OwnLinear)
def own_linear(cell: OwnLinear, x: Tensor, h: State) -> tuple[Tensor, State]:
    mixed = cell.mix.weight @ x + cell.mix.bias
    a = 1.3 * torch.cos(x.sum() / len(x))
    first, second = a * h[:, 0] + mixed, a * h[:, 1] + mixed**2
    return mixed * first + second, torch.stack([first, second], 1)


@equations_of(LeakyIntegratorCell)
def leaky_integrator(cell: LeakyIntegratorCell, x: Tensor, h: State) -> tuple[Tensor, State]:
    tau = 1 + torch.exp(cell.log_excess)
    h = (1 - 1 / tau) * h + 1 / tau * (cell.weight_ih @ x + cell.bias)
    return h, h


def candidate_of(cell: MinGRUCell | MinLSTMCell, n: Tensor) -> Tensor:
    if cell.candidate == "identity":
        return n
    return torch.stack([value + 0.5 if value >= 0 else 1 / (1 + torch.exp(-value)) for value in n])


@equations_of(MinGRUCell)
def min_gru(cell: MinGRUCell, x: Tensor, h: State) -> tuple[Tensor, State]:
    W, b = by_gate(cell, "weight_ih", "bias")
    z = sigmoid(W[0] @ x + b[0])
    h = (1 - z) * h + z * candidate_of(cell, W[1] @ x + b[1])
    return h, h


@equations_of(MinLSTMCell)
def min_lstm(cell: MinLSTMCell, x: Tensor, h: State) -> tuple[Tensor, State]:
    W, b = by_gate(cell, "weight_ih", "bias")
    f, i = sigmoid(W[0] @ x + b[0]), sigmoid(W[1] @ x + b[1])
    h = f / (f + i) * h + i / (f + i) * candidate_of(cell, W[2] @ x + b[2])
    return h, h


@equations_of(SRUCell)
def sru(cell: SRUCell, x: Tensor, c: State) -> tuple[Tensor, State]:
    W, b = by_gate(cell, "weight_ih", "bias")
    f, r = sigmoid(W[0] @ x + b[0]), sigmoid(W[1] @ x + b[1])
    c = f * c + (1 - f) * (W[2] @ x)
    g = {"tanh": torch.tanh, "relu": lambda v: torch.clamp(v, min=0), "identity": lambda v: v}[cell.activation](c)
    skip = x if len(x) == len(c) else W[3] @ x
    return r * g + (1 - r) * skip, c


@equations_of(RGLRUCell)
def rg_lru(cell: RGLRUCell, x: Tensor, h: State) -> tuple[Tensor, State]:
    W, b = by_gate(cell, "weight_ih", "bias")
    r, i = sigmoid(W[0] @ x + b[0]), sigmoid(W[1] @ x + b[1])
    a = torch.exp(-8 * torch.log(1 + torch.exp(cell.forgetting)) * r)
    value = x if len(x) == len(h) else W[2] @ x
    h = a * h + torch.sqrt(1 - a**2) * (i * value)
    return h, h


@equations_of(LRUCell)
def lru(cell: LRUCell, x: Tensor, h: State) -> tuple[Tensor, State]:
    real, imaginary, D = by_gate(cell, "weight_ih")[0]
    size, decay = torch.exp(-torch.exp(cell.nu)), torch.exp(cell.theta)
    eigenvalues = size * torch.cos(decay) + 1j * size * torch.sin(decay)
    h = eigenvalues * h + torch.exp(cell.log_gamma) * ((real + 1j * imaginary) @ x.to(h.dtype))
    C = cell.weight_ho[:, : len(h)] - 1j * cell.weight_ho[:, len(h) :]
    return (C @ h).real + D @ x, h
