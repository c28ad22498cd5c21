"""A recurrence in a program that is exported for sequences of any length."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnn_blocks.engine.state import State, like_state, state_tensors


def is_open_length(sequence: Tensor) -> bool:
    """Whether a program is being exported in which the time of ``sequence``, its first dimension, is left open.

    >>> is_open_length(torch.ones(3, 1, 1))
    False
    """
    exporting = getattr(torch.compiler, "is_exporting", None)  # which torch has from 2.7 on
    time: object = sequence.shape[0]
    return exporting is not None and exporting() and isinstance(time, torch.SymInt)


def run_open_length(
    step: Callable[[State, State], tuple[Tensor, State]], projected: State, state: State
) -> tuple[Tensor, State]:
    """What :func:`~rnn_blocks.engine.run_loop` does, as one operator of the exported program whatever the length.

    A loop in Python would be recorded step by step, and torch's own kernels freeze the length as well. The operator is
    torch's ``scan``, which becomes a Scan in ONNX; gradients through it are not asked for here.

    >>> outputs, state = run_open_length(lambda x, h: (x + h, x + h), torch.ones(3, 1, 1), torch.zeros(1, 1))
    >>> outputs.flatten().tolist(), state.item()
    ([1.0, 2.0, 3.0], 3.0)
    """
    from torch._higher_order_ops.scan import scan  # takes a second to import, and is needed for exports alone

    def combine(carry: tuple[Tensor, ...], steps: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        output, after = step(like_state(projected, steps), like_state(state, carry))
        # cloned, since what comes out may be neither what came in nor twice the same
        return tuple(tensor.clone() for tensor in state_tensors(after)), output.clone()

    # cloned, since a tensor that is given twice, as an LSTM's zeros, would be taken for one part of the state
    start = tuple(tensor.clone() for tensor in state_tensors(state))
    found: Any = scan(combine, start, tuple(state_tensors(projected)), dim=0)
    after, outputs = found
    return outputs, like_state(state, after)
