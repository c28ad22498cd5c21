"""Cells for the tests of every cell, with their equations: wrappers.

A wrapper may change what the recurrent connections read, so the equations here have that, ``hidden``, beside the
state; they are written out for the inner cells too.
"""

from collections.abc import Callable, Sequence

import oracles
import torch
from torch import Tensor

from rnn_blocks import (
    Cell,
    CellWrapper,
    Clockwork,
    DeepInput,
    DeepOutput,
    DeepTransition,
    ElmanCell,
    GRUCell,
    Leaky,
    LearnedState,
    LSTMCell,
    Mogrifier,
    RecurrentDropout,
    SkipThroughTime,
    Zoneout,
)
from rnn_blocks.engine import State


class ForeseenDropout(RecurrentDropout):
    """Recurrent dropout of which a sequence that starts afresh gets noise that is known beforehand."""

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        inner = self.cell.initial_state(batch_size, like)
        return inner, torch.full_like(own_hidden(inner), 0.3)


def make_periods(hidden_size: int) -> list[int]:
    return [1, 3] if hidden_size % 2 == 0 else [2]


CELLS: dict[str, Callable[[int, int], Cell]] = {
    "leaky-lstm": lambda i, h: Leaky(LSTMCell(i, h), time_constant=3.0),
    "leaky-gru-spectrum": lambda i, h: Leaky(GRUCell(i, h), time_constant=(1.5, 20)),
    "leaky-elman-learned": lambda i, h: Leaky(ElmanCell(i, h), time_constant=(1.5, 20), learned=True),
    "skip-lstm": lambda i, h: SkipThroughTime(LSTMCell(i, h), delay=3),
    "skip-own": lambda i, h: SkipThroughTime(oracles.LeakySum(i, h), delay=2),
    "clockwork-gru": lambda i, h: Clockwork(GRUCell(i, h), make_periods(h)),
    "clockwork-own": lambda i, h: Clockwork(oracles.LeakySum(i, h), make_periods(h)),
    "deep-transition": lambda i, h: DeepTransition(ElmanCell(i, h), layers=1),
    "deep-transition-shortcut": lambda i, h: DeepTransition(GRUCell(i, h), layers=2, width=5, shortcut=True),
    "deep-input": lambda i, h: DeepInput(LSTMCell(2, h), layers=2, input_size=i, width=3),
    "deep-output": lambda i, h: DeepOutput(GRUCell(i, 2), layers=1, output_size=h),
    "dot-s-rnn": lambda i, h: DeepOutput(DeepTransition(ElmanCell(i, h), layers=1, shortcut=True), layers=1),
    "mogrifier-lstm": lambda i, h: Mogrifier(LSTMCell(i, h), rounds=5),
    "mogrifier-gru-low-rank": lambda i, h: Mogrifier(GRUCell(i, h), rounds=2, rank=2),
    "mogrifier-own": lambda i, h: Mogrifier(oracles.LeakySum(i, h), rounds=3),
    "zoneout-lstm": lambda i, h: Zoneout(LSTMCell(i, h), p=(0.2, 0.4)),
    "zoneout-own": lambda i, h: Zoneout(oracles.LeakySum(i, h), p=0.3),
    "recurrent-dropout-gru": lambda i, h: ForeseenDropout(GRUCell(i, h), p=0.4),
    "learned-state-lstm": lambda i, h: LearnedState(LSTMCell(i, h)),
    "learned-state-own": lambda i, h: LearnedState(oracles.LeakySum(i, h)),
    "zoneout-leaky-skip-lstm": lambda i, h: Zoneout(
        Leaky(SkipThroughTime(LSTMCell(i, h), delay=3), time_constant=2.0), p=0.3
    ),
    "clockwork-dropout-deep-gru": lambda i, h: Clockwork(
        ForeseenDropout(DeepTransition(GRUCell(i, h), layers=1), p=0.4), make_periods(h)
    ),
    "skip-learned-leaky-own": lambda i, h: SkipThroughTime(
        LearnedState(Leaky(oracles.LeakySum(i, h), time_constant=2.0)), delay=2
    ),
    "mogrifier-zoneout-skip-gru": lambda i, h: Mogrifier(
        Zoneout(SkipThroughTime(GRUCell(i, h), delay=2), p=0.3), rounds=4, rank=1
    ),
    "learned-clockwork-skip-elman": lambda i, h: LearnedState(
        Clockwork(SkipThroughTime(ElmanCell(i, h), delay=2), make_periods(h))
    ),
    "dropout-zoneout-deep-output-lstm": lambda i, h: ForeseenDropout(
        Zoneout(DeepOutput(LSTMCell(i, 3), layers=1, output_size=h), p=0.2), p=0.4
    ),
}

Reading = Callable[[Cell, Tensor, State, Tensor], tuple[Tensor, State]]
READING: dict[type[Cell], Reading] = {}


def reading_of(*kinds: type[Cell]) -> Callable[[Reading], Reading]:
    """Registers ``(cell, x, state, hidden) -> (output, state)``; for wrappers also the step that reads its own h."""

    def register(function: Reading) -> Reading:
        READING.update(dict.fromkeys(kinds, function))
        for kind in kinds:
            if issubclass(kind, CellWrapper):
                oracles.equations_of(kind)(lambda cell, x, state: function(cell, x, state, own_hidden(state)))
        return function

    return register


def reading(cell: Cell, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    return READING[type(cell)](cell, x, state, hidden)


def own_hidden(state: State) -> Tensor:
    while isinstance(state, tuple):
        state = state[0]
    return state


def put_hidden(state: State, h: Tensor) -> State:
    return (put_hidden(state[0], h), *state[1:]) if isinstance(state, tuple) else h


@reading_of(ElmanCell)
def elman(cell: ElmanCell, x: Tensor, h: State, hidden: Tensor) -> tuple[Tensor, State]:
    h = torch.tanh(cell.weight_ih @ x + cell.weight_hh @ hidden + cell.bias)
    return h, h


@reading_of(GRUCell)
def gru(cell: GRUCell, x: Tensor, h: State, hidden: Tensor) -> tuple[Tensor, State]:
    W, U, b = oracles.by_gate(cell, "weight_ih", "weight_hh", "bias")
    r = oracles.sigmoid(W[0] @ x + b[0] + U[0] @ hidden)
    z = oracles.sigmoid(W[1] @ x + b[1] + U[1] @ hidden)
    n = torch.tanh(W[2] @ x + b[2] + r * (U[2] @ hidden + cell.bias_hn))
    h = (1 - z) * n + z * h
    return h, h


@reading_of(LSTMCell)
def lstm(cell: LSTMCell, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    _, c = state
    return oracles.lstm(cell, x, (hidden, c))  # an LSTM's h is only read


@reading_of(oracles.LeakySum)
def leaky_sum(cell: oracles.LeakySum, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    _, count = state
    return oracles.leaky_sum(cell, x, (hidden, count))


def followed(output: Tensor, after: State, changed: State) -> tuple[Tensor, State]:
    return own_hidden(changed) if output is own_hidden(after) else output, changed


@reading_of(Leaky)
def leaky(cell: Leaky, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    output, after = reading(cell.cell, x, state, hidden)
    tau = 1 + torch.exp(-cell.rate_logits) if cell.learned else 1 / cell.rates
    h = (1 - 1 / tau) * own_hidden(state) + own_hidden(after) / tau
    return followed(output, after, put_hidden(after, h))


@reading_of(SkipThroughTime)
def skip_through_time(cell: SkipThroughTime, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    inner, history = state
    output, after = reading(cell.cell, x, inner, hidden + cell.strength * history[cell.delay - 2])
    return output, (after, (own_hidden(inner), *history[: cell.delay - 2]))


@reading_of(Clockwork)
def clockwork(cell: Clockwork, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    inner, count = state
    output, after = reading(cell.cell, x, inner, hidden)
    units = len(own_hidden(inner))
    periods = [cell.periods[unit * len(cell.periods) // units] for unit in range(units)]
    due = [int(count) % period == 0 for period in periods]

    def merge(number: int, old: Tensor, new: Tensor) -> Tensor:
        return torch.stack([new[k] if due[k] else old[k] for k in range(units)])

    output, merged = followed(output, after, merge_units(merge, cell.cell, inner, after))
    return output, (merged, count + 1)


@reading_of(Zoneout)
def zoneout(
    cell: Zoneout, x: Tensor, state: State, hidden: Tensor, kept: Sequence[Tensor] | None = None
) -> tuple[Tensor, State]:
    output, after = reading(cell.cell, x, state, hidden)

    def merge(number: int, old: Tensor, new: Tensor) -> Tensor:
        share = (cell.p_others if number else cell.p_hidden) if kept is None else kept[min(number, 1)].to(new)
        return share * old + (1 - share) * new

    return followed(output, after, merge_units(merge, cell.cell, state, after))


def merge_units(function: Callable[[int, Tensor, Tensor], Tensor], cell: Cell, before: State, after: State) -> State:
    """In the innermost cell's state: each tensor of the shape of its ``h``, numbered."""
    if isinstance(cell, SkipThroughTime | Clockwork | RecurrentDropout):
        return merge_units(function, cell.cell, before[0], after[0]), *after[1:]
    if isinstance(cell, CellWrapper):
        return merge_units(function, cell.cell, before, after)
    shape, number = own_hidden(before).shape, 0

    def walk(old: State, new: State) -> State:
        nonlocal number
        if isinstance(new, tuple):
            return tuple(walk(a, b) for a, b in zip(old, new, strict=True))
        if new.shape != shape:
            return new
        number += 1
        return function(number - 1, old, new)

    return walk(before, after)


@reading_of(RecurrentDropout, ForeseenDropout)
def recurrent_dropout(cell: RecurrentDropout, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    inner, noise = state
    if cell.training:
        hidden = hidden * (noise >= cell.p).to(hidden) / (1 - cell.p)
    output, after = reading(cell.cell, x, inner, hidden)
    return output, (after, noise)


@reading_of(LearnedState)
def learned_state(cell: LearnedState, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    return reading(cell.cell, x, state, hidden)


def layers_of(mlp: torch.nn.Module, x: Tensor) -> Tensor:
    for layer in mlp.layers:
        a = layer.weight @ x + layer.bias
        x = torch.tanh(a) if mlp.nonlinearity == "tanh" else torch.clamp(a, min=0)
    return x


@reading_of(DeepTransition)
def deep_transition(cell: DeepTransition, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    deep = layers_of(cell.transition, hidden)
    return reading(cell.cell, x, state, deep + hidden if cell.shortcut else deep)


@reading_of(Mogrifier)
def mogrifier(cell: Mogrifier, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    for i, scaling in enumerate(cell.scalings):
        factors = [scaling] if cell.rank is None else [scaling[1], scaling[0]]
        read = hidden if i % 2 == 0 else x
        for factor in reversed(factors):
            read = factor.weight @ read + (0 if factor.bias is None else factor.bias)
        gate = 2 * oracles.sigmoid(read)
        x, hidden = (gate * x, hidden) if i % 2 == 0 else (x, gate * hidden)
    return reading(cell.cell, x, state, hidden)


@reading_of(DeepInput)
def deep_input(cell: DeepInput, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    return reading(cell.cell, layers_of(cell.input, x), state, hidden)


@reading_of(DeepOutput)
def deep_output(cell: DeepOutput, x: Tensor, state: State, hidden: Tensor) -> tuple[Tensor, State]:
    output, after = reading(cell.cell, x, state, hidden)
    return layers_of(cell.output, output), after
