"""The layer face: a sequence in and a sequence out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rnn_blocks.cells import Cell
from rnn_blocks.engine import State, describe_state, is_wrapped, map_state, state_tensors

AnyState = TypeVar("AnyState")


class Checked(NamedTuple):
    """What a layer hands to a layer inside it, in the place of a state: nothing is looked at again.

    Attributes:
        state: before the first step.
        lengths: ``(batch,)``, int64, past which inputs are zero.
        resets: ``(time, batch)``.
    """

    state: State
    lengths: Tensor | None
    resets: Tensor | None


class Layer(nn.Module):
    """A sequence in and a sequence out, with the state going in and coming out.

    ``outputs, state = layer(inputs, state=None, *, lengths=None, resets=None)``. Nothing is remembered on the layer
    itself, so a whole sequence, its chunks one after the other, and its single steps give the same outputs and states
    (but where the layer is not :attr:`causal`).

    Args:
        input_size: features of the inputs.
        output_size: features of the outputs.
        batch_first: whether sequences are ``(batch, time, features)`` (as everywhere in this library) or
            ``(time, batch, features)``. States have the batch first in either case.

    >>> import rnn_blocks
    >>> layer = rnn_blocks.LSTM(3, 4)
    >>> isinstance(layer, Layer), layer.input_size, layer.output_size
    (True, 3, 4)
    """

    causal: bool = True
    """Whether outputs depend on no later input. A layer that looks ahead, such as a bidirectional one, has no single
    steps, and its chunks do not add up to the whole."""

    def __init__(self, input_size: int, output_size: int, *, batch_first: bool = True) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = output_size
        self.batch_first = batch_first

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """The state before the first step, of the dtype and on the device of ``like``."""
        raise NotImplementedError(f"{type(self).__name__} needs an `initial_state(batch_size, like)`")

    def run(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """What :meth:`forward` does once its arguments are checked.

        ``inputs`` and ``resets`` have time first, and inputs are zero past each length. A layer inside is called by
        ``call``, so that its hooks run.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a `run(inputs, state, lengths, resets)`")

    def call(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """:meth:`run`, with the layer called as a module: what a layer does with one inside it; time first.

        Forward hooks see inputs and outputs in the layer's own order, batch first or not.
        """
        outputs, after = self(inputs.transpose(0, 1) if self.batch_first else inputs, Checked(state, lengths, resets))
        return (outputs.transpose(0, 1) if self.batch_first else outputs), after

    def forward(
        self,
        inputs: Tensor | PackedSequence,
        state: State | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run over a sequence.

        Args:
            inputs: ``(batch, time, input_size)``, or time first where ``batch_first`` is false; or packed, and then
                the outputs are. States have the sequences in their order from before they were sorted.
            state: the state before the first step; by default :meth:`initial_state`'s.
            lengths: steps that count in each sequence, ``(batch,)`` or a list, zeros allowed; by default all. What
                stands past them does not count, whatever it is.
            resets: ``(batch, time)`` (or time first), true where the state starts afresh before that step.

        Returns:
            The outputs, ``(batch, time, output_size)``, zero past each length, and the state at each length.

        Raises:
            ValueError: where a shape does not fit, or a length is negative or beyond the sequence.
        """
        if isinstance(inputs, PackedSequence):
            return self._forward_packed(inputs, state, lengths, resets)
        given: object = state
        if isinstance(given, Checked):
            outputs, after = self.run(inputs.transpose(0, 1) if self.batch_first else inputs, *given)
            return (outputs.transpose(0, 1) if self.batch_first else outputs), after
        if inputs.dim() != 3 or inputs.shape[-1] != self.input_size:
            order = "(batch, time, input_size)" if self.batch_first else "(time, batch, input_size)"
            raise ValueError(
                f"inputs must be {order} with input_size {self.input_size}, got a tensor of shape {tuple(inputs.shape)}"
            )
        if self.batch_first:
            inputs = inputs.transpose(0, 1)
        time, batch = inputs.shape[:2]
        if time == 0:
            raise ValueError(f"a sequence needs at least one step, got inputs of {batch} sequences of 0 steps")
        if lengths is not None:
            lengths = checked_lengths(lengths, time, batch, inputs.device)
        if resets is not None:
            marks = (batch, time) if self.batch_first else (time, batch)
            if resets.shape != marks:
                raise ValueError(
                    f"resets must mark each step of each sequence, {batch} sequences of {time} steps as {marks}, "
                    f"got a tensor of shape {tuple(resets.shape)}"
                )
            resets = resets.transpose(0, 1) if self.batch_first else resets
        if state is None:
            state = self.initial_state(batch, inputs)
        else:
            self._check_state(state, batch, inputs)
        if lengths is not None:  # a gradient of zero times what is not a number would be none
            active = torch.arange(time, device=inputs.device)[:, None] < lengths  # (time, batch)
            inputs = torch.where(active[..., None], inputs, 0.0)
        outputs, state = self.run(inputs, state, lengths, resets)
        return (outputs.transpose(0, 1) if self.batch_first else outputs), state

    def _forward_packed(
        self,
        packed: PackedSequence,
        state: State | None,
        lengths: Tensor | Sequence[int] | None,
        resets: Tensor | None,
    ) -> tuple[PackedSequence, State]:
        if lengths is not None or resets is not None:
            raise ValueError("a packed sequence has its lengths with it, and no resets: pad it, or give neither")

        def run(inputs: Tensor, own: Tensor) -> tuple[Tensor, State]:
            outputs, after = self.forward(inputs, state, lengths=own)
            assert isinstance(outputs, Tensor)
            return outputs, after

        return run_padded(run, packed, batch_first=self.batch_first)

    def step(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step of time: ``(batch, input_size)`` and a state to ``(batch, output_size)`` and the next state.

        Raises:
            ValueError: for a layer that is not :attr:`causal`.
        """
        self._check_causal()
        outputs, state = self(inputs.unsqueeze(1 if self.batch_first else 0), state)
        return outputs.squeeze(1 if self.batch_first else 0), state

    def _check_step(self, inputs: Tensor, state: State | None) -> None:
        """What costs a microsecond to look at; a step may be one of thousands."""
        if inputs.dim() != 2 or inputs.shape[1] != self.input_size:
            raise ValueError(
                f"a step takes inputs (batch, input_size) with input_size {self.input_size}, got a tensor of shape "
                f"{tuple(inputs.shape)}"
            )
        if state is not None and any(tensor.shape[:1] != inputs.shape[:1] for tensor in state_tensors(state)):
            self._check_state(state, inputs.shape[0], inputs)

    def _check_causal(self) -> None:
        if not self.causal:
            raise ValueError(
                f"{type(self).__name__} has no single steps: it reads sequences from both ends; "
                "run it over a whole sequence"
            )

    def _check_state(self, state: State, batch: int, like: Tensor) -> None:
        # shapes without numbers: a state that holds noise must not draw any here, which would change what follows
        expected = self.initial_state(batch, like.new_empty(0, device="meta"))
        try:
            map_state(_same_shape, expected, state)
        except ValueError as error:
            raise ValueError(
                f"the state of this {type(self).__name__} for {batch} sequences is {describe_state(expected)}, "
                f"got {describe_state(state)}"
            ) from error


def check_layer(owner: str, layer: object) -> None:
    """Raise ValueError where what should be a layer is a cell, a layer of torch's own, or something else.

    >>> from rnn_blocks import GRUCell
    >>> check_layer("Stack", GRUCell(3, 4))
    Traceback (most recent call last):
    ...
    ValueError: Stack needs a layer, got GRUCell, which is a cell: Recurrent(cell) is a layer of it
    """
    name, why = type(layer).__name__, ""
    if isinstance(layer, Cell):
        why = ", which is a cell: Recurrent(cell) is a layer of it"
    elif isinstance(layer, Layer) or hasattr(layer, "output_size"):  # that of torch.compile is no subclass
        return
    elif isinstance(layer, nn.RNNBase):
        own = {"RNN": "Elman"}.get(name, name)
        why = f" of torch.nn: rnn_blocks.{own}.from_torch(layer) makes a layer of it"
    raise ValueError(f"{owner} needs a layer, got {name}{why}")


def run_padded(
    run: Callable[[Tensor, Tensor], tuple[Tensor, AnyState]], packed: PackedSequence, *, batch_first: bool
) -> tuple[PackedSequence, AnyState]:
    """What takes padded sequences and their lengths, run over packed ones: its outputs packed alike, and its state.

    The state has the sequences in their order from before they were sorted.

    >>> from torch.nn.utils.rnn import pack_sequence
    >>> packed = pack_sequence([torch.tensor([1.0]), torch.tensor([2.0, 3.0])], enforce_sorted=False)
    >>> outputs, state = run_padded(lambda inputs, lengths: (2 * inputs, lengths), packed, batch_first=True)
    >>> outputs.data.tolist(), state.tolist()
    ([4.0, 2.0, 6.0], [1, 2])
    """
    inputs, lengths = pad_packed_sequence(packed, batch_first=batch_first)  # in the order before sorting
    outputs, state = run(inputs, lengths)
    order = packed.sorted_indices
    if order is not None:
        outputs, lengths = outputs.index_select(0 if batch_first else 1, order), lengths[order.to(lengths.device)]
    data = pack_padded_sequence(outputs, lengths, batch_first=batch_first).data
    return PackedSequence(data, packed.batch_sizes, order, packed.unsorted_indices), state


def checked_lengths(lengths: Tensor | Sequence[int], time: int, batch: int, device: torch.device) -> Tensor:
    """``lengths`` on ``device`` as int64.

    Raises:
        ValueError: where they are not one integer a sequence, or (on a CPU) one is not within 0 and ``time``.

    >>> checked_lengths(torch.tensor([3, 0], dtype=torch.int32), 3, 2, torch.device("cpu"))
    tensor([3, 0])
    """
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths, dtype=None if len(lengths) else torch.int64, device="cpu")
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"lengths must be {batch} integers, one a sequence, got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    # numbers are looked at where that is cheap and possible: not on a GPU, while a graph is recorded, or under vmap
    known = lengths.device.type == "cpu" and not torch.compiler.is_compiling() and not is_wrapped(lengths)
    if known and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= time:
        raise ValueError(f"lengths must lie between 0 and the {time} steps given, got {lengths.tolist()}")
    return lengths.to(device, torch.int64)  # what indexing takes, and wide enough to reckon with


def without_padding(ids: Tensor, lengths: Tensor) -> Tensor:
    """Ids ``(batch, time)`` with 0 past each length, where what stands may be no id of the vocabulary.

    >>> without_padding(torch.tensor([[5, 6], [7, -100]]), torch.tensor([2, 1])).tolist()
    [[5, 6], [7, 0]]
    """
    return ids.masked_fill(torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None], 0)


def _same_shape(expected: Tensor, given: Tensor) -> Tensor:
    if expected.shape != given.shape:
        raise ValueError(f"{tuple(expected.shape)} against {tuple(given.shape)}")
    return given
