"""The Triton kernel against the walk on CPU: run by itself, with TRITON_INTERPRET=1, where kernels run as Python."""

import itertools

import torch
from torch.testing import assert_close

from rnn_blocks.engine.scan import walk_by_doubling, walk_in_order
from rnn_blocks.engine.scan_triton import walk

SHAPES = {"full": (5, 3, 7), "constant": (1, 1, 7), "a number a step": (5, 1, 1), "a number a sequence": (1, 3, 1)}


def main() -> None:
    torch.manual_seed(0)
    dtypes = (torch.float64, torch.complex128, torch.float32, torch.complex64, torch.bfloat16)
    for dtype, shape, backwards in itertools.product(dtypes, SHAPES.values(), (False, True)):
        decay = torch.randn(shape, dtype=dtype)
        drive = torch.randn(3, 5, 7, dtype=dtype).transpose(0, 1)
        state = torch.randn(3, 7, dtype=dtype)
        found, expected = (torch.empty(5, 3, 7, dtype=dtype) for _ in range(2))
        walk(decay.conj(), drive, state, found, backwards=backwards)
        if dtype == torch.bfloat16:  # summed up in float32
            decay, drive, state, expected = decay.float(), drive.float(), state.float(), expected.float()
        walk_in_order(decay.conj().resolve_conj(), drive, state, expected, backwards=backwards)
        assert_close(found, expected.to(dtype))
    for dtype, backwards in itertools.product(dtypes[:3], (False, True)):  # nothing crosses a decay of 0
        decay, drive = torch.randn(5, 3, 7, dtype=dtype), torch.randn(5, 3, 7, dtype=dtype)
        decay[2], drive[3 if backwards else 1, :, 0] = 0.0, float("inf")
        found, expected = torch.empty_like(drive), torch.empty_like(drive)
        walk(decay, drive, drive[0], found, backwards=backwards, cuts=True)
        walk_by_doubling(decay, drive, drive[0], expected, backwards=backwards, cuts=True)
        assert_close(found, expected, equal_nan=True)
        assert found[:2].isfinite().all() if backwards else found[2:].isfinite().all()
    many = torch.randn(2, 3, 5, 13, 2)  # more than one block of columns, and more than one dimension of features
    found, expected = torch.empty(2, 3, 5, 13, 2), torch.empty(2, 3, 5, 13, 2)
    walk(many, many, many[0], found)
    walk_in_order(many, many, many[0], expected)
    assert_close(found, expected)


if __name__ == "__main__":
    main()
