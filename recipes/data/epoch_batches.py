"""Batches of an order of their own in each epoch, resumed in its middle: what such training loaders share."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.plan import Indices, TrainingPlan

Batch = TypeVar("Batch")


class EpochBatches(Generic[Batch]):
    """Reads this rank's batches of a plan: rank ``r`` gets batches r, r + world_size, …, and every rank as many.

    The number of the epoch and the position in it are the loader's state: a Trainer saves it in its checkpoints and,
    resumed in mid-epoch, goes on with the first batch that was not seen.

    Args:
        plan: the batches of each epoch.
        shape: what gives a position in an epoch its meaning; of two runs it must be the same.
        told: how a message tells of a shape, with its values' names in braces.
        rank: this process's place among those that share the data.
        world_size: how many they are.
        current_epoch: tells the number of the epoch that begins; None counts finished passes. A Trainer that goes on
            after an epoch's end does not restore a loader's state, but knows its epoch.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        shape: dict[str, Any],
        told: str,
        *,
        rank: int = 0,
        world_size: int = 1,
        current_epoch: Callable[[], int] | None = None,
    ) -> None:
        self._plan = plan
        self._shape = shape
        self._told = told
        self._rank, self._world_size = rank, world_size
        self._current_epoch = current_epoch
        self._pass = len(self)
        self._epoch = self._position = self._resume_at = 0

    def __len__(self) -> int:
        return self._plan.num_batches // self._world_size

    def __iter__(self) -> Iterator[Batch]:
        # All of this waits for the first batch: a Trainer makes iterators that it does not use, and makes the one that
        # it uses before it knows its epoch.
        first, self._resume_at = self._resume_at, 0
        if first == 0:
            finished = self._position >= self._pass
            self._epoch = self._current_epoch() if self._current_epoch else self._epoch + finished
        plan = self._plan.epoch(self._epoch)[self._rank :: self._world_size]
        for place, batch in enumerate(self._read(plan[first:], self._epoch, first), start=first):
            self._position = place + 1
            yield batch

    def _read(self, plan: list[Indices], epoch: int, first: int) -> Iterator[Batch]:
        """The batches of a plan, of which the first is the rank's batch ``first`` of the epoch."""
        raise NotImplementedError

    def end_pass_after(self, batches: int) -> None:
        """Says that the reader will end its epochs early: a state taken there is one of an epoch's end."""
        self._pass = min(batches, len(self))

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the number of batches handed out in it, and the shape that gives the number its meaning."""
        return {"epoch": self._epoch, "position": self._position, "batches": self._pass, **self._shape}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets the next pass go on where the state was taken; at an epoch's end, with the next epoch.

        Raises:
            InputError: the state is of the middle of an epoch over other batches.
        """
        epoch, position = int(state_dict["epoch"]), int(state_dict["position"])
        if position >= state_dict["batches"]:
            epoch, position = epoch + 1, 0
        here = self.state_dict()
        if position and any(state_dict.get(name) != here[name] for name in self._shape):
            raise InputError(
                f"the checkpoint was taken in the middle of an epoch over {self._told.format(**state_dict)}; this run"
                f" has {self._told.format(**here)}: resume with the same data settings and number of devices"
            )
        self._epoch, self._position, self._resume_at = epoch, position, position
