"""From what the encoder ends with to what the decoder starts from."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from rnn_blocks.cells.wrapper import map_units
from rnn_blocks.engine import State, describe_state, hidden_of
from rnn_blocks.layers import Bidirectional, Layer, Recurrent, Stack, VariationalDropout, WeightDrop
from rnn_blocks.seq2seq.encoder import Encoded


class Bridge(nn.Module):
    """From the encoder to the decoder's start: the fixed vector of an encoder–decoder.

    ``state, context = bridge(encoded)``: the decoder's state before its first step, and what it is given at every step
    besides, or ``None``. A bridge of your own says what the context is in :meth:`context`; the state is then
    ``tanh(W context + b)``, cut up for all tensors that hold one number a unit (an LSTM's ``h`` and ``c``, of every
    layer). What else is in the decoder's state, such as the noise of dropout, a clock or a history, starts as it does
    without a bridge.

    Args:
        encoder_layer: the encoder's.
        decoder_layer: the decoder's. It stays the decoder's: its parameters are not the bridge's.
        summary_size: features that the state is made of, as :meth:`context` gives; 0 for a bridge that makes the state
            in another way.

    Raises:
        ValueError: for a decoder layer that is not :attr:`~rnn_blocks.Layer.causal`, or a layer without a state.

    >>> import torch, rnn_blocks
    >>> class FirstOutputBridge(Bridge):
    ...     def __init__(self, encoder_layer, decoder_layer):
    ...         super().__init__(encoder_layer, decoder_layer, summary_size=encoder_layer.output_size)
    ...     def context(self, encoded):
    ...         return encoded.outputs[:, 0]
    >>> encoder, decoder = rnn_blocks.Encoder(rnn_blocks.GRU(3, 4, bidirectional=True), 10), rnn_blocks.LSTM(3, 5)
    >>> ((h, c),), context = FirstOutputBridge(encoder.layer, decoder)(encoder(torch.tensor([[5, 6, 2]])))
    >>> c.shape, context.shape
    (torch.Size([1, 5]), torch.Size([1, 8]))
    """

    context_size: int
    """Features of the context given to the decoder at every step; 0 where there is none."""

    def __init__(self, encoder_layer: Layer, decoder_layer: Layer, *, summary_size: int) -> None:
        super().__init__()
        if not decoder_layer.causal:
            raise ValueError(
                f"a decoder's layer must be causal, got a {type(decoder_layer).__name__} that reads sequences from "
                "both ends"
            )
        self._layers = (encoder_layer, decoder_layer)  # a tuple: neither is a part of the bridge
        self.context_size = summary_size
        self.units = [_numbers(tensor) for tensor in _units(decoder_layer, template(decoder_layer))]
        for side, layer in (("encoder", encoder_layer), ("decoder", decoder_layer)):
            if not _units(layer, template(layer)):
                raise ValueError(f"the {side}'s {type(layer).__name__} has no state to bridge")
        self.state_layer = nn.Linear(summary_size, sum(self.units)) if summary_size else None

    def context(self, encoded: Encoded) -> Tensor:
        """The fixed vector, ``(batch, context_size)``."""
        raise NotImplementedError(f"{type(self).__name__} needs a `context(encoded)`")

    def forward(self, encoded: Encoded) -> tuple[State, Tensor | None]:
        """The decoder's state before its first step, and the context of all its steps, ``(batch, context_size)``.

        Raises:
            ValueError: where the encoder's state is not one of the layer that the bridge was made for.
        """
        self._check(encoded)
        context = self.context(encoded)
        return self.state_from(context, encoded), context

    def state_from(self, summary: Tensor, encoded: Encoded) -> State:
        """``tanh(W summary + b)`` in the decoder's nest."""
        assert self.state_layer is not None
        return self._start(encoded, self.state_layer(summary).tanh().split(self.units, dim=-1))

    def last_hidden(self, encoded: Encoded) -> Tensor:
        """The last ``h`` of each of the encoder's layers and directions side by side, ``(batch, features)``."""
        return torch.cat([_real(hidden_of(state)) for _, state in _cells(self._layers[0], encoded.state)], dim=-1)

    def _start(self, encoded: Encoded, tensors: tuple[Tensor, ...] | list[Tensor]) -> State:
        """The decoder's first state with ``tensors`` for its units."""
        layer = self._layers[1]
        remaining = iter(tensors)
        return _map_layer(lambda old: _like(next(remaining), old), layer, layer.initial_state(*_batch(encoded)))

    def _check(self, encoded: Encoded) -> None:
        layer = self._layers[0]
        expected = layer.initial_state(_batch(encoded)[0], torch.empty(0, device="meta"))
        if describe_state(expected) != describe_state(encoded.state):
            raise ValueError(
                f"the bridge was made for a {type(layer).__name__} with the state {describe_state(expected)} as its "
                f"encoder, got {describe_state(encoded.state)}"
            )


class LastStateBridge(Bridge):
    """The decoder starts where the encoder ended (Sutskever et al. 2014, section 2), and gets no context.

    Where the two layers have states of the same shapes, layer by layer, and the encoder reads one way, the state
    is the encoder's own, with nothing to learn. Else each of its tensors is ``tanh(W h + b)`` of the encoder's last
    ``h`` of all layers and directions, side by side (as in Bahdanau et al. 2015, appendix A.2.2, of the backward
    direction alone).

    Arguments and errors are those of :class:`~rnn_blocks.Bridge`.

    >>> import torch, rnn_blocks
    >>> encoder, decoder = rnn_blocks.Encoder(rnn_blocks.GRU(3, 4), 10), rnn_blocks.GRU(3, 4)
    >>> encoded = encoder(torch.tensor([[5, 6, 2]]))
    >>> (h,), context = LastStateBridge(encoder.layer, decoder)(encoded)
    >>> torch.equal(h, encoded.state[0]), context
    (True, None)
    """

    def __init__(self, encoder_layer: Layer, decoder_layer: Layer) -> None:
        alike = _alike(encoder_layer, decoder_layer)
        super().__init__(encoder_layer, decoder_layer, summary_size=0 if alike else _hidden_size(encoder_layer))
        self.context_size = 0

    def forward(self, encoded: Encoded) -> tuple[State, Tensor | None]:
        """See :meth:`rnn_blocks.Bridge.forward`; there is no context."""
        self._check(encoded)
        if self.state_layer is not None:
            return self.state_from(self.last_hidden(encoded), encoded), None
        return self._start(encoded, _units(self._layers[0], encoded.state)), None


class MeanBridge(Bridge):
    """The mean of the encoder's outputs is the context of every step, and the state is ``tanh(W context + b)``.

    Arguments and errors are those of :class:`~rnn_blocks.Bridge`. A source of length 0 has a context of zeros.

    >>> import torch, rnn_blocks
    >>> encoder, decoder = rnn_blocks.Encoder(rnn_blocks.GRU(3, 4), 10), rnn_blocks.GRU(3, 5)
    >>> bridge = MeanBridge(encoder.layer, decoder)
    >>> (h,), context = bridge(encoder(torch.tensor([[5, 6, 2]])))
    >>> h.shape, context.shape, bridge.context_size
    (torch.Size([1, 5]), torch.Size([1, 4]), 4)
    """

    def __init__(self, encoder_layer: Layer, decoder_layer: Layer) -> None:
        super().__init__(encoder_layer, decoder_layer, summary_size=encoder_layer.output_size)

    def context(self, encoded: Encoded) -> Tensor:
        """The mean over each length."""
        outputs = encoded.outputs
        lengths = encoded.lengths.to(outputs.device).unsqueeze(-1)
        active = torch.arange(outputs.shape[1], device=outputs.device) < lengths  # (batch, source)
        return torch.where(active.unsqueeze(-1), outputs, 0.0).sum(1) / lengths.clamp(min=1)


class ProjectedBridge(Bridge):
    """``context = tanh(V h)`` of the encoder's last ``h``, and the state is ``tanh(W context + b)``.

    Cho et al. (2014), appendix A.1; the context, of the encoder's ``output_size`` features, is given at every step.
    Of several layers and directions, the last ``h`` are taken side by side.

    Arguments and errors are those of :class:`~rnn_blocks.Bridge`.

    >>> import torch, rnn_blocks
    >>> encoder, decoder = rnn_blocks.Encoder(rnn_blocks.GRU(3, 4), 10), rnn_blocks.GRU(3, 5)
    >>> bridge = ProjectedBridge(encoder.layer, decoder)
    >>> (h,), context = bridge(encoder(torch.tensor([[5, 6, 2]])))
    >>> h.shape, context.shape, bridge.context_size
    (torch.Size([1, 5]), torch.Size([1, 4]), 4)
    """

    def __init__(self, encoder_layer: Layer, decoder_layer: Layer) -> None:
        super().__init__(encoder_layer, decoder_layer, summary_size=encoder_layer.output_size)
        self.context_layer = nn.Linear(_hidden_size(encoder_layer), self.context_size)

    def context(self, encoded: Encoded) -> Tensor:
        """``tanh(V h)``."""
        context: Tensor = self.context_layer(self.last_hidden(encoded)).tanh()
        return context


BridgeName: TypeAlias = Literal["last-state", "mean", "projected"]
BRIDGES: dict[BridgeName, Callable[[Layer, Layer], Bridge]] = {
    "last-state": LastStateBridge,
    "mean": MeanBridge,
    "projected": ProjectedBridge,
}


def make_bridge(name: BridgeName, encoder_layer: Layer, decoder_layer: Layer) -> Bridge:
    """A bridge by its name.

    Args:
        name: ``"last-state"``, ``"mean"`` or ``"projected"``.
        encoder_layer: the encoder's.
        decoder_layer: the decoder's.

    Raises:
        ValueError: for another name, or layers that it cannot bridge.

    >>> import rnn_blocks
    >>> make_bridge("mean", rnn_blocks.GRU(3, 4), rnn_blocks.LSTM(3, 5))
    MeanBridge(
      (state_layer): Linear(in_features=4, out_features=10, bias=True)
    )
    """
    if name not in BRIDGES:
        raise ValueError(f"bridge must be one of {', '.join(map(repr, BRIDGES))}, got {name!r}")
    return BRIDGES[name](encoder_layer, decoder_layer)


# A layer's state, by what its parts mean


def template(layer: Layer) -> State:
    """The state of one sequence, shapes and dtypes alone.

    >>> import rnn_blocks
    >>> describe_state(template(rnn_blocks.LSTM(3, 4)))
    '(((1, 4), (1, 4)))'
    """
    return layer.initial_state(1, torch.empty(0, device="meta"))


def _cells(layer: nn.Module, state: State) -> list[tuple[nn.Module, State]]:
    """The recurrent parts of a layer with their states, from the bottom up and forward first."""
    if isinstance(layer, VariationalDropout):  # whose state is noise
        return []
    parts = _parts(layer)
    if not parts:
        return [(layer, state)]
    states = (state,) if isinstance(layer, WeightDrop) else state
    return [cell for part, inner in zip(parts, states, strict=True) for cell in _cells(part, inner)]


def _parts(layer: nn.Module) -> list[nn.Module]:
    if isinstance(layer, Stack):
        return list(layer.layers)
    if isinstance(layer, Bidirectional):
        return [layer.forward_layer, layer.backward_layer]
    return [layer.layer] if isinstance(layer, WeightDrop) else []


def _map_layer(function: Callable[[Tensor], Tensor], layer: nn.Module, state: State) -> State:
    """``state`` with ``function`` of each tensor that holds one number a unit."""
    if isinstance(layer, VariationalDropout):
        return state
    if isinstance(layer, WeightDrop):
        return _map_layer(function, layer.layer, state)
    if parts := _parts(layer):
        return tuple(_map_layer(function, part, inner) for part, inner in zip(parts, state, strict=True))
    if isinstance(layer, Recurrent):
        return map_units(lambda old, _: function(old), layer.cell, state, state)
    if isinstance(state, Tensor):  # a layer of somebody else's
        return function(state) if state.is_floating_point() or state.is_complex() else state
    return tuple(_map_layer(function, layer, part) for part in state)


def _units(layer: nn.Module, state: State) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map_layer(note, layer, state)
    return found


def _alike(encoder: Layer, decoder: Layer) -> bool:
    """Whether each part of one layer has the units of its counterpart in the other."""
    if not encoder.causal:
        return False

    def shapes(layer: Layer) -> list[list[tuple[torch.Size, bool]]]:
        return [
            [(tensor.shape, tensor.is_complex()) for tensor in _units(part, state)]
            for part, state in _cells(layer, template(layer))
        ]

    return shapes(encoder) == shapes(decoder)


def _hidden_size(layer: Layer) -> int:
    return sum(_numbers(hidden_of(state)) for _, state in _cells(layer, template(layer)))


def _numbers(tensor: Tensor) -> int:
    """Real numbers that a sequence has in a tensor."""
    return tensor[0].numel() * (2 if tensor.is_complex() else 1)


def _real(tensor: Tensor) -> Tensor:
    """As ``(batch, numbers)``."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten(1)


def _like(tensor: Tensor, old: Tensor) -> Tensor:
    """``tensor`` in the shape and the dtype of ``old``; ``(batch, numbers)`` for a complex one as well."""
    if old.is_complex() and not tensor.is_complex():
        part = torch.float64 if old.dtype == torch.complex128 else torch.float32
        return torch.view_as_complex(tensor.to(part).reshape(*old.shape, 2))
    return tensor.reshape(old.shape).to(old.dtype)


def _batch(encoded: Encoded) -> tuple[int, Tensor]:
    return encoded.outputs.shape[0], encoded.outputs
