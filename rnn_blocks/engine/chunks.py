"""Chunks of steps: on the way back the weights' gradients are gathered by chunk, and what was saved for it can go."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rnn_blocks.engine.program import Program, Source

ROWS = 1024  # of a chunk, time and batch as one dimension: enough for a product to run at full speed
MOST = 8  # chunks of a sequence: each adds up the weights' gradients once more, and the memory is an eighth already


@dataclass
class Chunk:
    """Steps after one another, and what the forward program saved for them."""

    start: int
    stop: int
    stacked: list[Tensor]
    """``(steps, …)`` each: the first of what was saved."""
    saved: list[Sequence[Tensor]] = field(default_factory=list)
    """All of it, by step."""

    def __len__(self) -> int:
        return self.stop - self.start

    def let_go(self) -> None:
        """Free what was saved."""
        self.stacked, self.saved = [], []

    def rows(
        self, source: Source, program: Program, buffers: Sequence[Tensor], outputs: Tensor | None, first: Tensor | None
    ) -> Tensor:
        """The values of all its steps, with time and batch as one dimension.

        ``buffers`` are of its steps alone; ``outputs`` those of the sequence, and ``first`` what stands before them.
        """
        if source.place == "saved":
            if source.number < len(self.stacked):
                return self.stacked[source.number].flatten(0, 1)
            return torch.cat([keep[source.number] for keep in self.saved])
        if source.place == "slot":
            buffer = buffers[source.number]
            if source.piece is not None:
                buffer = buffer.split(program.slots[source.number].pieces, -1)[source.piece]
            return buffer.flatten(0, 1)
        assert outputs is not None
        assert first is not None
        if source.place == "output":
            return outputs[self.start : self.stop].flatten(0, 1)
        if self.start:
            return outputs[self.start - 1 : self.stop - 1].flatten(0, 1)
        return torch.cat([first, *outputs[: self.stop - 1].unbind(0)])


def chunks(time: int, program: Program, stacks: Sequence[Tensor]) -> list[Chunk]:
    """Those of a sequence, with nothing saved yet.

    Args:
        time: how many steps there are.
        program: of one step.
        stacks: what is to be saved of all steps, ``(time, …)`` each.
    """
    return [Chunk(a, b, [stack[a:b] for stack in stacks]) for a, b in edges(time, program.output[0][0])]


def edges(time: int, batch: int) -> list[tuple[int, int]]:
    """Where each chunk starts and stops.

    >>> edges(35, 20), edges(128, 16)
    ([(0, 35)], [(0, 64), (64, 128)])
    """
    length = -(-time // max(1, min(MOST, time * batch // ROWS)))
    return [(start, min(start + length, time)) for start in range(0, time, length)]


def whole_slots(
    program: Program, free: Sequence[Tensor], time: int, device: torch.device
) -> tuple[dict[int, Tensor], set[int]]:
    """Where the gradients of the projected inputs go, by slot; the slots that take the memory of one of ``free``, which
    must not be written to before its chunk is done.
    """
    whole: dict[int, Tensor] = {}
    lent: set[int] = set()
    left = list(free)
    for number in program.projected_slots:
        if number is None or number in whole:
            continue
        slot = program.slots[number]
        fitting = [k for k, stack in enumerate(left) if stack.shape[1:] == slot.shape and stack.dtype == slot.dtype]
        if fitting:
            lent.add(number)
            whole[number] = left.pop(fitting[0])
        else:
            whole[number] = torch.empty(time, *slot.shape, dtype=slot.dtype, device=device)
    return whole, lent


def slots_by_step(program: Program, places: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """By step, where its values go that are wanted of all steps; each place is followed by its pieces."""
    views = [
        view.unbind(0)
        for slot, place in zip(program.slots, places, strict=True)
        for view in (place, *(place.split(slot.pieces, -1) if slot.pieces and not program.compiled else ()))
    ]
    return list(zip(*views, strict=True))


def keeps_graph() -> bool:
    """Whether the backward pass that is running may be run once more, for which all that was saved must stay."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)  # torch's own, and private
    return ask is None or bool(ask())
