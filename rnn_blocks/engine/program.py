"""What a recorded step becomes: four programs, and where their values lie."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Source:
    """Where the values of all steps lie.

    "slot" (the backward program wrote them to a buffer, or to a piece of it), "saved" (by the forward program),
    "output" (the outputs), "before" (the outputs one step earlier).
    """

    place: str
    number: int = 0
    piece: int | None = None


@dataclass(frozen=True)
class Slot:
    """One step of a buffer that the backward program writes to; ``pieces``: the sizes its last dimension falls into."""

    shape: torch.Size
    dtype: torch.dtype
    pieces: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """The four programs and how they hang together.

    ``invariant(*constants, *passed) -> kept``

    ``forward(*projected, *masks, *state, *constants, *passed, *kept, out, *stacked) -> (state, loose)``

    ``backward(*stacked, *loose, before, now, *tangents, *constants, *passed, *kept, *slots)
    -> (state gradients, totals)``

    ``gather(take, *totals, *constants, *passed, *kept) -> constants' gradients``

    ``passed`` are the parts of the state that a step hands on as they are; behind ``kept`` stand the products with
    those constants and kept values that are ``packed``. ``out`` takes the output, and ``stacked`` what is saved for the
    way back (shape, dtype), but for what no operator can put there, which is ``loose``. ``before`` and ``now`` are the
    outputs of the previous step and of this one, used where the output is a part of the state, which then is not saved
    a second time. The slots, each followed by its pieces, are one step of the buffers that gather gradients over
    time. ``take`` gives the values of a source, time and batch as one dimension.
    """

    invariant: Callable[..., tuple[Tensor, ...]]
    forward: Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
    backward: Callable[..., tuple[tuple[Tensor | None, ...], tuple[Tensor, ...]]]
    gather: Callable[..., tuple[Tensor | None, ...]]
    output: tuple[torch.Size, torch.dtype]
    packed: tuple[int, ...]
    carried: int | None
    passed: tuple[int, ...]
    stacked: tuple[tuple[torch.Size, torch.dtype], ...]
    slots: tuple[Slot, ...]
    projected_slots: tuple[int | None, ...]
    sources: tuple[Source, ...]
    text: str
    compiled: bool = False
    """Whether forward and backward are compiled: they take tensors without gaps, and of the slots no pieces."""
