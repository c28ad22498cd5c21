"""The plain loop: any step over time, with autograd doing the rest."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rnn_blocks.engine.state import State, map_state

Step = Callable[[Tensor, State], tuple[Tensor, State]]


def run_loop(
    step: Step,
    projected: Tensor | Sequence[Tensor],
    state: State,
    *,
    fresh: State | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run ``step`` over time.

    Args:
        step: ``(projected_t, state) -> (output_t, state)``; batch is the first dimension of each tensor.
        projected: what each step takes, ``(time, batch, …)``.
        state: the state before the first step.
        fresh: the state to start afresh from where ``resets`` says so.
        lengths: steps that count in each sequence, ``(batch,)``; past them outputs are zero and the state stays.
        resets: ``(time, batch)``, true where the state starts afresh before the step.

    Returns:
        The outputs, ``(time, batch, …)``, and the state after the last step (of each sequence).

    >>> outputs, state = run_loop(lambda x, h: (x + h, x + h), torch.ones(3, 1, 1), torch.zeros(1, 1))
    >>> outputs.flatten().tolist(), state.item()
    ([1.0, 2.0, 3.0], 3.0)
    """
    # unbind, not projected[t]: the backward of indexing writes a whole zero tensor at every step
    steps = projected.unbind(0) if isinstance(projected, Tensor) else projected
    active = None
    if lengths is not None:
        time = torch.arange(len(steps), device=lengths.device)
        active = (time[:, None] < lengths).unbind(0)  # time x (batch,)
    restart = None if resets is None else resets.bool().unbind(0)
    outputs = []
    for t, projected_t in enumerate(steps):
        before = state
        if restart is not None:
            if fresh is None:
                raise ValueError("resets need the state to start afresh from: give `fresh`")
            before = _select(restart[t], fresh, state)
        output, after = step(projected_t, before)
        if active is not None:
            output = torch.where(_column(active[t], output), output, 0.0)
            after = _select(active[t], after, state)
        state = after
        outputs.append(output)
    return torch.stack(outputs), state


def _select(condition: Tensor, chosen: State, other: State) -> State:
    return map_state(lambda a, b: torch.where(_column(condition, a), a, b), chosen, other)


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.dim() - 1))  # (batch, 1, …)
