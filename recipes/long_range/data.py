"""Generated batches for a Trainer: which comes next is all the state there is."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.shares import place_among_ranks
from rnn_blocks.recipes.long_range.tasks import Batch, Split, Task, make_task

ENDLESS = 2**31
EVALUATION_SEED = 0


class GeneratedBatches:
    """Batches of a task, made as they are asked for: a loader for a Trainer.

    With several ranks these have every ``world_size``-th batch each. The number of the next batch is the loader's
    state: a training that is resumed goes on with it.

    Args:
        task: what the batches are of.
        batch_size: sequences of a batch.
        split: ``"train"``, ``"val"`` or ``"test"``: no two share a sequence.
        seed: of the run.
        batches: how many there are for this rank.
        rank: this process's place.
        world_size: how many processes there are.
        goes_on: whether a pass goes on where the one before it ended, and does not begin anew.

    >>> loader = GeneratedBatches(make_task("adding", 10), 4, split="train", seed=1, batches=3)
    >>> [inputs.shape for inputs, targets in loader]
    [torch.Size([10, 4, 2]), torch.Size([10, 4, 2]), torch.Size([10, 4, 2])]
    """

    def __init__(
        self,
        task: Task,
        batch_size: int,
        *,
        split: Split,
        seed: int,
        batches: int,
        rank: int = 0,
        world_size: int = 1,
        goes_on: bool = False,
    ) -> None:
        self._task = task
        self._batch_size = batch_size
        self._split: Split = split
        self._seed = seed
        self._batches = batches
        self._rank, self._world_size = rank, world_size
        self._goes_on = goes_on
        self._next = 0
        self._resume_at: int | None = None

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        first, self._resume_at = self._resume_at, None
        if first is None:
            first = self._next if self._goes_on else 0
        for index in range(first, self._batches):
            self._next = index + 1
            place = index * self._world_size + self._rank
            yield self._task.batch(self._batch_size, split=self._split, seed=self._seed, index=place)

    def state_dict(self) -> dict[str, int]:
        """The number of the batch that comes next."""
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets the next pass begin there."""
        self._next = self._resume_at = int(state_dict["next"])


class LongRangeData(pl.LightningDataModule):
    """The sequences of a task: for training without end, for evaluation always the same.

    Batch ``i`` of a training follows from the seed and ``i``, so that a resumed training sees what an uninterrupted one
    would. The validation and the test set are of one seed for every run, so that runs can be compared.

    Args:
        task: ``"adding"`` or ``"copy"``.
        length: the task's ``T``.
        batch_size: sequences of a training batch, on each device.
        seed: of the training's sequences.
        eval_sequences: sequences of the validation and of the test set, rounded up to whole batches.
        eval_batch_size: how many of them are predicted at once.

    Raises:
        InputError: for another task, a length too short for it, or a number out of its range.

    >>> data = LongRangeData("copy", 20, eval_sequences=6, eval_batch_size=3)
    >>> [inputs.shape for inputs, targets in data.val_dataloader()]
    [torch.Size([40, 3, 10]), torch.Size([40, 3, 10])]
    """

    def __init__(
        self,
        task: str,
        length: int,
        *,
        batch_size: int = 50,
        seed: int = 1,
        eval_sequences: int = 500,
        eval_batch_size: int = 100,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "eval_sequences": eval_sequences, "eval_batch_size": eval_batch_size}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name} {size}: give 1 or more")
        if seed < 0:
            raise InputError(f"seed {seed}: give 0 or more")
        self.task = make_task(task, length)
        self._batch_size, self._seed = batch_size, seed
        self._eval_batches = -(-eval_sequences // eval_batch_size)
        self._eval_batch_size = eval_batch_size

    def train_dataloader(self) -> GeneratedBatches:
        """Batches for as long as the Trainer trains."""
        rank, world_size = place_among_ranks(self.trainer)
        steps = self.trainer.max_steps if self.trainer is not None else -1
        batches = steps * self.trainer.accumulate_grad_batches if self.trainer is not None and steps > 0 else ENDLESS
        return GeneratedBatches(
            self.task,
            self._batch_size,
            split="train",
            seed=self._seed,
            batches=batches,
            rank=rank,
            world_size=world_size,
            goes_on=self.trainer is None or not self.trainer.overfit_batches,  # type: ignore[attr-defined]
        )

    def val_dataloader(self) -> GeneratedBatches:
        """The validation set."""
        return self._evaluation("val")

    def test_dataloader(self) -> GeneratedBatches:
        """The test set."""
        return self._evaluation("test")

    def _evaluation(self, split: Split) -> GeneratedBatches:
        rank, world_size = place_among_ranks(self.trainer)
        return GeneratedBatches(
            self.task,
            self._eval_batch_size,
            split=split,
            seed=EVALUATION_SEED,
            batches=-(-self._eval_batches // world_size),
            rank=rank,
            world_size=world_size,
        )

    def state_dict(self) -> dict[str, Any]:
        """What the sequences follow from, for the checkpoint."""
        return {"task": self.task.name, "length": self.task.length, "seed": self._seed, "batch_size": self._batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares a checkpoint's task with this one.

        Raises:
            InputError: where it is another one.
        """
        for name in ("task", "length"):
            if state_dict[name] != self.state_dict()[name]:
                raise InputError(
                    f"the checkpoint was trained with {name} {state_dict[name]}, and this run has "
                    f"{self.state_dict()[name]}: give the same, or start without the checkpoint"
                )
