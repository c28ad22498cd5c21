"""The cells that can be compared, by name: one table, from which layers of equal parameters are made."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor, nn

from rnn_blocks import cells, layers
from rnn_blocks.cells import Cell
from rnn_blocks.engine import State
from rnn_blocks.layers import Layer
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.long_range.tasks import hint

MakeLayer = Callable[[int, int, int], Layer]
"""Of the input size, the hidden size and the task's length; time first."""


@dataclass(frozen=True)
class Choice:
    """A cell of the table.

    Attributes:
        about: what it is.
        make: makes the layer.
        lr: the learning rate of Adam that suits it.
        multiple: of a task's length: what the hidden size must be a multiple of.
    """

    about: str
    make: MakeLayer
    lr: float = 2e-3
    multiple: Callable[[int], int] = lambda length: 1


class Pointwise(Layer):
    """``tanh(W x + b)`` at each step, without a state: what a stack of linear recurrences needs in between.

    >>> layer = Pointwise(3, 4)
    >>> layer(torch.randn(7, 2, 3))[0].shape
    torch.Size([7, 2, 4])
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size, batch_first=False)
        self.linear = nn.Linear(input_size, output_size)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """None."""
        return ()

    def run(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """All steps at once."""
        return self.linear(inputs).tanh(), state


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, … up to ``limit``.

    >>> powers_of_two(10)
    [1, 2, 4, 8]
    """
    return list(takewhile(lambda power: power <= max(1, limit), (2**k for k in range(64))))


def _wrapped(make_cell: Callable[[int, int, int], Cell], init: str = "torch") -> MakeLayer:
    def make(input_size: int, hidden_size: int, length: int) -> Layer:
        cell = make_cell(input_size, hidden_size, length)
        if init != "torch":
            cells.initialise(cell, init)
        return layers.Recurrent(cell, batch_first=False)

    return make


def _stack(kind: Callable[..., Layer], init: str = "torch", num_layers: int = 1) -> MakeLayer:
    def make(input_size: int, hidden_size: int, length: int) -> Layer:
        chosen = init.replace("(T)", f"({max(2, length)})")
        return kind(input_size, hidden_size, num_layers=num_layers, init=chosen, batch_first=False)

    return make


def _dilated(kind: Callable[[int, int], Cell], init: str = "torch") -> MakeLayer:
    def make(input_size: int, hidden_size: int, length: int) -> Layer:
        dilations = powers_of_two(length)
        sizes = [input_size, *[hidden_size] * (len(dilations) - 1)]
        each = [cells.initialise(kind(size, hidden_size), init) for size in sizes]
        return layers.Dilated(each, dilations, batch_first=False)

    return make


def _lru(input_size: int, hidden_size: int, length: int) -> Layer:
    lru = partial(layers.LRU, hidden_size, hidden_size, r_min=0.9, r_max=0.999, max_phase=0.314, batch_first=False)
    return layers.Stack([Pointwise(input_size, hidden_size), lru(), Pointwise(hidden_size, hidden_size), lru()])


def _leaky(make_cell: Callable[[int, int], Cell]) -> Callable[[int, int, int], Cell]:
    return lambda i, h, length: cells.Leaky(make_cell(i, h), time_constant=(1.0, float(max(1, length))))


def skip_delay(length: int) -> int:
    """How many steps a skip through time spans, so that some ten of them span a sequence.

    >>> skip_delay(200), skip_delay(5)
    (20, 2)
    """
    return max(2, min(length // 10, 32))


def _skip(make_cell: Callable[[int, int], Cell]) -> Callable[[int, int, int], Cell]:
    return lambda i, h, length: cells.SkipThroughTime(make_cell(i, h), delay=skip_delay(length))


def _clockwork(i: int, h: int, length: int) -> Cell:
    return cells.Clockwork(cells.ElmanCell(i, h), powers_of_two(length))


GATED_LR = 4e-3
PLAIN_LR = 1e-3  # of units whose whole state is made anew at every step
LEAKY_LR = 1e-2  # of units of which a small share is

CELLS: dict[str, Choice] = {
    "elman": Choice("Elman's simple recurrent network", _stack(layers.Elman), lr=PLAIN_LR),
    "elman-orthogonal": Choice(
        "the same, recurrent weights orthogonal at first", _stack(layers.Elman, "orthogonal"), lr=PLAIN_LR
    ),
    "irnn": Choice(
        "rectified Elman, recurrent weights the identity at first (Le et al. 2015)",
        _stack(partial(layers.Elman, nonlinearity="relu"), "identity"),
        lr=PLAIN_LR,
    ),
    "leaky": Choice(
        "leaky Elman units, time constants spread from 1 to T", _wrapped(_leaky(cells.ElmanCell)), lr=LEAKY_LR
    ),
    "leaky-orthogonal": Choice(
        "the same, recurrent weights orthogonal at first",
        _wrapped(_leaky(cells.ElmanCell), "orthogonal"),
        lr=LEAKY_LR,
    ),
    "skip": Choice("Elman with a skip through time of a tenth of T", _wrapped(_skip(cells.ElmanCell)), lr=PLAIN_LR),
    "skip-orthogonal": Choice(
        "the same, recurrent weights orthogonal at first",
        _wrapped(_skip(cells.ElmanCell), "orthogonal"),
        lr=PLAIN_LR,
    ),
    "skip-irnn": Choice(
        "rectified Elman with a skip through time of a tenth of T, at first the mean of both paths",
        _wrapped(_skip(partial(cells.ElmanCell, nonlinearity="relu")), "identity(0.667)"),
        lr=PLAIN_LR,
    ),
    "skip-gru": Choice("a GRU with a skip through time of a tenth of T", _wrapped(_skip(cells.GRUCell)), lr=GATED_LR),
    "dilated": Choice(
        "dilated Elman layers, dilations 1, 2, 4, … up to T", _dilated(cells.ElmanCell, "orthogonal"), lr=PLAIN_LR
    ),
    "dilated-gru": Choice("dilated GRU layers", _dilated(cells.GRUCell, "orthogonal")),
    "dilated-lstm": Choice("dilated LSTM layers", _dilated(cells.LSTMCell, "orthogonal+unit-forget-bias")),
    "clockwork": Choice(
        "Elman units that update at periods of 1, 2, 4, … up to T",
        _wrapped(_clockwork),
        multiple=lambda length: len(powers_of_two(length)),
    ),
    "gru": Choice("gated recurrent unit", _stack(layers.GRU), lr=GATED_LR),
    "gru-chrono": Choice(
        "the same, update gates spread up to T (chrono)", _stack(layers.GRU, "chrono(T)"), lr=GATED_LR
    ),
    "lstm": Choice("long short-term memory, forget bias 1", _stack(layers.LSTM, "unit-forget-bias"), lr=GATED_LR),
    "lstm-chrono": Choice(
        "the same, forget gates spread up to T (chrono)", _stack(layers.LSTM, "chrono(T)"), lr=GATED_LR
    ),
    "peephole-lstm": Choice(
        "long short-term memory whose gates see the cell", _stack(layers.PeepholeLSTM, "unit-forget-bias"), lr=GATED_LR
    ),
    "slstm": Choice("scalar LSTM of xLSTM, exponential gates", _stack(layers.SLSTM)),
    "rhn": Choice("recurrent highway network of depth 3", _stack(partial(layers.RHN, depth=3))),
    "indrnn": Choice("two layers of independently recurrent units", _stack(layers.IndRNN, num_layers=2)),
    "mingru": Choice("two layers of minimal GRUs", _stack(layers.MinGRU, num_layers=2), lr=GATED_LR),
    "minlstm": Choice("two layers of minimal LSTMs", _stack(layers.MinLSTM, num_layers=2), lr=GATED_LR),
    "sru": Choice("two layers of simple recurrent units", _stack(layers.SRU, num_layers=2), lr=GATED_LR),
    "rglru": Choice("two layers of real-gated linear recurrent units", _stack(layers.RGLRU, num_layers=2), lr=GATED_LR),
    "lru": Choice("two linear recurrent units with a nonlinear layer before each", _lru, lr=GATED_LR),
}


def check_cell(name: str) -> Choice:
    """The entry of the table.

    Raises:
        InputError: for a name that is not in it.

    >>> check_cell("gru").about
    'gated recurrent unit'
    """
    if name not in CELLS:
        raise InputError(f"cell {name!r}: {hint(name, list(CELLS))}")
    return CELLS[name]


def make_layer(name: str, input_size: int, length: int, hidden_size: int) -> Layer:
    """A layer of the cell called ``name``, time first.

    >>> make_layer("lstm-chrono", 2, 100, 16).output_size
    16
    """
    return check_cell(name).make(input_size, hidden_size, length)


def hidden_size_for(name: str, input_size: int, output_size: int, length: int, parameters: int) -> int:
    """The hidden size with which a layer and a linear readout have about so many parameters.

    Raises:
        InputError: where even the smallest has more than one and a half times as many.

    >>> hidden_size_for("lstm", input_size=2, output_size=1, length=600, parameters=70_000)
    131
    """
    choice = check_cell(name)
    unit = choice.multiple(length)

    def count(units: int) -> int:
        layer = choice.make(input_size, units * unit, length)
        readout = output_size * (layer.output_size + 1)
        return readout + sum(parameter.numel() for parameter in layer.parameters())

    with torch.random.fork_rng(devices=[]):
        high = 1
        while count(high) < parameters:
            high *= 2
        low = high // 2  # of fewer parameters, or 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if count(middle) < parameters else (low, middle)
        if low and parameters - count(low) < count(high) - parameters:
            return low * unit
        if count(high) > 1.5 * parameters:
            raise InputError(
                f"parameters {parameters}: the smallest {name} for length {length} has {count(high)}; give more"
            )
    return high * unit
