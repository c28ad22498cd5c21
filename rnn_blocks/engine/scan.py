"""Linear recurrences, ``h_t = a_t · h_{t-1} + b_t``, over all steps at once and without autograd in between."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnn_blocks.engine import scan_triton
from rnn_blocks.engine.loop import step_masks
from rnn_blocks.engine.open_length import is_open_length, run_open_length
from rnn_blocks.engine.state import State, state_tensors
from rnn_blocks.engine.transforms import is_wrapped

MOST_BYTES_ABREAST = 16384  # of one step: with more, the arithmetic takes longer than starting it
FEWEST_STRETCHES = 8


def linear_scan(decay: Tensor, drive: Tensor, state: Tensor) -> Tensor:
    """All states of ``h_t = decay_t · h_{t-1} + drive_t``, elementwise, real or complex.

    The derivative is the same recurrence backwards in time::

        g_t = ∂L/∂h_t + conj(decay_{t+1}) · g_{t+1}
        ∂L/∂drive_t = g_t        ∂L/∂decay_t = g_t · conj(h_{t-1})        ∂L/∂h_0 = conj(decay_1) · g_1

    so it can be differentiated as often as wanted. On CPU the steps are taken one after the other, in place; where
    they are small, in many stretches of the sequence at a time. On CUDA one Triton kernel walks through time. Without
    Triton, on other devices and while compiling, all steps look back twice as far in each round (Hillis & Steele 1986).

    Args:
        decay: ``(time, batch, …)``, or anything that broadcasts to ``drive``'s shape, such as one number a feature.
        drive: ``(time, batch, …)``.
        state: ``h`` before the first step, ``(batch, …)``.

    Returns:
        ``h`` after each step, ``(time, batch, …)``, of the dtype that the three promote to.

    Raises:
        ValueError: where the shapes do not fit.

    >>> linear_scan(torch.tensor([0.5]), torch.ones(3, 1, 1), torch.full((1, 1), 2.0)).flatten().tolist()
    [2.0, 2.0, 2.0]
    """
    return _scan(decay, drive, state)[0]


def run_scan(
    decay: Tensor,
    drive: Tensor,
    state: Tensor,
    *,
    fresh: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`linear_scan` with lengths and resets.

    Everything stays one scan: a step past a sequence's length has decay 1 and drive 0, and so holds the state, and a
    step before which the state starts afresh has decay 0 and a drive that contains what remains of ``fresh``. Nothing
    crosses such a step in either direction, infinities and NaN, which 0 times them is, included.

    Args:
        decay: as in :func:`linear_scan`.
        drive: ``(time, batch, …)``.
        state: ``(batch, …)``.
        fresh: the state to start afresh from where ``resets`` says so.
        lengths: steps that count in each sequence, ``(batch,)``.
        resets: ``(time, batch)``, true where the state starts afresh before the step.

    Returns:
        The states, ``(time, batch, …)``, and the one after the last step (of each sequence).

    Raises:
        ValueError: for resets without a state to start afresh from; where the shapes do not fit.

    >>> states, after = run_scan(torch.ones(1), torch.ones(3, 1, 1), torch.zeros(1, 1), lengths=torch.tensor([2]))
    >>> states.flatten().tolist(), after.item()
    ([1.0, 2.0, 2.0], 2.0)
    """
    active, restart = step_masks(drive.shape[0], lengths, resets, fresh)
    if restart is not None:
        assert fresh is not None
        restart = _column(restart, drive)
        drive = drive + torch.where(restart, decay, 0.0) * fresh
        decay = torch.where(restart, 0.0, decay)
    if active is not None:
        active = _column(active, drive)
        drive = torch.where(active, drive, 0.0)
        decay = torch.where(active, decay, 1.0)
    return _scan(decay, drive, state, cuts=restart is not None)


def doubling_scan(decay: Tensor, drive: Tensor, state: Tensor, *, cuts: bool = False) -> Tensor:
    """:func:`linear_scan` in ``log₂ time`` rounds of torch's own operators, each over all steps.

    After a round each step knows what twice as many steps come to: ``(a, b) ∘ (a', b') = (a a', a b' + b)``. With
    ``cuts`` nothing passes a decay of 0, be it finite or not.

    >>> doubling_scan(torch.full((3, 1, 1), 0.5), torch.ones(3, 1, 1), torch.full((1, 1), 2.0)).flatten().tolist()
    [2.0, 2.0, 2.0]
    """
    a = decay.expand(drive.shape)
    step = _cut_step if cuts else torch.addcmul
    b = torch.cat([step(drive[0], a[0], state)[None], drive[1:]])
    reach = 1
    while reach < len(drive):
        b = torch.cat([b[:reach], step(b[reach:], a[reach:], b[:-reach])])
        a = torch.cat([a[:reach], a[reach:] * a[:-reach]])
        reach *= 2
    return b


def _cut_step(drive: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    return torch.where(decay == 0, drive, torch.addcmul(drive, decay, state))


def _scan(decay: Tensor, drive: Tensor, state: Tensor, *, cuts: bool = False) -> tuple[Tensor, Tensor]:
    """All states, and the last one."""
    if drive.dim() < 2 or state.shape != drive.shape[1:]:
        raise ValueError(
            "a scan takes a drive (time, batch, …) and a state (batch, …), "
            f"got shapes {tuple(drive.shape)} and {tuple(state.shape)}"
        )
    decay = decay[(None,) * (drive.dim() - decay.dim())]  # (time or 1, batch or 1, …)
    if decay.dim() > drive.dim() or any(a not in (b, 1) for a, b in zip(decay.shape, drive.shape, strict=True)):
        raise ValueError(f"decay must broadcast to drive's shape {tuple(drive.shape)}, got {tuple(decay.shape)}")
    if not drive.shape[0]:
        return drive, state
    dtype = torch.promote_types(torch.promote_types(decay.dtype, drive.dtype), state.dtype)
    decay, drive, state = decay.to(dtype), drive.to(dtype), state.to(dtype)
    if is_open_length(drive):
        return _open_scan(decay, drive, state, cuts)
    if torch.compiler.is_compiling():  # which records torch's own operators, and differentiates them itself
        states = doubling_scan(decay, drive, state, cuts=cuts)
        return states, states[-1]
    run: Callable[..., tuple[Tensor, Tensor]] = _LinearScan.apply
    return run(decay, drive, state, cuts)


def _open_scan(decay: Tensor, drive: Tensor, state: Tensor, cuts: bool) -> tuple[Tensor, Tensor]:
    def step(given: State, before: State) -> tuple[Tensor, State]:
        (b, *a), h = state_tensors(given), state_tensors(before)[0]
        after = (_cut_step if cuts else torch.addcmul)(b, a[0] if a else decay[0], h)
        return after, after

    each = (drive, decay) if is_open_length(decay) else (drive,)  # or one for all steps
    states, after = run_open_length(step, each, state)
    return states, state_tensors(after)[0]


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (like.dim() - 2))  # (time, batch, 1, …)


class _LinearScan(torch.autograd.Function):
    """The scan, and the scan backwards in time that is its derivative."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor, state: Tensor, cuts: bool) -> tuple[Tensor, Tensor]:
        states = torch.empty(drive.shape, dtype=drive.dtype, device=drive.device)
        _walk(decay, drive, state, states, cuts=cuts)
        ctx.cuts = cuts
        ctx.save_for_backward(decay, state, states)
        return states, states[-1].clone()  # cloned, since somebody may change what is handed out

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor, grad_last: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        decay, state, states = ctx.saved_tensors
        if is_wrapped(grad_states) or is_wrapped(grad_last):
            raise RuntimeError("a scan has no derivative of many gradients at once: use engine='loop'")
        back = decay.conj()
        if torch.is_grad_enabled():  # this derivative will be differentiated in its turn
            ahead = back.expand(states.shape).flip(0)[:-1]
            ahead = torch.cat([torch.ones_like(states[:1]), ahead])
            g = _scan(ahead, grad_states.flip(0), grad_last, cuts=ctx.cuts)[0].flip(0)
        else:
            g = torch.empty_like(states)
            torch.add(grad_states[-1], grad_last, out=g[-1])
            ahead = back[1:] if len(back) > 1 else back
            _walk(ahead, grad_states[:-1], g[-1], g[:-1], backwards=True, cuts=ctx.cuts)
        grad_decay = None
        if ctx.needs_input_grad[0]:
            if torch.is_grad_enabled():
                products = g * torch.cat([state[None], states[:-1]]).conj()
            else:
                products = torch.empty_like(g)
                torch.mul(g[0], state.conj(), out=products[0])
                torch.mul(g[1:], states[:-1].conj(), out=products[1:])
            grad_decay = products.sum_to_size(decay.shape)
        grad_state = _cut_step(torch.zeros_like(g[0]), back[0], g[0]) if ctx.cuts else back[0] * g[0]
        return grad_decay, g, grad_state, None


def _walk(
    decay: Tensor, drive: Tensor, state: Tensor, states: Tensor, *, backwards: bool = False, cuts: bool = False
) -> None:
    """Fill ``states``, by the way that is the device's; ``backwards`` goes from the last step to the first.

    With ``cuts`` nothing passes a decay of 0, be it finite or not.
    """
    if scan_triton.can_launch(drive):
        scan_triton.walk(decay, drive, state, states, backwards=backwards, cuts=cuts)
    elif drive.device.type == "cpu":
        decay, drive, state = decay.resolve_conj(), drive.resolve_conj(), state.resolve_conj()
        walk_in_order(decay, drive, state, states, backwards=backwards)
        if cuts and not states.isfinite().all():
            a, b, h = (_ordered(tensor, len(drive), backwards) for tensor in (decay, drive, states))
            for x, y, out in zip(a, b, h, strict=True):
                state = out.copy_(_cut_step(y, x, state))
    else:
        walk_by_doubling(decay, drive, state, states, backwards=backwards, cuts=cuts)


def walk_by_doubling(
    decay: Tensor, drive: Tensor, state: Tensor, states: Tensor, *, backwards: bool = False, cuts: bool = False
) -> None:
    """Fill ``states`` by :func:`doubling_scan`."""
    if backwards:
        decay, drive = decay.flip(0), drive.flip(0)
    if len(drive):
        found = doubling_scan(decay, drive, state, cuts=cuts)
        states.copy_(found.flip(0) if backwards else found)


def walk_in_order(decay: Tensor, drive: Tensor, state: Tensor, states: Tensor, *, backwards: bool = False) -> None:
    """Fill ``states`` step by step; in stretches abreast, where a step is too little work for a call of its own.

    With ``C`` stretches of ``K`` steps: first the end of each from a zero state, and the product of its decays; then
    the state in which each starts; then all states. These are ``3 K + C`` calls in place of ``C K``.
    """
    time, count = len(drive), math.isqrt(len(drive))
    if count >= FEWEST_STRETCHES and state.numel() * state.element_size() <= MOST_BYTES_ABREAST:
        rest = time - time // count * count
        first, left = _parted(rest, backwards)
        if _walk_abreast(_part(decay, first), drive[first], state, states[first], count, backwards):
            if rest:
                reached = states[first][0 if backwards else -1]
                _walk_singly(_part(decay, left), drive[left], reached, states[left], backwards)
            return
    _walk_singly(decay, drive, state, states, backwards)


def _walk_singly(decay: Tensor, drive: Tensor, state: Tensor, states: Tensor, backwards: bool) -> None:
    a, b, h = (_ordered(tensor, len(drive), backwards) for tensor in (decay, drive, states))
    _steps(a, b, h, state)


def _walk_abreast(decay: Tensor, drive: Tensor, state: Tensor, states: Tensor, count: int, backwards: bool) -> bool:
    """Whether it could be done: decays may grow beyond all bounds where the states do not."""
    length = len(drive) // count
    parts = (t[None] if len(t) == 1 else t.unflatten(0, (count, length)) for t in (decay, drive, states))
    a, b, h = (_ordered(part.transpose(0, 1), length, backwards) for part in parts)  # each (count or 1, batch or 1, …)
    product, end = a[0].clone(), b[0].clone()
    for x, y in zip(a[1:], b[1:], strict=True):
        torch.mul(x, product, out=product)
        torch.addcmul(y, x, end, out=end)
    if not product.isfinite().all():
        return False
    starts = state.new_empty(count, *state.shape)
    products, ends, begins = (_ordered(tensor, count, backwards) for tensor in (product, end, starts))
    begins[0].copy_(state)
    _steps(products[:-1], ends[:-1], begins[1:], begins[0])
    _steps(a, b, h, starts)
    return True


def _steps(decay: Sequence[Tensor], drive: Sequence[Tensor], states: Sequence[Tensor], h: Tensor) -> None:
    for a, b, out in zip(decay, drive, states, strict=True):
        torch.addcmul(b, a, h, out=out)
        h = out


def _ordered(tensor: Tensor, time: int, backwards: bool) -> Sequence[Tensor]:
    """Its steps in the order in which they are walked; one step that holds at all times is given that often."""
    steps = tensor.unbind(0) * (time // len(tensor)) if time else ()
    return steps[::-1] if backwards else steps


def _parted(rest: int, backwards: bool) -> tuple[slice, slice]:
    """All steps but the ``rest`` that are walked last, and these."""
    return (slice(rest, None), slice(0, rest)) if backwards else (slice(0, -rest or None), slice(-rest, None))


def _part(decay: Tensor, steps: slice) -> Tensor:
    return decay if len(decay) == 1 else decay[steps]
