"""Layers of one kind of cell on top of each other."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

from rnn_blocks.cells import Cell
from rnn_blocks.cells.initialisation import initialise
from rnn_blocks.checks import whole
from rnn_blocks.layers.bidirectional import Bidirectional
from rnn_blocks.layers.layer import Layer
from rnn_blocks.layers.recurrent import Engine, Recurrent
from rnn_blocks.layers.skip_paths import Skip
from rnn_blocks.layers.stack import Stack


class StackOptions(TypedDict, total=False):
    """The options of :class:`RecurrentStack`, to whoever hands them to it."""

    num_layers: int
    bidirectional: bool
    dropout: float
    skip: Skip | None
    init: str
    engine: Engine
    batch_first: bool


class RecurrentStack(Stack):
    """Layers of one kind of cell on top of each other: what the ready-made layers are, for any cell.

    The state is a tuple of one state a layer: the cell's, or with ``bidirectional`` the pair of the forward and the
    backward cell's.

    Args:
        make_cell: makes a cell of an input size and a hidden size.
        input_size: features of the inputs.
        hidden_size: features of each layer's outputs (in each direction); or one number a layer, from the bottom up.
        num_layers: how many layers; need not be said where ``hidden_size`` is a sequence.
        bidirectional: whether each layer is a :class:`~rnn_blocks.Bidirectional` one, which gives twice the features.
        dropout: the part of the features zeroed between layers, see :class:`~rnn_blocks.Stack`.
        skip: the path across layers, see :class:`~rnn_blocks.Stack`.
        init: how the weights of each cell start, see :func:`~rnn_blocks.initialise`; by default as the cell says.
        engine: see :class:`~rnn_blocks.Recurrent`.
        batch_first: see :class:`~rnn_blocks.Layer`.

    Raises:
        ValueError: where ``num_layers`` is below 1 or not that of ``hidden_size``, or an option is not one of its
            choices or out of its range.

    >>> import torch, rnn_blocks
    >>> layer = RecurrentStack(rnn_blocks.LSTMCell, 3, [8, 4], bidirectional=True, init="orthogonal+unit-forget-bias")
    >>> outputs, (((h_ahead, c_ahead), (h_back, c_back)), upper) = layer(torch.randn(2, 7, 3))
    >>> outputs.shape, h_back.shape
    (torch.Size([2, 7, 8]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        make_cell: Callable[[int, int], Cell],
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        skip: Skip | None = None,
        init: str = "torch",
        engine: Engine = "auto",
        batch_first: bool = True,
    ) -> None:
        def one_way(input_size: int, hidden_size: int) -> Recurrent:
            cell = make_cell(input_size, hidden_size)
            if init != "torch":  # which is how a cell starts
                initialise(cell, init)
            return Recurrent(cell, engine=engine, batch_first=batch_first)

        layers: list[Layer] = []
        for width in _widths(hidden_size, num_layers):
            given = [*(layer.output_size for layer in layers), width]
            sizes = (Stack.input_sizes(input_size, given, skip=skip)[-1], width)
            layers.append(Bidirectional(one_way(*sizes), one_way(*sizes)) if bidirectional else one_way(*sizes))
        super().__init__(layers, skip=skip, dropout=dropout)


def _widths(hidden_size: int | Sequence[int], num_layers: int) -> list[int]:
    num_layers = whole("num_layers", num_layers)
    if not isinstance(hidden_size, Iterable):
        return [whole("hidden_size", hidden_size)] * num_layers
    widths = [whole("hidden_size", width) for width in hidden_size]
    if not widths:
        raise ValueError("hidden_size must be a number or at least one number, one a layer, got none")
    if num_layers not in (1, len(widths)):
        raise ValueError(f"hidden_size {widths} is for {len(widths)} layers, but num_layers is {num_layers}")
    return widths
