"""Backpropagation through time from a traced step: no autograd graph a step, one product a weight gradient."""

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from itertools import chain, islice
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnn_blocks.engine.background import Identity, Record, faster
from rnn_blocks.engine.chunks import Chunk, chunks, keeps_graph, slots_by_step, whole_slots
from rnn_blocks.engine.compile import CompilerError, StepSource, compile_step
from rnn_blocks.engine.loop import masked_step, step_masks
from rnn_blocks.engine.method_call import MethodCall
from rnn_blocks.engine.products import packed_product
from rnn_blocks.engine.program import Program
from rnn_blocks.engine.split import Compiler, Put
from rnn_blocks.engine.state import State, like_state, state_tensors
from rnn_blocks.engine.trace import steady_dtypes, trace_step
from rnn_blocks.engine.transforms import is_wrapped
from rnn_blocks.engine.unchanged import Unchanged

MOST_PROGRAMS = 512  # kept for one cell: a program is for one set of shapes, and batches by length have hundreds
MOST_DEPTH = 4  # of what settings hold
MOST_COMPILED = 4  # of one cell where nobody asked for it: each takes seconds

_recording = threading.RLock()  # torch's tracer works for one thread at a time
_programs: WeakKeyDictionary[nn.Module, dict[Any, Program | tuple[torch.dtype, ...]]] = WeakKeyDictionary()


def run_fused(
    cell: nn.Module,
    projected: State,
    state: State,
    *,
    fresh: State | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    compiled: bool = False,
    fall_back: bool = False,
    background: bool = False,
    owner: nn.Module | None = None,
) -> tuple[Tensor, State]:
    """Run ``cell.step`` over time as :func:`~rnn_blocks.engine.run_loop` does, from a traced step.

    Arguments and results are those of the loop, with the cell in place of its step: its parameters and buffers are all
    that the step may use besides its arguments. The step must be a pure function of tensors: it is recorded once for
    each combination of shapes, dtypes and settings, and what was recorded is run from then on.

    Where ``compiled``, the operators of a step go through torch's compiler, which makes one kernel of them; with
    ``fall_back`` only the first few shapes of a cell do, and none where there is no compiler. With ``background`` steps
    are compiled beside the training once they have come back often, and then take over: see
    :mod:`rnn_blocks.engine.background`. What is recorded is kept for the cell, or for its ``owner``, where it is a
    stand-in made for one sequence.

    Raises:
        ValueError: where the step cannot be recorded.
        CompilerError: where it cannot be compiled.
        RuntimeError: where the result is differentiated twice.
    """
    # in one memory order, since what is recorded may hold for no other: a view of what a step reshapes
    projected_leaves = [_time_outermost(tensor) for tensor in state_tensors(projected)]
    state_leaves = [tensor.contiguous() for tensor in state_tensors(state)]
    named = {**dict(cell.named_parameters()), **dict(cell.named_buffers())}
    fresh_leaves = [] if fresh is None or resets is None else state_tensors(fresh)
    constants = [*named.values(), *fresh_leaves]
    active, restart = step_masks(len(projected_leaves[0]), lengths, resets, fresh)
    masks = [mask for mask in (active, restart) if mask is not None]

    tensors = [*projected_leaves, *masks, *state_leaves, *constants]
    device = projected_leaves[0].device.type
    differentiate = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    key = (
        *(_kind(tensor, tensor.shape[1:], differentiate) for tensor in (*projected_leaves, *masks)),
        *(_kind(tensor, tensor.shape, differentiate) for tensor in (*state_leaves, *constants)),
        *(len(group) for group in (projected_leaves, masks, state_leaves)),
        differentiate,
        *(_strides(tensor.shape[1:], tensor.stride()[1:]) for tensor in projected_leaves),
        *(_strides(tensor.shape, tensor.stride()) for tensor in constants),
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        active is None,
        *_settings(cell),
    )
    programs = _programs.setdefault(owner or cell, {})
    program = programs.get(key)
    if program is not None:
        with _recording:
            programs[key] = programs.pop(key, program)  # the last used stands last, the first goes first

    def recorder() -> tuple[Callable[[], tuple[torch.dtype, ...] | None], Record]:
        method = MethodCall(_twin(cell, {}), "step")  # recording puts other tensors in the place of the weights

        def step(
            projected_t: Sequence[Tensor], masks_t: Sequence[Tensor], before: Sequence[Tensor], given: Sequence[Tensor]
        ) -> list[Tensor]:
            parameters = {f"module.{name}": tensor for name, tensor in zip(named, given, strict=False)}
            remaining = iter(masks_t)

            def one(x: State, s: State) -> tuple[Tensor, State]:
                result: tuple[Tensor, State] = functional_call(method, parameters, (x, s))
                return result

            output, after = masked_step(
                one,
                like_state(projected, projected_t),
                like_state(state, before),
                active=None if active is None else next(remaining),
                restart=None if restart is None else next(remaining),
                fresh=like_state(state, given[len(named) :]) if fresh_leaves else None,
            )
            return [output, *state_tensors(after)]

        slices = ([t[0].detach() for t in projected_leaves], [m[0] for m in masks], [t.detach() for t in state_leaves])
        given = [tensor.detach() for tensor in constants]

        def record(compiler: Compiler | None) -> Program:
            with _recording:
                return trace_step(
                    step,
                    *slices,
                    given,
                    projected_need=[tensor.requires_grad for tensor in projected_leaves],
                    constants_need=[tensor.requires_grad for tensor in constants],
                    differentiate=differentiate,
                    compiler=compiler,
                )

        def steady() -> tuple[torch.dtype, ...] | None:
            with _recording:
                return steady_dtypes(step, slices, given)

        return steady, record

    if program is None:
        steady, record = recorder()
        program = steady()
        if program is None:
            compiling = compiled and not (fall_back and _num_compiled(programs) >= MOST_COMPILED)
            try:
                program = record(_compile_now if compiling else None)
            except CompilerError as error:
                if not fall_back:
                    raise
                warnings.warn(f"{error}; going on without it", stacklevel=2)
                program = record(None)
        with _recording:
            while len(programs) >= MOST_PROGRAMS:
                programs.pop(next(iter(programs)))
            programs[key] = program
    if isinstance(program, tuple):  # autocast makes a state of another precision: start with that
        cast = [tensor.to(dtype) for tensor, dtype in zip(state_leaves, program, strict=True)]
        return run_fused(
            cell,
            projected,
            like_state(state, cast),
            fresh=fresh,
            lengths=lengths,
            resets=resets,
            compiled=compiled,
            fall_back=fall_back,
            background=background,
            owner=owner,
        )
    if background and differentiate:
        time = len(projected_leaves[0])
        program = faster(owner or cell, key, time, constants, lambda compiler: recorder()[1](compiler)) or program
    sizes = (len(projected_leaves), len(masks), len(state_leaves))
    run: Callable[..., tuple[Tensor, ...]] = _Unrolled.apply
    outputs, *after = run(program, sizes, *tensors)
    return outputs, like_state(state, after)


def _compile_now(source: StepSource, put: Put) -> Program:
    return put(*compile_step(source))


def _num_compiled(programs: dict[Any, Program | tuple[torch.dtype, ...]]) -> int:
    return sum(isinstance(program, Program) and program.compiled for program in programs.values())


def _twin(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """Modules of their own around the same tensors and settings: to be changed without anybody else seeing it."""
    if id(module) not in known:
        twin = known[id(module)] = copy.copy(module)
        for part in ("_parameters", "_buffers"):
            twin.__dict__[part] = dict(module.__dict__[part])
        twin.__dict__["_modules"] = {k: m and _twin(m, known) for k, m in module.__dict__["_modules"].items()}
    return known[id(module)]


def _kind(tensor: Tensor, shape: torch.Size, differentiate: bool) -> tuple[Any, ...]:
    return tuple(shape), tensor.dtype, tensor.device, differentiate and tensor.requires_grad


def _time_outermost(tensor: Tensor) -> Tensor:
    between, *inside = tensor.stride()
    return tensor.contiguous() if 0 < between < max(inside, default=0) else tensor


def _strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Those that say something: not the one of a single row."""
    return tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))


def _settings(cell: nn.Module) -> list[Any]:
    """What a step may depend on besides tensors: the modules' plain attributes, and what their class calls a step."""
    return [
        (
            type(module),
            Identity(getattr(type(module), "step", None)),
            tuple((name, _comparable(value)) for name, value in vars(module).items() if name[0] != "_"),
        )
        for module in cell.modules()
    ]


def _comparable(value: Any, depth: int = 0) -> Any:
    """What tells a value from another one, and from itself once it has changed; of what it holds to a depth of four."""
    if isinstance(value, Tensor):
        return Identity(value), value._version
    if isinstance(value, int | float | str | bool | None):
        return value
    if hasattr(value, "__array_interface__") and hasattr(value, "tobytes"):  # NumPy's, whose text leaves numbers out
        return _text(value), value.__array_interface__["typestr"], value.tobytes()
    parts: tuple[Any, ...] = ()
    if depth < MOST_DEPTH:
        if isinstance(value, list | tuple):
            parts = tuple(_comparable(part, depth + 1) for part in value)
        elif isinstance(value, dict):
            parts = tuple((_text(name), _comparable(part, depth + 1)) for name, part in value.items())
        elif not isinstance(value, nn.Module | type | FunctionType | ModuleType) and hasattr(value, "__dict__"):
            held = vars(value).items()
            parts = tuple((name, _comparable(part, depth + 1)) for name, part in held if part is not value)
    return _text(value), Identity(value), parts


def _text(value: Any) -> str:
    """``repr`` with sets in order: theirs is another one in every process."""
    if isinstance(value, set | frozenset):
        return repr(sorted(map(_text, value)))
    if isinstance(value, list | tuple):
        return repr([_text(part) for part in value])
    if isinstance(value, dict):
        return repr({_text(name): _text(part) for name, part in value.items()})
    return repr(value)


def _recorded_precision(like: Tensor) -> torch.autocast:
    """Autocast off: its casts are in the record already."""
    return torch.autocast(like.device.type, enabled=False)


def _without_second_derivative(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """A derivative that is an error to differentiate; torch's own decorator hands out constants of a linear loss."""

    def checked(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # nobody asked for a graph
            return found
        error = b"recorded steps have no second derivative: use engine='loop'"
        refuse = torch._C._functions.DelayedError(error, 1)
        return tuple(None if grad is None else refuse(grad.detach().requires_grad_()) for grad in found)

    return checked


class _Unrolled(torch.autograd.Function):
    """The steps one after the other, and back."""

    @staticmethod
    def forward(ctx: Any, program: Program, sizes: tuple[int, int, int], *tensors: Tensor) -> tuple[Tensor, ...]:
        parts = iter(tensors)
        projected, masks, state = ([next(parts) for _ in range(size)] for size in sizes)
        constants = list(parts)
        if program.compiled:  # for tensors without gaps
            projected, masks, state = ([t.contiguous() for t in group] for group in (projected, masks, state))
        shape, dtype = program.output
        outputs = torch.empty(len(projected[0]), *shape, dtype=dtype, device=projected[0].device)
        with _recorded_precision(outputs):
            kept: list[Any] = [*(state[k] for k in program.passed)]
            kept += program.invariant(*constants, *kept)
        rows = outputs[0].numel() // outputs.shape[-1] if program.packed else 0
        steady = [*constants, *kept]
        kept += [packed_product(steady[number].t(), rows=rows) for number in program.packed]
        stacks = [torch.empty(len(outputs), *s, dtype=d, device=outputs.device) for s, d in program.stacked]
        parts_of_time = chunks(len(outputs), program, stacks)
        # detached, so that what is saved holds the numbers, and not the tensor that hands them out with its graph
        streams = [tensor.detach() for tensor in (*projected, *masks, outputs)]
        num_given = len(projected) + len(masks)
        before = state
        after: Sequence[Tensor] = state
        with _recorded_precision(outputs):
            for chunk in parts_of_time:
                of_chunk = (*(stream[chunk.start : chunk.stop] for stream in streams), *chunk.stacked)
                for parts_t in zip(*(tensor.unbind(0) for tensor in of_chunk), strict=True):
                    given, written = parts_t[:num_given], parts_t[num_given:]
                    after, loose = program.forward(*given, *after, *constants, *kept, *written)
                    chunk.saved.append((*written[1:], *loose))
        if any(ctx.needs_input_grad):
            ctx.program, ctx.sizes, ctx.kept = program, sizes, kept
            ctx.chunks, ctx.stacks = parts_of_time, stacks
            first = [] if program.carried is None else [before[program.carried], outputs]
            ctx.save_for_backward(*first, *constants)
            # what is handed from one part of the state to another has come to where it is saved after as many steps
            saved = islice(chain.from_iterable(chunk.saved for chunk in parts_of_time), len(before) + 1)
            held = [*kept, *(tensor for step in saved for tensor in step[len(program.stacked) :])]
            ctx.unchanged = Unchanged([*projected, *masks, *before, outputs], held)
        # cloned, since somebody may change what is handed out
        return outputs, *(tensor.clone() for tensor in after)

    @staticmethod
    @_without_second_derivative
    def backward(ctx: Any, grad_outputs: Tensor, *grad_state: Tensor) -> tuple[Any, ...]:
        program: Program = ctx.program
        time, device = len(grad_outputs), grad_outputs.device
        if program.carried is None:
            constants, outputs, first = ctx.saved_tensors, None, None
            now: Sequence[Tensor | None] = [None] * time
        else:
            first, outputs, *constants = ctx.saved_tensors
            now = outputs.unbind(0)
        ctx.unchanged.check()
        if any(map(is_wrapped, (grad_outputs, *grad_state))):
            raise RuntimeError("recorded steps have no derivative of many gradients at once: use engine='loop'")
        before = [first, *now[:-1]]
        free = ctx.stacks if len(ctx.chunks) > 1 and not keeps_graph() else []
        whole, lent = whole_slots(program, free, time, device)
        grads = grad_outputs.contiguous().unbind(0)
        tangents: Sequence[Tensor] = [tensor.contiguous() for tensor in grad_state]

        def back(chunk: Chunk, tangents: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
            places = [
                whole[number][chunk.start : chunk.stop]
                if number in whole and number not in lent
                else torch.empty(len(chunk), *slot.shape, dtype=slot.dtype, device=device)
                for number, slot in enumerate(program.slots)
            ]
            slots = slots_by_step(program, places) or [()] * len(chunk)
            totals: Sequence[Tensor] = ()
            for k in reversed(range(len(chunk))):
                t = chunk.start + k
                to_state, parts = program.backward(
                    *chunk.saved[k], before[t], now[t], grads[t], *tangents, *constants, *ctx.kept, *slots[k]
                )
                tangents = [
                    torch.zeros_like(old) if g is None else g for old, g in zip(tangents, to_state, strict=True)
                ]
                totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else parts

            def take(number: int) -> Tensor:
                return chunk.rows(program.sources[number], program, places, outputs, first)

            found = program.gather(take, *totals, *constants, *ctx.kept)
            for number in lent:
                whole[number][chunk.start : chunk.stop].copy_(places[number])
            return tangents, found

        weights: Sequence[Tensor | None] = ()
        with _recorded_precision(grad_outputs):
            for chunk in reversed(ctx.chunks):
                tangents, found = back(chunk, tangents)
                weights = [_sum(*pair) for pair in zip(found, weights, strict=True)] if weights else found
                if not keeps_graph():
                    chunk.let_go()
        if not keeps_graph():
            ctx.stacks, ctx.unchanged = [], None
        to_projected = [None if number is None else whole[number] for number in program.projected_slots]
        return None, None, *to_projected, *[None] * ctx.sizes[1], *tangents, *weights


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    return None if left is None or right is None else left + right
