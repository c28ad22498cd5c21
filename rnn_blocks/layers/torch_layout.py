"""Any layer in the place of torch's: its states laid out, and sequences packed, as ``torch.nn.LSTM`` does."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnn_blocks.cells import Cell, CellWrapper
from rnn_blocks.engine import State, describe_state, like_state, state_tensors
from rnn_blocks.layers.bidirectional import Bidirectional
from rnn_blocks.layers.layer import Layer, run_padded
from rnn_blocks.layers.recurrent import Recurrent
from rnn_blocks.layers.stack import Stack
from rnn_blocks.layers.weight_drop import WeightDrop

TorchState: TypeAlias = Tensor | tuple[Tensor, Tensor]


class TorchLayout(nn.Module):
    """A layer that is called as ``torch.nn.LSTM`` is, for models that were written for torch's.

    ``output, hx = module(input, hx=None)``. It computes what the layer does. What differs is how that is handed over:

    - the state is one tensor ``(num_layers * directions, batch, hidden_size)``, the directions of each layer side by
      side; where the layer's states are pairs, as an LSTM's ``(h, c)``, it is a pair of such tensors;
    - a ``PackedSequence`` goes in and comes out, its ``sorted_indices`` as they were; the state has its sequences in
      the order from before they were sorted;
    - one sequence may come without a batch, ``(time, features)``, with a state ``(num_layers * directions,
      hidden_size)``.

    A model that makes its zeros itself, as some do, starts from them, whatever the layer's own initial state is (that
    of :class:`~rnn_blocks.LearnedState`, say).

    Args:
        layer: a :class:`~rnn_blocks.Recurrent`, or a stack of such, each one way or :class:`~rnn_blocks.Bidirectional`,
            weight-dropped or not: any ready-made layer but :class:`~rnn_blocks.SLSTM`. Its ``batch_first`` holds, which
            is true by default, where torch's is false.

    Attributes:
        layer: the layer.
        input_size: features of the inputs.
        hidden_size: features of each state.
        num_layers: how many layers lie on top of each other.
        bidirectional: whether each reads both ways.
        bias: true; torch's word for its biases.
        proj_size: 0; torch's word for none.

    Raises:
        ValueError: for a layer whose states torch's layout has no place for: of different widths, of three tensors or
            more, of other shapes, or of several kinds.

    >>> import torch, rnn_blocks
    >>> model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(3, 4, num_layers=2, batch_first=True)})
    >>> model["rnn"] = TorchLayout(rnn_blocks.LayerNormLSTM(3, 4, num_layers=2))
    >>> output, (h, c) = model["rnn"](torch.randn(5, 7, 3))
    >>> output.shape, h.shape
    (torch.Size([5, 7, 4]), torch.Size([2, 5, 4]))
    """

    def __init__(self, layer: Layer) -> None:
        given: object = layer
        if not isinstance(given, Layer):
            raise ValueError(f"TorchLayout needs a layer of rnn_blocks, got {type(given).__name__}")
        super().__init__()
        levels = _levels(layer, count())
        rows = [row for level in levels for row in level]  # as torch orders them
        parts, hidden_size = _size_of_states([recurrent for _, recurrent in rows])
        directions = [len(level) for level in levels]
        if set(directions) not in ({1}, {2}):
            raise ValueError(
                f"in torch's layout all layers read one way, or all both ways, got layers of {directions} directions"
            )
        self.layer = layer
        self.input_size = layer.input_size
        self.hidden_size = hidden_size
        self.num_layers = len(levels)
        self.bidirectional = directions[0] == 2
        self.bias = True
        self.proj_size = 0
        self._parts = parts
        self._places = [place for place, _ in rows]  # in the layer's state, of each row of torch's
        self._rows = sorted(range(len(rows)), key=self._places.__getitem__)  # and the other way round

    @property
    def batch_first(self) -> bool:
        """Whether sequences are ``(batch, time, features)``: as the layer takes them."""
        return self.layer.batch_first

    @property
    def dropout(self) -> float:
        """The part of the features that the layer zeroes between its layers."""
        return self.layer.dropout if isinstance(self.layer, Stack) else 0.0

    def flatten_parameters(self) -> None:
        """Nothing: a kernel that wants its weights in one piece gets them so at each call."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: TorchState | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor | PackedSequence, TorchState]:
        """Run over a sequence, called as torch's modules are.

        Args:
            input: ``(time, batch, input_size)``, or with the batch first where the layer has it so; or one sequence,
                ``(time, input_size)``; or a packed sequence.
            hx: the state before the first step; by default the layer's initial one.
            lengths: steps that count in each sequence, ``(batch,)``, zeros allowed, for callers that do not pack.

        Returns:
            The outputs, of the layer's ``output_size``, as ``input`` came: padded, one sequence or packed; and the
            state at the end of each sequence.

        Raises:
            ValueError: where a shape does not fit, and for ``lengths`` with a packed sequence or with one sequence.
        """
        if lengths is not None and (isinstance(input, PackedSequence) or input.dim() == 2):
            given = "a packed sequence" if isinstance(input, PackedSequence) else "one sequence without a batch"
            raise ValueError(f"lengths go with a padded batch, got {torch.as_tensor(lengths).tolist()} with {given}")
        if isinstance(input, PackedSequence):
            return self._run_packed(input, hx)
        if input.dim() == 2:
            return self._run_one(input, hx)
        return self._run(input, hx, lengths)

    def _run(
        self, inputs: Tensor, hx: TorchState | None, lengths: Tensor | Sequence[int] | None
    ) -> tuple[Tensor, TorchState]:
        if inputs.dim() != 3 or inputs.shape[-1] != self.input_size:
            order = "(batch, time, input_size)" if self.batch_first else "(time, batch, input_size)"
            raise ValueError(
                f"input must be {order}, (time, input_size) or packed, with input_size {self.input_size}, "
                f"got a tensor of shape {tuple(inputs.shape)}"
            )
        state = None if hx is None else self._from_torch(hx, inputs)
        outputs, state = self.layer(inputs, state, lengths=lengths)
        return outputs, self._to_torch(state)

    def _run_packed(self, packed: PackedSequence, hx: TorchState | None) -> tuple[PackedSequence, TorchState]:
        if packed.data.dim() != 2 or packed.data.shape[-1] != self.input_size:
            raise ValueError(
                f"a packed input must have data (steps, input_size) with input_size {self.input_size}, "
                f"got data of shape {tuple(packed.data.shape)}"
            )
        return run_padded(lambda inputs, lengths: self._run(inputs, hx, lengths), packed, batch_first=self.batch_first)

    def _run_one(self, sequence: Tensor, hx: TorchState | None) -> tuple[Tensor, TorchState]:
        if hx is not None:
            self._check(hx, "(num_layers * directions, hidden_size)", (len(self._places), self.hidden_size))
            hx = _each(lambda part: part.unsqueeze(1), hx)
        batch = 0 if self.batch_first else 1
        outputs, hx = self._run(sequence.unsqueeze(batch), hx, None)
        return outputs.squeeze(batch), _each(lambda part: part.squeeze(1), hx)

    def _from_torch(self, hx: TorchState, inputs: Tensor) -> State:
        """Torch's state as the layer's own."""
        batch = inputs.shape[0 if self.batch_first else 1]
        shape = (len(self._places), batch, self.hidden_size)
        self._check(hx, "(num_layers * directions, batch, hidden_size)", shape)
        parts = [part.unbind(0) for part in ([hx] if isinstance(hx, Tensor) else hx)]
        tensors = [part[row] for row in self._rows for part in parts]
        return like_state(self.layer.initial_state(batch, inputs.new_empty(0, device="meta")), tensors)

    def _to_torch(self, state: State) -> TorchState:
        """The layer's own state as torch's."""
        tensors = state_tensors(state)
        first, *second = (
            torch.stack([tensors[self._parts * place + part] for place in self._places]) for part in range(self._parts)
        )
        return (first, second[0]) if second else first

    def _check(self, hx: TorchState, name: str, shape: tuple[int, ...]) -> None:
        parts = [hx] if isinstance(hx, Tensor) else list(hx)
        of_a_kind = isinstance(hx, Tensor) == (self._parts == 1) and len(parts) == self._parts
        if not of_a_kind or any(part.shape != shape for part in parts):
            kind = "one tensor" if self._parts == 1 else "a pair (h, c) of tensors, each"
            raise ValueError(f"hx must be {kind} {name}, here {shape}, got {describe_state(hx)}")


def _each(function: Callable[[Tensor], Tensor], hx: TorchState) -> TorchState:
    return function(hx) if isinstance(hx, Tensor) else (function(hx[0]), function(hx[1]))


def _levels(layer: Layer, places: Iterator[int]) -> list[list[tuple[int, Recurrent]]]:
    """The recurrent layers from the bottom up, each level's directions together, with their places in the state."""
    if isinstance(layer, Recurrent):
        return [[(next(places), layer)]]
    if isinstance(layer, WeightDrop):
        return _levels(layer.layer, places)
    if isinstance(layer, Stack):
        return [level for part in layer.layers for level in _levels(part, places)]  # type: ignore[arg-type]
    if isinstance(layer, Bidirectional):
        ahead, back = _levels(layer.forward_layer, places), _levels(layer.backward_layer, places)
        if len(ahead) != len(back):
            raise ValueError(
                "in torch's layout both directions have as many layers, "
                f"got {len(ahead)} forward and {len(back)} backward"
            )
        return [one + other for one, other in zip(ahead, back, strict=True)]
    raise ValueError(
        "torch's layout is for layers made of Recurrent, Bidirectional, Stack and WeightDrop, "
        f"got {type(layer).__name__}, whose state is not that of a cell"
    )


def _size_of_states(layers: list[Recurrent]) -> tuple[int, int]:
    """Of how many tensors each layer's state is, one or two, and how wide they are."""
    parts, widths = zip(*map(_size_of_state, layers), strict=True)
    if len(set(parts)) > 1:
        kinds = dict.fromkeys(f"{_name_of(layer)}'s of {n}" for layer, n in zip(layers, parts, strict=True))
        raise ValueError(f"in torch's layout all states are one tensor, or all are two, got {', '.join(kinds)}")
    if len(set(widths)) > 1:
        raise ValueError(f"in torch's layout all layers have one hidden_size, got {list(widths)}")
    return parts[0], widths[0]


def _size_of_state(layer: Recurrent) -> tuple[int, int]:
    state = layer.initial_state(1, torch.empty(0, device="meta"))
    tensors = state_tensors(state)
    width = tensors[0].shape[-1]
    keeper = _keeper_of_state(layer.cell)
    if keeper is not None or len(tensors) > 2 or any(tensor.shape != (1, width) for tensor in tensors):
        raise ValueError(
            "torch's layout holds one tensor (batch, hidden_size) a cell, or two such, but the state of "
            f"{keeper or _name_of(layer)} is {describe_state(state)} for a batch of 1"
        )
    return len(tensors), width


def _keeper_of_state(cell: Cell) -> str | None:
    """The wrapper, if any, that keeps something of its own, such as noise: zeros in its place would be wrong."""
    while isinstance(cell, CellWrapper):
        if cell.keeps_state:
            return type(cell).__name__
        cell = cell.cell
    return None


def _name_of(layer: Recurrent) -> str:
    """The cell's, or that of a layer that is more than a cell run over time."""
    return type(layer.cell if type(layer) is Recurrent else layer).__name__
