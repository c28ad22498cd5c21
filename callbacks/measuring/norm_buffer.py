"""Norms of many steps, kept on the device until they are wanted."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self


class NormBuffer:
    """The last norms of one optimizer, in a tensor on their device: putting one in makes nobody wait.

    Args:
        capacity: how many it keeps; the oldest go first. Memory is taken as it is needed.

    Attributes:
        count: how many it holds.

    >>> buffer = NormBuffer(2)
    >>> for norm in (1.0, 2.0, 3.0):
    ...     buffer.append(torch.tensor(norm))
    >>> buffer.norms().tolist()
    [2.0, 3.0]
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self._next = 0
        self._values: Tensor | None = None

    def append(self, norm: Tensor) -> None:
        """Put in the norm ``()`` of a step, of any floating dtype."""
        values = norm.new_empty(0) if self._values is None else self._values.to(norm.device)
        if self._next == len(values) < self.capacity:
            more = values.new_empty(min(max(2 * len(values), 256), self.capacity) - len(values))
            values = torch.cat([values, more])
        self._next %= len(values)
        values[self._next].copy_(norm.detach())
        self._values = values
        self._next += 1
        self.count = min(self.count + 1, self.capacity)

    def norms(self) -> Tensor:
        """What it holds, from the oldest to the newest, ``(count,)``; to be read on the host by whoever wants to."""
        if self._values is None:
            return torch.zeros(0)
        held = self._values[: self.count]
        return held.roll(-self._next) if self.count == self.capacity else held.clone()

    def clear(self) -> None:
        """Empty it."""
        self.count = self._next = 0

    def state_dict(self) -> dict[str, Any]:
        """A copy of what it holds."""
        return {"norms": self.norms().clone()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], capacity: int) -> Self:
        """The buffer that the state was taken of; the newest norms, where it has to be smaller."""
        buffer = cls(capacity)
        norms = state["norms"][-capacity:]
        if len(norms):
            buffer._values = norms.clone()
            buffer.count = buffer._next = len(norms)
        return buffer
