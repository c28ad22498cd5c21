"""One step of time and its derivative, recorded as a graph of torch's own operators."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functionalize
from torch.overrides import TorchFunctionMode

from rnn_blocks.engine.graph import (
    ancestors,
    aten,
    changes_tensors,
    is_call,
    is_random,
    looks_at_numbers,
    tidy,
)
from rnn_blocks.engine.program import Program
from rnn_blocks.engine.recorder import Recording, recorded, tensors_in
from rnn_blocks.engine.split import Compiler, Splitter

Joint = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


class NotTraceableError(ValueError):
    """A step that cannot be recorded: it changes its inputs in place, or looks at their numbers."""


class _NoNumbers(TorchFunctionMode):
    """Refuses what hands the numbers of a tensor to Python or NumPy without an operator that would be recorded."""

    _LOOKS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
    _MAKE = (torch.tensor, torch.as_tensor, Tensor.new_tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        lists = [value for value in (*args, *kwargs.values()) if isinstance(value, list | tuple)]
        if func in self._LOOKS or (func in self._MAKE and tensors_in(lists)):
            raise _refusal(f"it looks at numbers ({func.__name__})")
        return func(*args, **kwargs)


def steady_dtypes(
    step: Joint, slices: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], constants: Sequence[Tensor]
) -> tuple[torch.dtype, ...] | None:
    """The dtypes of the state after a step where they differ from those before it, as under autocast; else ``None``."""
    devices = sorted({tensor.device.index or 0 for tensor in constants if tensor.is_cuda})
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        after = step(*slices, constants)[1:]
    found = tuple(tensor.dtype for tensor in after)
    return None if found == tuple(tensor.dtype for tensor in slices[2]) else found


def trace_step(
    step: Joint,
    projected: Sequence[Tensor],
    masks: Sequence[Tensor],
    state: Sequence[Tensor],
    constants: Sequence[Tensor],
    *,
    projected_need: Sequence[bool],
    constants_need: Sequence[bool],
    differentiate: bool,
    compiler: Compiler | None,
) -> Program:
    """Trace ``step(projected, masks, state, constants) -> [output, *state]`` at the shapes given.

    Args:
        step: a pure function of tensors.
        projected: one step's slices.
        masks: one step's masks.
        state: the state's tensors.
        constants: weights and whatever else is the same at all steps.
        projected_need: which of ``projected`` take a gradient.
        constants_need: which of ``constants`` take a gradient.
        differentiate: whether there will be a backward pass.
        compiler: what the programs that run at each step go through, if anything. Those that draw random numbers do
            not: a compiler would draw others.

    Raises:
        NotTraceableError: where the step cannot be recorded.
        CompilerError: where it cannot be compiled.
    """
    groups = [len(projected), len(masks), len(state), len(constants)]
    state_need = [_takes_gradient(tensor) for tensor in state]
    needs = [*projected_need, *[False] * len(masks), *state_need, *constants_need]
    inputs = [*projected, *masks, *state, *constants]

    def joint(*flat: Tensor) -> list[Tensor | None]:
        given, tangents = flat[: sum(groups)], flat[sum(groups) :]
        with torch.enable_grad():
            primals = [
                tensor.detach().requires_grad_(need and differentiate)
                for tensor, need in zip(given, needs, strict=True)
            ]
            parts = iter(primals)
            results = step(*([next(parts) for _ in range(size)] for size in groups))
            if not differentiate:
                return list(results)
            pairs = [(r, t) for r, t in zip(results, tangents, strict=True) if r.requires_grad]
            wanted = [primal for primal, need in zip(primals, needs, strict=True) if need]
            found: Sequence[Tensor | None] = [None] * len(wanted)
            if pairs and wanted:
                outs, grads = zip(*pairs, strict=True)
                with without_autocast(wanted):  # as a backward pass is
                    found = torch.autograd.grad(outs, wanted, grads, allow_unused=True)
        gradients = iter(found)
        return [*results, *(next(gradients) if need else None for need in needs)]

    devices = sorted({tensor.device.index or 0 for tensor in inputs if tensor.is_cuda})
    # recording a step draws what running it would, and makes a graph that is none of those around it
    with torch.random.fork_rng(devices=devices), saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        try:
            with torch.no_grad():
                tangents = [torch.zeros_like(r) for r in step(projected, masks, state, constants)]
            with torch.autograd.set_detect_anomaly(False):  # which would look at numbers
                with _NoNumbers():
                    recording = recorded(joint, [*inputs, *tangents])
                if any(changes_tensors(node) for node in recording.graph.nodes):  # noise is drawn in place, for one
                    changing = recording
                    with without_autocast(inputs):  # its casts are recorded
                        recording = recorded(functionalize(changing.run), [*inputs, *tangents])
                    changing.forget_values()
        except (RuntimeError, TypeError) as error:
            raise _refusal(str(error)) from error
    try:
        _check(recording, len(tangents), differentiate)
        tidy(recording.graph)
        splitter = Splitter(recording, groups, len(tangents), needs)
        program = splitter.program()
        if compiler is not None and not any(is_random(node) for node in recording.graph.nodes):
            program = splitter.compiled(program, [*projected, *masks], state, constants, compiler)
    finally:
        recording.forget_values()
    return program


def _check(recording: Recording, num_results: int, differentiate: bool) -> None:
    """Refuse what would not be right where it runs again."""
    if differentiate and any(constant.requires_grad for constant in recording.constants.values()):
        raise _refusal("it uses a tensor that takes a gradient and is no parameter of its module")
    output: Any = next(node for node in recording.graph.nodes if node.op == "output")
    forward = ancestors(node for node in output.args[0][:num_results])
    backward = ancestors(node for node in output.args[0][num_results:] if node is not None) - forward
    for node in recording.graph.nodes:
        if looks_at_numbers(node):
            raise _refusal(f"the shapes in it depend on numbers ({node.target})")
        if changes_tensors(node):
            raise _refusal(f"it changes an input in place ({node.target})")
        if differentiate and is_call(node, aten.mkldnn_rnn_layer.default):
            raise _refusal("nn.LSTM in it keeps what its derivative needs under autograd alone")
        if node in backward and is_random(node):
            raise _refusal(f"its derivative draws random numbers anew, as of a checkpoint ({node.target})")


@contextmanager
def without_autocast(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within it nothing is cast on the devices of ``tensors``."""
    with ExitStack() as stack:
        for kind in {tensor.device.type for tensor in tensors}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _refusal(reason: str) -> NotTraceableError:
    return NotTraceableError(f"this step cannot be recorded: {reason}; engine='loop' runs every step")


def _takes_gradient(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
