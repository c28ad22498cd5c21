"""Layers on top of each other."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import dropout

from rnn_blocks.engine import State
from rnn_blocks.layers.layer import Layer


class Stack(Layer):
    """Layers on top of each other: the state is broken into groups, one a layer (Goodfellow et al., fig. 10.13a).

    Args:
        layers: from the bottom up; each takes what the one below gives.
        dropout: the part of the features that is zeroed between layers (not below the first or above the last), as
            in Zaremba et al. (2014).

    Raises:
        ValueError: where there is no layer, the widths do not fit, ``dropout`` is not in [0, 1), or the layers do not
            agree on ``batch_first``.

    >>> import torch, rnn_blocks
    >>> stack = Stack([rnn_blocks.LSTM(3, 8), rnn_blocks.GRU(8, 4)], dropout=0.5)
    >>> outputs, (lower, upper) = stack(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(self, layers: Sequence[Layer], *, dropout: float = 0.0) -> None:
        if not layers:
            raise ValueError("a stack needs at least one layer, got none")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        for number, (below, above) in enumerate(pairwise(layers), start=1):
            if below.output_size != above.input_size:
                raise ValueError(
                    f"layer {number} takes {above.input_size} features, but layer {number - 1} below it gives "
                    f"{below.output_size}"
                )
        batch_first = layers[0].batch_first
        if any(layer.batch_first != batch_first for layer in layers):
            raise ValueError(f"the layers must agree on batch_first, got {[layer.batch_first for layer in layers]}")
        super().__init__(layers[0].input_size, layers[-1].output_size, batch_first=batch_first)
        self.layers = nn.ModuleList(layers)
        self.dropout = dropout

    def initial_state(self, batch_size: int, like: Tensor) -> tuple[State, ...]:
        """A tuple of the layers' own."""
        return tuple(layer.initial_state(batch_size, like) for layer in self._layers())

    def run(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """From the bottom up; time first."""
        after: list[State] = []
        outputs = inputs
        for layer, before in zip(self._layers(), state, strict=True):
            if after:
                outputs = dropout(outputs, self.dropout, self.training)
            outputs, new = layer.run(outputs, before, lengths, resets)
            after.append(new)
        return outputs, tuple(after)

    def step(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step of time through every layer."""
        if state is None:
            state = self.initial_state(inputs.shape[0], inputs)
        after: list[State] = []
        outputs = inputs
        for layer, before in zip(self._layers(), state, strict=True):
            if after:
                outputs = dropout(outputs, self.dropout, self.training)
            outputs, new = layer.step(outputs, before)
            after.append(new)
        return outputs, tuple(after)

    def _layers(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]
