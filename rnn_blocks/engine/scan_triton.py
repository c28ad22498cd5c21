"""The linear scan as one Triton kernel: each program walks through time with its own block of features."""

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without it
    triton = None

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def can_launch(drive: Tensor) -> bool:
    """Whether there is a kernel for this tensor: Triton is at hand, the device is its, and the dtype is known.

    >>> can_launch(torch.ones(1))
    False
    """
    return triton is not None and drive.is_cuda and drive.dtype in DTYPES


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator, unused-ignore]
    def _walk(  # type: ignore[no-untyped-def]
        decay,
        drive,
        state,
        states,
        time,
        width,
        columns,
        decay_start,
        decay_time,
        decay_batch,
        decay_feature,
        drive_start,
        drive_time,
        drive_batch,
        drive_feature,
        states_start,
        states_time,
        COMPLEX: tl.constexpr,
        SUM: tl.constexpr,
        CUTS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = column < columns
        batch, feature = column // width, column % width
        a_at = decay + decay_start + batch * decay_batch + feature * decay_feature
        b_at = drive + drive_start + batch * drive_batch + feature * drive_feature
        if COMPLEX:
            h_at = states + states_start + 2 * column
            h = tl.load(state + 2 * column, mask=inside, other=0.0)
            h_im = tl.load(state + 2 * column + 1, mask=inside, other=0.0)
            for _ in tl.range(0, time, num_stages=4):
                a = tl.load(a_at, mask=inside, other=0.0)
                a_im = tl.load(a_at + 1, mask=inside, other=0.0)
                b = tl.load(b_at, mask=inside, other=0.0)
                b_im = tl.load(b_at + 1, mask=inside, other=0.0)
                real = a * h - a_im * h_im + b
                h_im = a * h_im + a_im * h + b_im
                h = real
                if CUTS:
                    cut = (a == 0.0) & (a_im == 0.0)
                    h = tl.where(cut, b, h)
                    h_im = tl.where(cut, b_im, h_im)
                tl.store(h_at, h, mask=inside)
                tl.store(h_at + 1, h_im, mask=inside)
                a_at += decay_time
                b_at += drive_time
                h_at += states_time
        else:
            h_at = states + states_start + column
            h = tl.load(state + column, mask=inside, other=0.0).to(SUM)
            for _ in tl.range(0, time, num_stages=4):
                a = tl.load(a_at, mask=inside, other=0.0).to(SUM)
                b = tl.load(b_at, mask=inside, other=0.0).to(SUM)
                h = tl.where(a == 0.0, b, a * h + b) if CUTS else a * h + b
                tl.store(h_at, h.to(states.dtype.element_ty), mask=inside)
                a_at += decay_time
                b_at += drive_time
                h_at += states_time


def walk(
    decay: Tensor, drive: Tensor, state: Tensor, states: Tensor, *, backwards: bool = False, cuts: bool = False
) -> None:
    """Fill ``states`` with ``h = decay · h + drive`` from the first step to the last, or the other way round.

    Half precision is summed up in float32, and rounded as it is written.

    Args:
        decay: ``(time or 1, batch or 1, …)``, broadcast to ``drive``.
        drive: ``(time, batch, …)``.
        state: ``h`` before the first step walked, ``(batch, …)``.
        states: contiguous, of the shape and dtype of ``drive``.
        backwards: from the last step to the first.
        cuts: whether nothing passes a decay of 0, be it finite or not.
    """
    time, batch = drive.shape[:2]
    decay = decay.expand(drive.shape).reshape(time, batch, -1)
    drive, state = drive.reshape(time, batch, -1), state.contiguous()
    width, columns = drive.shape[2], state.numel()
    if not time or not columns:
        return
    complex_numbers = drive.is_complex()
    tensors = [decay.resolve_conj(), drive.resolve_conj(), state.resolve_conj(), states]
    decay, drive, state, states = (torch.view_as_real(t) for t in tensors) if complex_numbers else tensors
    last = time - 1 if backwards else 0
    sign = -1 if backwards else 1
    steps: list[int] = []
    for tensor in (decay, drive):
        along_time, *along_others = tensor.stride()[:3]
        steps += [last * along_time, sign * along_time, *along_others]
    along_time = states.stride(0)
    block = min(128, triton.next_power_of_2(columns))
    with torch.cuda.device_of(states):  # where kernels are launched
        _walk[(triton.cdiv(columns, block),)](
            decay,
            drive,
            state,
            states,
            time,
            width,
            columns,
            *steps,
            last * along_time,
            sign * along_time,
            COMPLEX=complex_numbers,
            SUM=tl.float64 if drive.dtype == torch.float64 else tl.float32,
            CUTS=cuts,
            BLOCK=block,
            num_warps=max(1, block // 32),
        )
