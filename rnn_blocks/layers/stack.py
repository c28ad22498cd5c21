"""Layers on top of each other."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from rnn_blocks.checks import number, warn
from rnn_blocks.engine import State
from rnn_blocks.layers.layer import Layer, check_layer
from rnn_blocks.layers.skip_paths import SKIPS, HighwayPath, ResidualPath, Skip

RunLayer = Callable[[Layer, Tensor, State], tuple[Tensor, State]]


class Stack(Layer):
    """Layers on top of each other: the state is broken into groups, one a layer (Goodfellow et al., fig. 10.13a).

    Skips across the layers shorten the paths that the layers made longer (fig. 10.13c). With ``x`` the stack's input
    and ``y_k`` what leaves layer ``k``, of which the last is the stack's output:

    - ``None``: ``y_k = layer_k(y_{k-1})``, and ``y_{-1} = x``;
    - ``"residual"``: ``y_k = layer_k(y_{k-1}) + y_{k-1}`` (He et al. 2016; Wu et al. 2016);
    - ``"highway"``: ``y_k = t · layer_k(y_{k-1}) + (1 - t) · y_{k-1}`` with ``t = σ(W y_{k-1} + b)``, where ``b``
      starts at -1 (Srivastava et al. 2015);
    - ``"dense"``: ``y_k = layer_k([x, y_0, …, y_{k-1}])`` (Huang et al. 2017);
    - ``"input"``: ``y_k = layer_k([x, y_{k-1}])`` above the first layer (Graves 2013).

    Where a layer gives another width than it takes, the residual and the highway pass its input by through a learned
    projection without a bias. The dense stack and the one with the input skipped need wider layers: see
    :meth:`input_sizes`.

    Args:
        layers: from the bottom up; each takes what the skip says.
        skip: the path across layers.
        dropout: the part of the features that is zeroed between layers, as in Zaremba et al. (2014): in what a layer
            takes from layers below it. The stack's input, its output, and what passes a layer by are left whole; of a
            single layer nothing is zeroed, which a warning says.

    Raises:
        ValueError: where there is no layer, the widths do not fit, ``skip`` is none of these, ``dropout`` is not in
            [0, 1), or the layers do not agree on ``batch_first``.

    >>> import torch, rnn_blocks
    >>> stack = Stack([rnn_blocks.LSTM(3, 8), rnn_blocks.GRU(8, 4)], dropout=0.5)
    >>> outputs, (lower, upper) = stack(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    >>> dense = Stack([rnn_blocks.LSTM(3, 8), rnn_blocks.GRU(3 + 8, 4)], skip="dense")
    """

    def __init__(self, layers: Sequence[Layer], *, skip: Skip | None = None, dropout: float = 0.0) -> None:
        if not layers:
            raise ValueError("a stack needs at least one layer, got none")
        number("dropout", dropout, high=1)
        for layer in layers:
            check_layer("Stack", layer)
        _check_widths(layers, skip)
        batch_first = layers[0].batch_first
        if any(layer.batch_first != batch_first for layer in layers):
            raise ValueError(f"the layers must agree on batch_first, got {[layer.batch_first for layer in layers]}")
        if dropout and len(layers) == 1:
            told = f"{type(self).__name__}: dropout {dropout} does nothing to a single layer, it falls between layers"
            warn(told)
        super().__init__(layers[0].input_size, layers[-1].output_size, batch_first=batch_first)
        self.layers = nn.ModuleList(layers)
        self.skip = skip
        self.dropout = dropout
        self.causal = all(layer.causal for layer in layers)
        path = {"residual": ResidualPath, "highway": HighwayPath}.get(skip or "")
        self.paths = None if path is None else nn.ModuleList(path(one.input_size, one.output_size) for one in layers)

    @staticmethod
    def input_sizes(input_size: int, output_sizes: Sequence[int], *, skip: Skip | None = None) -> list[int]:
        """The features that each layer of a stack must take.

        Args:
            input_size: features of the stack's input.
            output_sizes: features that each layer gives.
            skip: the path across layers.

        Raises:
            ValueError: for an unknown skip.

        >>> Stack.input_sizes(3, [8, 4, 2], skip="dense")
        [3, 11, 15]
        """
        if skip is not None and skip not in SKIPS:
            raise ValueError(f"skip must be None or one of {', '.join(map(repr, SKIPS))}, got {skip!r}")
        if skip == "dense":
            return [input_size + sum(output_sizes[:k]) for k in range(len(output_sizes))]
        extra = input_size if skip == "input" else 0
        return [input_size, *(extra + size for size in output_sizes[:-1])]

    def initial_state(self, batch_size: int, like: Tensor) -> tuple[State, ...]:
        """A tuple of the layers' own."""
        return tuple(layer.initial_state(batch_size, like) for layer in self._layers())

    def run(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """From the bottom up; time first."""
        return self._upwards(inputs, state, lambda layer, taken, before: layer.call(taken, before, lengths, resets))

    def step(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step of time through every layer."""
        self._check_causal()
        self._check_step(inputs, state)
        if state is None:
            state = self.initial_state(inputs.shape[0], inputs)
        elif isinstance(state, Tensor) or len(state) != len(self._layers()):
            self._check_state(state, inputs.shape[0], inputs)
        return self._upwards(inputs, state, lambda layer, taken, before: layer.step(taken, before))

    def _upwards(self, inputs: Tensor, state: State, run_layer: RunLayer) -> tuple[Tensor, State]:
        outputs: list[Tensor] = []
        after: list[State] = []
        for k, (layer, before) in enumerate(zip(self._layers(), state, strict=True)):
            output, new = run_layer(layer, self._taken(inputs, outputs), before)
            if self.paths is not None:
                output = self.paths[k](outputs[-1] if outputs else inputs, output)
            outputs.append(output)
            after.append(new)
        return outputs[-1], tuple(after)

    def _taken(self, inputs: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """What the next layer takes: dropout falls on the outputs below it alone."""
        if not outputs:
            return inputs
        if self.skip == "dense":
            below = torch.cat(list(outputs), dim=-1) if len(outputs) > 1 else outputs[0]
        else:
            below = outputs[-1]
        below = dropout(below, self.dropout, self.training)
        return torch.cat([inputs, below], dim=-1) if self.skip in ("dense", "input") else below

    def _layers(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """What is not the default."""
        options = {"skip": (self.skip, None), "dropout": (self.dropout, 0.0)}
        return ", ".join(f"{name}={value!r}" for name, (value, default) in options.items() if value != default)


def _check_widths(layers: Sequence[Layer], skip: Skip | None) -> None:
    given, outputs = layers[0].input_size, [layer.output_size for layer in layers]
    needed = Stack.input_sizes(given, outputs, skip=skip)
    for k, (layer, size) in enumerate(zip(layers, needed, strict=True)):
        if layer.input_size == size:
            continue
        takes = f"layer {k} takes {layer.input_size} features, but"
        if skip == "dense":
            below = f"all layers below give {' + '.join(map(str, outputs[:k]))}"
        else:
            below = f"layer {k - 1} below it gives {outputs[k - 1]}"
        if skip in ("dense", "input"):
            below = f"with skip={skip!r} it must take {size}: the stack's input has {given}, and {below}"
        raise ValueError(f"{takes} {below}")
