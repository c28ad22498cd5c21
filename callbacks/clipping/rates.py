"""Learning rates that are lowered for one step, by one or by several, and are the user's own in between."""

from collections.abc import Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer

Rate = float | Tensor
Group = dict[str, Any]


class Rates:
    """The learning rates of one optimizer: the same object for all that lower them.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    >>> group, rates = optimizer.param_groups[0], Rates.of(optimizer)
    >>> rates.lower("one", [group], 0.5)
    >>> rates.lower("another", [group], 0.8)
    >>> group["lr"], rates.users(group)
    (0.5, 1.0)
    >>> rates.restore()
    >>> group["lr"], rates.used(group)
    (1.0, 0.5)
    """

    _known: ClassVar[WeakKeyDictionary[Optimizer, "Rates"]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._users: dict[int, tuple[Group, Rate]] = {}  # by the group's id, while lowered
        self._used: dict[int, Rate] = {}  # in the last step
        self._lowered_by: set[object] = set()

    @classmethod
    def of(cls, optimizer: Optimizer) -> "Rates":
        """Those of an optimizer."""
        return cls._known.setdefault(optimizer, cls())

    def begin(self, who: object) -> None:
        """Before a step; where `who` has lowered the rates already, an error has broken off that step."""
        if who in self._lowered_by:
            self.restore()
        self._used = {}

    def users(self, group: Group) -> Rate | None:
        """What the user has set for a parameter group; None where it has no rate."""
        return self._users[id(group)][1] if id(group) in self._users else group.get("lr")

    def used(self, group: Group) -> Rate:
        """What the last step of a group was made with, or is being made with."""
        now: Rate = group["lr"]
        return now if id(group) in self._users else self._used.get(id(group), now)

    def lower(self, who: object, groups: Sequence[Group], coefficient: float) -> None:
        """Make the rates of some groups at most so much of the user's own, until `restore`."""
        self._lowered_by.add(who)
        for group in groups:
            users = self._users.setdefault(id(group), (group, group["lr"]))[1]
            if float(users) * coefficient < float(group["lr"]):
                group["lr"] = users * coefficient

    def restore(self) -> None:
        """Give every group its own rate back; to be called after each step, by everyone."""
        if not self._lowered_by:
            return
        self._used = {place: group["lr"] for place, (group, _) in self._users.items()}
        for group, rate in self._users.values():
            group["lr"] = rate
        self._users, self._lowered_by = {}, set()
