"""Batches of sequences with blanks, as loaders for a Trainer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rnn_blocks.modules.cloze.batch import ClozeBatch
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.cloze.sequences import Sequences
from rnn_blocks.recipes.data.epoch_batches import EpochBatches
from rnn_blocks.recipes.data.plan import Budget, Indices, TrainingPlan, evaluation_plan
from rnn_blocks.recipes.data.store import TokenFile

IGNORED = -100
_EVALUATION = 2**64 - 1  # stands for the number of an epoch where blanks are the same each time


@dataclass(frozen=True)
class BlankedText:
    """A text's sequences, and where blanks are drawn in them.

    Attributes:
        tokens: the token ids.
        sequences: where the sequences lie.
        mask_id: the id that stands for a blank.
        never: ids that are never blanked out, ``(ids,)``.
        rate: the part of the other tokens that is, between 0 and 1; at least one of a sequence.
        seed: of the draw.
    """

    tokens: TokenFile
    sequences: Sequences
    mask_id: int
    never: npt.NDArray[np.int64]
    rate: float
    seed: int

    def batch(self, file: FileIO, places: Indices, epoch: int) -> ClozeBatch:
        """Some of the sequences, with the blanks of an epoch.

        Which tokens are blanked out follows from the seed, the number of the epoch and the sequence's place in the
        text, whatever else is in the batch.
        """
        starts, lengths = self.sequences.starts[places], self.sequences.lengths[places]
        shape = (len(places), int(lengths.max()))
        size = np.dtype(self.tokens.dtype).itemsize
        ids = np.zeros(shape, dtype=np.int64)
        blank = np.zeros(shape, dtype=bool)
        for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            file.seek(start * size)
            read = np.frombuffer(file.read(length * size), dtype=self.tokens.dtype)
            ids[row, :length] = read
            blank[row, :length] = draw_blanks(~np.isin(read, self.never), self.rate, (self.seed, epoch), start)
        inputs, targets = np.where(blank, self.mask_id, ids), np.where(blank, ids, IGNORED)
        return ClozeBatch(*map(torch.from_numpy, (inputs, targets, lengths.astype(np.int64))))

    def read(self, plan: list[Indices], epoch: int) -> Iterator[ClozeBatch]:
        """The batches of a plan."""
        with self.tokens.path.open("rb", buffering=0) as file:
            for places in plan:
                yield self.batch(file, places, epoch)

    def check_ranks(self, ranks: int) -> None:
        """Raises InputError where there are fewer sequences than ranks."""
        if len(self.sequences) < ranks:
            raise InputError(
                f"the {self.tokens.path.stem} split has {len(self.sequences)} sequences with something to blank out,"
                f" and {ranks} ranks share them: give it more text, or fewer devices"
            )


def draw_blanks(
    eligible: npt.NDArray[np.bool_], rate: float, key: tuple[int, int], place: int
) -> npt.NDArray[np.bool_]:
    """Which tokens of a sequence are blanked out: each eligible one with probability ``rate``, but at least one.

    Args:
        eligible: whether a token may be, ``(tokens,)``; at least one.
        rate: the probability.
        key: two numbers, such as a seed and an epoch.
        place: of the sequence; sequences at different places are drawn for independently.

    >>> draw_blanks(np.array([True, True, False]), 0.01, (0, 0), place=7).sum()
    np.int64(1)
    """
    # Counted, not seeded: the same draw for a place wherever a run begins, and made in microseconds.
    bits = np.random.Philox(key=np.array(key, np.uint64), counter=np.array([0, place, 0, 0], np.uint64))
    drawn = np.where(eligible, np.random.Generator(bits).random(len(eligible)), np.inf)
    blank = drawn < rate
    if not blank.any():
        blank[drawn.argmin()] = True
    return blank


class TrainingBlanks(EpochBatches[ClozeBatch]):
    """The sequences of a training split in batches of like lengths; order and blanks are each epoch's own.

    Each epoch every sequence comes once, over all ranks. What an epoch holds follows from the seed and its number
    alone, and a Trainer that resumes in mid-epoch goes on with the first batch that was not seen; see
    ``EpochBatches``.

    Args:
        text: the split.
        budget: what a batch of one rank may hold.
        rank: this process's place among those that share the sequences.
        world_size: how many they are.
        current_epoch: tells the number of the epoch that begins; None counts finished passes.

    Raises:
        InputError: there are fewer sequences than ranks.
    """

    def __init__(
        self,
        text: BlankedText,
        budget: Budget,
        *,
        rank: int = 0,
        world_size: int = 1,
        current_epoch: Callable[[], int] | None = None,
    ) -> None:
        text.check_ranks(world_size)
        lengths = text.sequences.lengths
        plan = TrainingPlan(lengths, lengths, budget, seed=text.seed, world_size=world_size)
        shape: dict[str, Any] = {
            "sequences": len(lengths),
            "longest": int(lengths.max()),
            "batch_tokens": budget.tokens,
            "max_sentences": budget.sentences or 0,
            "mask_rate": text.rate,
            "ranks": world_size,
            "seed": text.seed,
        }
        told = (
            "{sequences} sequences of at most {longest} tokens on {ranks} ranks with batch_tokens {batch_tokens},"
            " max_sentences {max_sentences}, mask_rate {mask_rate}, seed {seed}"
        )
        super().__init__(plan, shape, told, rank=rank, world_size=world_size, current_epoch=current_epoch)
        self._blanked = text

    def _read(self, plan: list[Indices], epoch: int, first: int) -> Iterator[ClozeBatch]:
        return self._blanked.read(plan, epoch)


class EvaluationBlanks:
    """The sequences of a validation or test split, each once, short ones first, with the same blanks each time.

    Rank ``r`` gets batches r, r + world_size, …, and every rank as many.

    Args:
        text: the split.
        budget: what a batch may hold.
        rank: this process's place among those that share the sequences.
        world_size: how many they are.

    Raises:
        InputError: there are fewer sequences than ranks.
    """

    def __init__(self, text: BlankedText, budget: Budget, *, rank: int = 0, world_size: int = 1) -> None:
        text.check_ranks(world_size)
        lengths = text.sequences.lengths
        self._blanked = text
        self._plan = evaluation_plan(lengths, lengths, budget, world_size=world_size)[rank::world_size]

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[ClozeBatch]:
        return self._blanked.read(self._plan, _EVALUATION)
