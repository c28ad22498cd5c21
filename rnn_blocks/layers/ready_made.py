"""The layers that torch has too, under their own names."""

from collections.abc import Callable
from typing import Literal

from rnn_blocks.cells import Cell, ElmanCell, GRUCell, LSTMCell
from rnn_blocks.layers.recurrent import Engine, Recurrent
from rnn_blocks.layers.stack import Stack


def _recurrent_layers(
    make_cell: Callable[[int, int], Cell],
    input_size: int,
    hidden_size: int,
    num_layers: int,
    engine: Engine,
    batch_first: bool,
) -> list[Recurrent]:
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    sizes = [input_size] + [hidden_size] * (num_layers - 1)
    return [Recurrent(make_cell(size, hidden_size), engine=engine, batch_first=batch_first) for size in sizes]


class Elman(Stack):
    """Elman (1990) layers on top of each other: see :class:`~rnn_blocks.ElmanCell`.

    Args:
        input_size: features of the inputs.
        hidden_size: features of each layer's outputs.
        num_layers: how many layers.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        dropout: between layers.
        engine: see :class:`~rnn_blocks.Recurrent`.
        batch_first: see :class:`~rnn_blocks.Layer`.

    >>> import torch
    >>> outputs, (h,) = Elman(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape, h.shape
    (torch.Size([2, 7, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        dropout: float = 0.0,
        engine: Engine = "auto",
        batch_first: bool = True,
    ) -> None:
        def make_cell(input_size: int, hidden_size: int) -> Cell:
            return ElmanCell(input_size, hidden_size, nonlinearity=nonlinearity)

        layers = _recurrent_layers(make_cell, input_size, hidden_size, num_layers, engine, batch_first)
        super().__init__(layers, dropout=dropout)


class LSTM(Stack):
    """Long short-term memory layers on top of each other: see :class:`~rnn_blocks.LSTMCell`.

    Args:
        input_size: features of the inputs.
        hidden_size: features of each layer's outputs.
        num_layers: how many layers.
        dropout: between layers.
        engine: see :class:`~rnn_blocks.Recurrent`.
        batch_first: see :class:`~rnn_blocks.Layer`.

    >>> import torch
    >>> outputs, ((h1, c1), (h2, c2)) = LSTM(3, 4, num_layers=2)(torch.randn(2, 7, 3))
    >>> outputs.shape, c2.shape
    (torch.Size([2, 7, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        engine: Engine = "auto",
        batch_first: bool = True,
    ) -> None:
        layers = _recurrent_layers(LSTMCell, input_size, hidden_size, num_layers, engine, batch_first)
        super().__init__(layers, dropout=dropout)


class GRU(Stack):
    """Gated recurrent layers on top of each other: see :class:`~rnn_blocks.GRUCell`.

    Args:
        input_size: features of the inputs.
        hidden_size: features of each layer's outputs.
        num_layers: how many layers.
        dropout: between layers.
        engine: see :class:`~rnn_blocks.Recurrent`.
        batch_first: see :class:`~rnn_blocks.Layer`.

    >>> import torch
    >>> outputs, (h,) = GRU(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape, h.shape
    (torch.Size([2, 7, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        engine: Engine = "auto",
        batch_first: bool = True,
    ) -> None:
        layers = _recurrent_layers(GRUCell, input_size, hidden_size, num_layers, engine, batch_first)
        super().__init__(layers, dropout=dropout)
