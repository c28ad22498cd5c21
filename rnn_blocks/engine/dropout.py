"""Dropout with cheap noise: 16 random bits an element, where torch draws 53."""

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout as torch_dropout

_LEVELS = 1 << 16


def dropout(inputs: Tensor, p: float, training: bool = True) -> Tensor:
    """``torch.nn.functional.dropout``, about twice as fast on a CPU.

    Args:
        inputs: of any shape.
        p: the part that is zeroed, exact to 1 / 65536; what is left is divided by the part left.
        training: whether anything is zeroed at all.

    >>> dropout(torch.ones(4), 0.5, training=False).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    if not training or p == 0:
        return inputs
    if not _draws_bits(inputs):
        return torch_dropout(inputs, p)
    return inputs * dropout_mask(inputs.shape, p, inputs)


def dropout_mask(shape: Sequence[int], p: float, like: Tensor) -> Tensor:
    """What dropout multiplies with: zeros, and ``1 / (1 - p)`` elsewhere, of the dtype and on the device of ``like``.

    >>> sorted(set(dropout_mask([100], 0.75, torch.zeros(1)).tolist()))
    [0.0, 4.0]
    """
    if not _draws_bits(like):
        return torch_dropout(like.new_ones(shape), p)
    count = math.prod(shape)
    noise = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device).random_(-sys.maxsize - 1, None)
    zeroed = min(max(round(p * _LEVELS), 1), _LEVELS - 1)
    kept = noise.view(torch.int16)[:count] >= zeroed - _LEVELS // 2
    return kept.to(like.dtype).mul_(_LEVELS / (_LEVELS - zeroed)).view(tuple(shape))


def _draws_bits(like: Tensor) -> bool:
    return like.device.type == "cpu" and like.is_floating_point() and not torch.compiler.is_compiling()
