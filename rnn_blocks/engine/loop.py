"""The plain loop: any step over time, with autograd doing the rest."""

from collections.abc import Callable

import torch
from torch import Tensor

from rnn_blocks.engine.open_length import is_open_length, run_open_length
from rnn_blocks.engine.state import State, like_state, map_state, state_tensors

Step = Callable[[State, State], tuple[Tensor, State]]


def run_loop(
    step: Step,
    projected: State,
    state: State,
    *,
    fresh: State | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run ``step`` over time.

    Args:
        step: ``(projected_t, state) -> (output_t, state)``; batch is the first dimension of each tensor.
        projected: what each step takes, ``(time, batch, …)``, or a nest of such.
        state: the state before the first step.
        fresh: the state to start afresh from where ``resets`` says so.
        lengths: steps that count in each sequence, ``(batch,)``; past them outputs are zero and the state stays.
        resets: ``(time, batch)``, true where the state starts afresh before the step.

    Returns:
        The outputs, ``(time, batch, …)``, and the state after the last step (of each sequence).

    Raises:
        ValueError: for resets without a state to start afresh from.

    >>> outputs, state = run_loop(lambda x, h: (x + h, x + h), torch.ones(3, 1, 1), torch.zeros(1, 1))
    >>> outputs.flatten().tolist(), state.item()
    ([1.0, 2.0, 3.0], 3.0)
    """
    if is_open_length(state_tensors(projected)[0]):
        return _run_open_length(step, projected, state, fresh, lengths, resets)
    # unbind, not projected[t]: the backward of indexing writes a whole zero tensor at every step
    steps = list(zip(*(tensor.unbind(0) for tensor in state_tensors(projected)), strict=True))
    active, restart = step_masks(len(steps), lengths, resets, fresh)
    outputs = []
    for t, tensors in enumerate(steps):
        projected_t = like_state(projected, tensors)
        output, state = masked_step(
            step,
            projected_t,
            state,
            active=None if active is None else active[t],
            restart=None if restart is None else restart[t],
            fresh=fresh,
        )
        outputs.append(output)
    return torch.stack(outputs), state


def _run_open_length(
    step: Step, projected: State, state: State, fresh: State | None, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, State]:
    active, restart = step_masks(state_tensors(projected)[0].shape[0], lengths, resets, fresh)
    masks = tuple(mask for mask in (active, restart) if mask is not None)

    def one(given: State, before: State) -> tuple[Tensor, State]:
        projected_t, masks_t = given
        remaining = iter(state_tensors(masks_t))
        return masked_step(
            step,
            projected_t,
            before,
            active=None if active is None else next(remaining),
            restart=None if restart is None else next(remaining),
            fresh=fresh,
        )

    return run_open_length(one, (projected, masks), state)


def step_masks(
    time: int, lengths: Tensor | None, resets: Tensor | None, fresh: State | None
) -> tuple[Tensor | None, Tensor | None]:
    """Which sequences a step counts in and which start afresh before it, both ``(time, batch)`` or ``None``."""
    active = None
    if lengths is not None:
        active = torch.arange(time, device=lengths.device)[:, None] < lengths
    if resets is not None and fresh is None:
        raise ValueError("resets need the state to start afresh from: give `fresh`")
    return active, None if resets is None else resets.bool()


def masked_step(
    step: Step, projected: State, state: State, *, active: Tensor | None, restart: Tensor | None, fresh: State | None
) -> tuple[Tensor, State]:
    """One step in which some sequences may start afresh, and some be over; the masks are ``(batch,)``."""
    before = state
    if restart is not None:
        assert fresh is not None
        before = _select(restart, fresh, state)
    output, after = step(projected, before)
    if active is not None:
        output = torch.where(_column(active, output), output, 0.0)
        after = _select(active, after, state)
    return output, after


def _select(condition: Tensor, chosen: State, other: State) -> State:
    return map_state(lambda a, b: a if a is b else torch.where(_column(condition, a), a, b), chosen, other)


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.dim() - 1))  # (batch, 1, …)
