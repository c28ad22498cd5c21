"""One call of a layer of this library, recorded and run again by the plain loop."""

from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import pad

from rnn_blocks.callbacks.gradient_flow.patched_run import unrecorded
from rnn_blocks.callbacks.gradient_flow.state_replay import (
    Caught,
    Flow,
    ReplayError,
    Source,
    Surroundings,
    Tap,
    flow,
    gradients_of,
    last_steps_only,
    relative_error,
    squared_norms,
)

if TYPE_CHECKING:
    from rnn_blocks.engine import State
    from rnn_blocks.layers import Recurrent


class LayerCall:
    """A call of `Recurrent.run`: what it was given, and with which weights.

    All is copied: by the time of the replay weights may have been stepped, resharded, or dropped again by another mask
    (`WeightDrop`), and inputs, states and outputs changed in place.

    Args:
        layer: whose call it is.
        inputs: ``(time, batch, input_size)``.
        state: before the first step.
        lengths: ``(batch,)`` or None.
        resets: ``(time, batch)`` or None.
    """

    def __init__(
        self, layer: "Recurrent", inputs: Tensor, state: "State", lengths: Tensor | None, resets: Tensor | None
    ) -> None:
        from rnn_blocks.engine import map_state

        self.layer = layer
        self.inputs = inputs.detach().clone()
        self.state = map_state(lambda tensor: tensor.detach().clone(), state)
        self.lengths, self.resets = lengths, resets
        self.surroundings = Surroundings(inputs.device)
        self.weights = {
            f"module.{name}": tensor.detach().clone()
            for name, tensor in chain(layer.named_parameters(), layer.named_buffers())
        }
        self.caught = Caught()

    def gave(self, outputs: Tensor, state: "State") -> tuple[Tensor, "State"]:
        """Note what the call gave; returns what is to be used in its place."""
        from rnn_blocks.engine import like_state, state_tensors

        self.outputs = outputs.detach().clone()
        after = [self.caught.alias(index, tensor) for index, tensor in enumerate(state_tensors(state), start=1)]
        return self.caught.alias(0, outputs), like_state(state, after)

    def replay(self, source: Source) -> dict[str, Flow]:
        """The flow through it, under an empty name: a `Recurrent` is one recurrence."""
        from rnn_blocks.engine import MethodCall, map_state, state_tensors

        layer, cell = self.layer, self.layer.cell
        dilation: int = getattr(layer, "dilation", 1)
        tap = Tap(cell.step, _folded(self.outputs, dilation))
        engine = layer.engine
        # For the time of the replay the layer runs by the loop, and the loop by the tap: whatever else its class does
        # in `run`, such as running phases side by side, is done here too.
        theirs = {name: value for name, value in vars(cell).items() if name == "step"}  # that somebody has put on it
        layer.engine, vars(cell)["step"] = "loop", tap
        try:
            # another monitor would take this for a call of the training
            with unrecorded(layer), self.surroundings.again():
                given = (_leaf(self.inputs), map_state(_leaf, self.state), self.lengths, self.resets)
                outputs, after = functional_call(MethodCall(layer, "run"), self.weights, given)
        finally:
            layer.engine = engine
            del vars(cell)["step"]
            vars(cell).update(theirs)
        if len(tap.hidden) != len(tap.known):
            raise ReplayError(
                f"was not measured: in {len(tap.known)} steps of time it took {len(tap.hidden)} of its cell's"
            )
        reached = self.caught.kept
        own = reached.get(0) if source == "all" else last_steps_only(reached.get(0), self.lengths)
        finals = [(tensor, reached.get(index)) for index, tensor in enumerate(state_tensors(after), start=1)]
        squares = squared_norms(gradients_of([(outputs, own), *finals], tap.hidden))
        time, batch = self.inputs.shape[:2]
        differences = torch.stack(tap.differences)
        error = relative_error(
            differences.reshape(-1, batch, *differences.shape[2:])[:time], self.outputs, self.lengths
        )
        return {"": flow(squares.reshape(-1, batch)[:time], self.lengths, error)}


def _leaf(tensor: Tensor) -> Tensor:
    """A tensor that starts a graph, where it can: so that the first hidden state is in one."""
    tensor = tensor.detach()
    return tensor.requires_grad_() if tensor.is_floating_point() or tensor.is_complex() else tensor


def _folded(outputs: Tensor, dilation: int) -> list[Tensor]:
    """``(time, batch, …)`` as the steps that a dilated layer makes of it: phases side by side."""
    missing = -len(outputs) % dilation
    padded = pad(outputs, [0, 0] * (outputs.dim() - 1) + [0, missing])
    return list(padded.reshape(-1, dilation * outputs.shape[1], *outputs.shape[2:]).unbind(0))
