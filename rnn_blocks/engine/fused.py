"""Backpropagation through time from a traced step: no autograd graph a step, one product a weight gradient."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnn_blocks.engine.loop import masked_step, step_masks
from rnn_blocks.engine.state import State, like_state, state_tensors
from rnn_blocks.engine.trace import Program, WeightGradient, trace_step

MOST_PROGRAMS = 64  # kept for one cell: a program is for one set of shapes

_programs: WeakKeyDictionary[nn.Module, dict[Any, Program]] = WeakKeyDictionary()


def run_fused(
    cell: nn.Module,
    projected: State,
    state: State,
    *,
    fresh: State | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run ``cell.step`` over time as :func:`~rnn_blocks.engine.run_loop` does, from a traced step.

    Arguments and results are the loop's, with the cell in place of its step: its parameters and buffers are what the step may
    use besides its arguments. The step must be a pure function of tensors: it is run once for each combination of shapes,
    dtypes and settings, and what was recorded is run from then on.

    Raises:
        ValueError: where the step cannot be recorded.
        RuntimeError: where the result is differentiated twice.
    """
    projected_leaves, state_leaves = state_tensors(projected), state_tensors(state)
    named = {**dict(cell.named_parameters()), **dict(cell.named_buffers())}
    fresh_leaves = [] if fresh is None or resets is None else state_tensors(fresh)
    constants = [*named.values(), *fresh_leaves]
    active, restart = step_masks(len(projected_leaves[0]), lengths, resets, fresh)
    masks = [mask for mask in (active, restart) if mask is not None]
    method = _StepOf(cell)

    def step(
        projected_t: Sequence[Tensor], masks_t: Sequence[Tensor], before: Sequence[Tensor], given: Sequence[Tensor]
    ) -> list[Tensor]:
        parameters = {f"cell.{name}": tensor for name, tensor in zip(named, given, strict=False)}
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

    tensors = [*projected_leaves, *masks, *state_leaves, *constants]
    differentiate = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    key = (
        *(_kind(tensor, differentiate) for tensor in tensors),
        *(len(group) for group in (projected_leaves, masks, state_leaves)),
        differentiate,
        _precision(projected_leaves[0].device.type),
        active is None,
        *_settings(cell),
    )
    programs = _programs.setdefault(cell, {})
    program = programs.get(key)
    if program is None:
        program = trace_step(
            step,
            [tensor[0].detach() for tensor in projected_leaves],
            [mask[0] for mask in masks],
            [tensor.detach() for tensor in state_leaves],
            [tensor.detach() for tensor in constants],
            projected_need=[tensor.requires_grad for tensor in projected_leaves],
            constants_need=[tensor.requires_grad for tensor in constants],
            differentiate=differentiate,
        )
        while len(programs) >= MOST_PROGRAMS:
            programs.pop(next(iter(programs)))
        programs[key] = program
    sizes = (len(projected_leaves), len(masks), len(state_leaves))
    run: Callable[..., tuple[Tensor, ...]] = _Unrolled.apply
    outputs, *after = run(program, sizes, *tensors)
    return outputs, like_state(state, after)


class _StepOf(nn.Module):
    """A cell's step as a module's call, which is what ``functional_call`` takes."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, projected: State, state: State) -> tuple[Tensor, State]:
        step: Callable[[State, State], tuple[Tensor, State]] = self.cell.step
        return step(projected, state)


def _kind(tensor: Tensor, differentiate: bool) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device, differentiate and tensor.requires_grad


def _precision(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _settings(cell: nn.Module) -> list[Any]:
    """What a step may depend on besides tensors: the modules' plain attributes."""
    return [
        (type(module), tuple((name, _comparable(value)) for name, value in vars(module).items() if name[0] != "_"))
        for module in cell.modules()
    ]


def _comparable(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else (repr(value), id(value))


class _Unrolled(torch.autograd.Function):
    """The steps one after the other, and back."""

    @staticmethod
    def forward(ctx: Any, program: Program, sizes: tuple[int, int, int], *tensors: Tensor) -> tuple[Tensor, ...]:
        parts = iter(tensors)
        projected, masks, state = ([next(parts) for _ in range(size)] for size in sizes)
        constants = list(parts)
        kept = program.invariant(*constants)
        steps = zip(*(tensor.unbind(0) for tensor in (*projected, *masks)), strict=True)
        outputs, saved = [], []
        for slices in steps:
            (output, *state), keep = program.forward(*slices, *state, *constants, *kept)
            outputs.append(output)
            saved.append(keep)
        if any(ctx.needs_input_grad):
            ctx.program, ctx.sizes, ctx.saved, ctx.kept = program, sizes, saved, kept
            ctx.save_for_backward(*constants)
        # cloned: what is saved may not be what is handed out, which somebody may change
        return torch.stack(outputs), *(tensor.clone() for tensor in state)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_outputs: Tensor, *grad_state: Tensor) -> tuple[Any, ...]:
        program, constants = ctx.program, ctx.saved_tensors
        tangents: Sequence[Tensor] = grad_state
        grad_projected, collected = [], []
        for keep, grad_output in zip(reversed(ctx.saved), reversed(grad_outputs.unbind(0)), strict=True):
            to_projected, to_state, parts = program.backward(*keep, grad_output, *tangents, *constants, *ctx.kept)
            tangents = [_zeros_for(t, g) for t, g in zip(tangents, to_state, strict=True)]
            grad_projected.append(to_projected)
            collected.append(parts)
        stacked = [
            None if parts[0] is None else torch.stack(parts[::-1]) for parts in zip(*grad_projected, strict=True)
        ]
        gathered = list(zip(*collected, strict=True))
        weights = [None if how is None else _put_together(how, gathered) for how in program.weight_gradients]
        return None, None, *stacked, *[None] * ctx.sizes[1], *tangents, *weights


def _zeros_for(tangent: Tensor, gradient: Tensor | None) -> Tensor:
    return torch.zeros_like(tangent) if gradient is None else gradient


def _put_together(how: WeightGradient, gathered: Sequence[Sequence[Tensor]]) -> Tensor:
    parts = gathered[how.left]
    if how.kind == "product":
        left, right = torch.cat(parts), torch.cat(gathered[how.right])
        # the wider factor on the right: libraries multiply such products faster
        gradient = left.t() @ right if left.shape[1] <= right.shape[1] else (right.t() @ left).t()
    elif how.kind == "sum":
        gradient = torch.stack(parts).sum([0, *(dim + 1 for dim in how.dims)], keepdim=how.keepdim)
        gradient = gradient.squeeze(0) if how.keepdim else gradient
    else:
        gradient = parts[0]
        for part in parts[1:]:
            gradient = gradient + part
    for function, args, options in how.finish:
        gradient = function(gradient, *args, **options)
    return gradient
