"""Catching a training step's recurrences: which modules have one, and what flows back through each."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from rnn_blocks.callbacks.gradient_flow.compiled import (
    forget_traced,
    note_traced,
    plain_name,
    runs_eagerly,
    was_traced,
)
from rnn_blocks.callbacks.gradient_flow.patched_run import Run, begin_recording, end_recording
from rnn_blocks.callbacks.gradient_flow.replay_layer import LayerCall
from rnn_blocks.callbacks.gradient_flow.replay_torch import TorchCall, torchs_arguments
from rnn_blocks.callbacks.gradient_flow.state_replay import (
    Caught,
    Flow,
    ReplayError,
    Source,
    flow,
    squared_norms,
)
from rnn_blocks.callbacks.measuring.norms import widest

if TYPE_CHECKING:
    from rnn_blocks.engine import State
    from rnn_blocks.layers import Recurrent

StatesOf = Callable[[nn.Module, tuple[Any, ...], Any], Sequence[Tensor]]
MAX_CALLS = 16


class StatesCall:
    """The states that a module handed out itself: what reaches them is all that there is to know."""

    def __init__(self, states: Sequence[Tensor]) -> None:
        self.caught = Caught()
        self.like = [state.detach() for state in states]
        for index, state in enumerate(states):
            self.caught.watch(index, state)

    def replay(self, source: Source) -> dict[str, Flow]:
        """The flow through them, under an empty name."""
        reached = [self.caught.kept.get(index, torch.zeros_like(like)) for index, like in enumerate(self.like)]
        squares = squared_norms(reached)
        return {"": flow(squares, None, squares.new_zeros(()))}


class _Hook:
    """A hook that does nothing on copies of its module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __reduce__(self) -> Any:
        return _Hook, (_nothing,)


def _nothing(*args: Any) -> None:
    pass


class FlowRecorder:
    """Records one training step's calls of some modules and finds out what flows back through them.

    Args:
        targets: modules with a recurrence, by name: `Recurrent` layers of this library, torch's, and those of `states`.
        states: for modules that hand out their states, what makes them of the module, its arguments and its output.
        source: see `GradientFlowMonitor`.

    Attributes:
        problems: of layers that are not measured, or not as a whole, the reason.
        called: the layers that were called where hooks see it, measured or not.
        reached: the layers that a gradient has come back to.
        again: the layers that were called within a backward pass.
    """

    def __init__(self, targets: Mapping[str, nn.Module], states: Mapping[str, StatesOf], source: Source) -> None:
        self.targets = targets
        self.states = states
        self.source = source
        self.flows: dict[str, list[Flow]] = {}
        self.problems: dict[str, str] = {}
        self.called: set[str] = set()
        self.reached: set[str] = set()
        self.again: set[str] = set()
        self._calls: list[tuple[str, LayerCall | TorchCall | StatesCall]] = []
        self._entered: dict[str, TorchCall] = {}
        self._handles: list[RemovableHandle] = []
        self._patched: list[nn.Module] = []
        self._open = False

    def __reduce__(self) -> Any:
        """Copies of a module that is being recorded, as for a target network, hold one that records nothing."""
        return FlowRecorder, ({}, {}, self.source)

    def attach(self) -> None:
        """Begin to record."""
        forget_traced(self.targets)
        for name, module in self.targets.items():
            if name in self.states:
                self._handles.append(module.register_forward_hook(_Hook(partial(self._keep_states, name))))
            elif isinstance(module, nn.RNNBase):
                enter: Any = partial(self._enter, name)
                leave: Any = partial(self._leave, name)
                if runs_eagerly(module):  # but a compiler around it would take the hooks for a part of the model
                    enter, leave = torch.compiler.disable(enter), torch.compiler.disable(leave)
                self._handles.append(module.register_forward_pre_hook(_Hook(enter), with_kwargs=True))
                self._handles.append(module.register_forward_hook(_Hook(leave), with_kwargs=True))
            else:
                begin_recording(module, name, self)
                self._patched.append(module)
        self._open = True

    def detach(self) -> None:
        """Leave the modules as they were, and forget what was recorded."""
        for handle in self._handles:
            handle.remove()
        for module in self._patched:
            end_recording(module, self)
        self._handles, self._patched, self._calls, self._entered = [], [], [], {}
        self._open = False

    def forget_gradients(self) -> None:
        """What gradients have reached since the last `keep_gradients` is no part of the training."""
        for _, call in self._calls:
            call.caught.gradients.clear()

    def keep_gradients(self, scale: Tensor | float) -> None:
        """What they have reached is; they are `scale` times the loss's."""
        for _, call in self._calls:
            call.caught.keep(scale)

    def collect(self, scale: Tensor | float) -> None:
        """Keep gradients, and run those calls again that any were kept of."""
        self.keep_gradients(scale)
        ready = [(name, call) for name, call in self._calls if call.caught.kept]
        self.reached |= {name for name, _ in ready}
        self._calls = [(name, call) for name, call in self._calls if not call.caught.kept]
        recording, self._open = self._open, False
        try:
            for name, call in ready:
                try:
                    flows = call.replay(self.source)
                except ReplayError as reason:
                    self.problems[name] = str(reason)
                    continue
                for suffix, found in flows.items():
                    whole = f"{name}.{suffix}" if suffix else name
                    sums = found.sums / call.caught.scale / call.caught.scale
                    self.flows.setdefault(whole, []).append(Flow(sums, found.counts, found.error))
        finally:
            self._open = recording

    def unreached(self) -> set[str]:
        """The layers of which no gradient has reached a recorded call, and which have not said why themselves."""
        return {name for name, _ in self._calls} - self.reached - self.problems.keys()

    def read(self) -> dict[str, tuple[list[float], float]]:
        """The norm of the gradient at each distance and the replay's error, of each recurrence: in one transfer."""
        if not self.flows:
            return {}
        curves = {name: _joined(flows) for name, flows in self.flows.items()}
        device = next(iter(curves.values())).device
        values = torch.cat([curve.to(device) for curve in curves.values()]).tolist()
        read: dict[str, tuple[list[float], float]] = {}
        for name, curve in curves.items():
            *norms, error = values[: len(curve)]
            values = values[len(curve) :]
            read[name] = (norms, error)
        return read

    def traced(self, name: str) -> bool:
        """Whether a layer went into a compiled graph, where it is not seen."""
        return was_traced(name)

    def _recording(self, name: str) -> bool:
        if torch.compiler.is_compiling():  # asked first: all that is looked at before would be guarded
            note_traced(name)
            return False
        if not self._open:
            return False
        self.called.add(name)
        # Without gradients there is nothing to catch; within a backward pass it is a checkpointed part's second run.
        if not torch.is_grad_enabled():
            return False
        if torch._C._current_graph_task_id() != -1:
            self.again.add(name)
            return False
        if sum(name == other for other, _ in self._calls) < MAX_CALLS:
            return True
        self.problems[name] = (
            f"is called more than {MAX_CALLS} times a training step, of which only the first {MAX_CALLS} are measured; "
            "where it is called once a time step, name a function under `states` that hands out its states instead"
        )
        return False

    def recorded_run(
        self, name: str, layer: "Recurrent", run: Run, inputs: Tensor, state: "State", lengths: Any, resets: Any
    ) -> "tuple[Tensor, State]":
        """The call of a layer's `run`, recorded."""
        if not self._recording(name) or self._sharded(name, layer):
            return run(inputs, state, lengths, resets)
        if 0 in inputs.shape[:2]:  # nothing to measure
            return run(inputs, state, lengths, resets)
        call = LayerCall(layer, inputs, state, lengths, resets)
        self._calls.append((name, call))
        return call.gave(*run(inputs, state, lengths, resets))

    def _enter(self, name: str, module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._entered.pop(name, None)
        if self._recording(name) and not self._sharded(name, module):
            given = torchs_arguments(module, args, kwargs)
            if given is None:
                self._unlike(name, module)
            else:
                self._entered[name] = TorchCall(module, *given)

    def _leave(self, name: str, module: nn.RNNBase, args: Any, kwargs: Any, output: Any) -> Any:
        call = self._entered.pop(name, None)
        if call is None or 0 in call.inputs.shape[:2]:
            return output
        if not call.gives(output):
            self._unlike(name, module)
            return output
        self._calls.append((name, call))
        return call.gave(output)

    def _unlike(self, name: str, module: nn.RNNBase) -> None:
        self.problems[name] = (
            f"was not measured: it takes or gives something else than torch's {module.mode.partition('_')[0]} does; "
            "name a function under `states` that hands out its states, if it has them"
        )

    def _keep_states(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._recording(name):
            states = self.states[name](module, args, output)
            if not states or not all(isinstance(state, Tensor) and state.shape == states[0].shape for state in states):
                raise ValueError(
                    f"GradientFlowMonitor: states[{name!r}] must return one tensor a time step, at least one and all "
                    f"of one shape, got {[getattr(state, 'shape', type(state).__name__) for state in states]}"
                )
            self._calls.append((name, StatesCall(states)))

    def _sharded(self, name: str, module: nn.Module) -> bool:
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            self.problems[name] = "has sharded weights (DTensor), which one rank cannot run again by itself"
            return True
        return False


def recurrences(root: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The recurrent layers of a module by their plain names, and, of those that cannot be measured, the reason.

    >>> found, refused = recurrences(nn.ModuleDict({"encoder": nn.GRU(2, 3), "other": nn.LSTM(2, 3, proj_size=2)}))
    >>> list(found), list(refused)
    (['encoder'], ['other'])
    """
    from rnn_blocks.layers import Recurrent

    found: dict[str, nn.Module] = {}
    refused: dict[str, str] = {}
    for name, module in root.named_modules():
        if not isinstance(module, nn.RNNBase | Recurrent):
            continue
        name = plain_name(name)
        if isinstance(module, nn.RNNBase) and module.proj_size:
            refused[name] = f"has a projection of its outputs (proj_size={module.proj_size}), which is not supported"
        else:
            found[name] = module
    return found, refused


def _joined(flows: Sequence[Flow]) -> Tensor:
    """One curve of several calls, as though their sequences were of one batch; the largest error at its end."""
    longest = max(len(flow.sums) for flow in flows)
    sums = torch.stack([_extended(flow.sums, longest) for flow in flows]).sum(0)
    counts = torch.stack([_extended(flow.counts, longest) for flow in flows]).sum(0)
    # Where fewer sequences are as long, the norm is that of a whole batch of such.
    norms = (sums * counts[0] / counts.clamp(min=1)).sqrt()
    error = torch.stack([flow.error for flow in flows]).max()
    return torch.cat([norms, error[None].to(norms)])


def _extended(values: Tensor, length: int) -> Tensor:
    return torch.cat([values, values.new_zeros(length - len(values))]).to(widest(values.device))
