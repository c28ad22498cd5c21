"""Dropout of a layer's weights."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import dropout

from rnn_blocks.cells.settled import computed, original, weight_names
from rnn_blocks.checks import number
from rnn_blocks.engine import MethodCall, State
from rnn_blocks.layers.layer import Layer, check_layer


class WeightDrop(Layer):
    """DropConnect on the recurrent weights of a layer, whatever it is made of.

    Wan et al. (2013), "Regularization of neural networks using DropConnect"; Merity et al. (2018), "Regularizing and
    optimizing LSTM language models", section 2. In training each call runs the layer with, in place of ``U``::

        U · [u ≥ p] / (1 - p)    u uniform in [0, 1) for each number of U

    with one mask for all the steps and sequences of the call: of a chunk, in truncated BPTT. In evaluation it is the
    layer.

    What is left of the weights is handed to the layer for the time of the call. Its parameters are neither renamed nor
    written to, and gradients reach them through the mask. The layer runs on its own engine, native kernels included. Of
    weights that are parametrised or pruned, what is computed is dropped.

    Args:
        layer: any layer.
        p: the part of the weights that is zeroed.
        weights: which ones, by the last part of a parameter's name, in every cell inside.

    Raises:
        ValueError: for a ``p`` outside of [0, 1), and a name that no parameter of the layer has.

    >>> import torch, rnn_blocks
    >>> layer = WeightDrop(rnn_blocks.LSTM(3, 4, num_layers=2), p=0.5)
    >>> outputs, state = layer(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(self, layer: Layer, p: float, *, weights: Sequence[str] = ("weight_hh",)) -> None:
        number("p", p, high=1)
        check_layer("WeightDrop", layer)
        names = weight_names(layer)
        unknown = [name for name in weights if name not in names]
        if unknown or not weights or isinstance(weights, str):
            raise ValueError(
                f"weights must be names of parameters of this {type(layer).__name__}, some of "
                f"{', '.join(map(repr, sorted(names)))}, got {weights!r}"
            )
        super().__init__(layer.input_size, layer.output_size, batch_first=layer.batch_first)
        self.layer = layer
        self.p = p
        self.weights = tuple(weights)
        self.causal = layer.causal
        # made once, since a graph of torch.compile ends where a module is made; a dict hides them from state dicts
        self._calls = {method: MethodCall(layer, method) for method in ("call", "step")}

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """The layer's."""
        return self.layer.initial_state(batch_size, like)

    def run(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """The layer's, with what is left of its weights; time first."""
        return self._dropped("call", inputs, state, lengths, resets)

    def step(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The layer's step; in training each has a mask of its own."""
        return self._dropped("step", inputs, state)

    def _dropped(self, method: str, *arguments: Any) -> tuple[Tensor, State]:
        dropping = self.training and self.p > 0
        layer = computed(self.layer) if dropping else self.layer
        # a plain layer is there for one call: what is kept for longer is not to know of it
        call = self._calls[method] if original(layer) is layer else MethodCall(layer, method)
        if call.module is not layer:  # another has been put in its place
            call.module = layer
        if not dropping:
            unchanged: tuple[Tensor, State] = call.forward(*arguments)
            return unchanged
        dropped = {
            name: dropout(parameter, self.p)
            for name, parameter in call.named_parameters()
            if name.rpartition(".")[2] in self.weights
        }
        if not dropped:
            raise ValueError(
                f"WeightDrop finds no parameter named {' or '.join(map(repr, self.weights))} in this "
                f"{type(self.layer).__name__} any more"
            )
        result: tuple[Tensor, State] = functional_call(call, dropped, arguments)
        return result

    def extra_repr(self) -> str:
        """The probability, and which weights."""
        return f"p={self.p}, weights={self.weights}"
