"""Batches of sentence pairs, as loaders for a Trainer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from rnn_blocks.modules.seq2seq.parallel_batch import ParallelBatch
from rnn_blocks.recipes.data.epoch_batches import EpochBatches
from rnn_blocks.recipes.data.plan import Budget, Indices, Lengths, TrainingPlan, evaluation_plan, padding_fraction
from rnn_blocks.recipes.translation.pairs.store import PairFile
from rnn_blocks.recipes.translation.pairs.tokenizer import BOS, EOS, PAD

IGNORED = -100
Rows = list[npt.NDArray[np.int32]]


class Segmenter(Protocol):
    """Cuts lines into tokens anew, as ``BpeDropout`` does."""

    def __call__(self, lines: list[str], seed: str) -> Rows:
        """Token ids of each line; the same for the same seed."""


class TrainingBatches(EpochBatches[ParallelBatch]):
    """The pairs of a training split in batches of like lengths, in an order of their own each epoch.

    Each epoch every pair comes once, over all ranks: rank ``r`` gets batches r, r + world_size, …, and every rank as
    many. What an epoch holds follows from ``seed`` and its number alone.

    The number of the epoch and the position in it are the loader's state: a Trainer saves it in its checkpoints and,
    resumed in mid-epoch, goes on with the first batch that was not seen.

    Args:
        pairs: the split.
        kept: places of the pairs to train on, ``(kept,)``; None for all.
        budget: what a batch of one rank may hold. It counts lengths without ``segmenters``.
        seed: of the order.
        rank: this process's place among those that share the pairs.
        world_size: how many they are.
        segmenters: what cuts source and target lines into tokens, anew in each epoch; None takes the ids on disk.
        current_epoch: tells the number of the epoch that begins; None counts finished passes. A Trainer that goes on
            after an epoch's end does not restore a loader's state, but knows its epoch.

    Raises:
        InputError: there are fewer pairs than ranks.
    """

    def __init__(
        self,
        pairs: PairFile,
        kept: Indices | None,
        budget: Budget,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        segmenters: tuple[Segmenter, Segmenter] | None = None,
        current_epoch: Callable[[], int] | None = None,
    ) -> None:
        self._pairs = pairs
        self._kept = np.arange(pairs.source.num_rows) if kept is None else kept
        source, self._target_lengths = (lengths[self._kept] for lengths in _lengths(pairs))
        plan = TrainingPlan(source, self._target_lengths, budget, seed=seed, world_size=world_size)
        self._seed = seed
        self._segmenters = segmenters
        shape = {
            "pairs": len(self._kept),
            "batch_tokens": budget.tokens,
            "max_sentences": budget.sentences or 0,
            "ranks": world_size,
            "seed": seed,
        }
        told = (
            "{pairs} pairs on {ranks} ranks with batch_tokens {batch_tokens}, max_sentences {max_sentences},"
            " seed {seed}"
        )
        super().__init__(plan, shape, told, rank=rank, world_size=world_size, current_epoch=current_epoch)

    def _read(self, plan: list[Indices], epoch: int, first: int) -> Iterator[ParallelBatch]:
        with _Reader(self._pairs) as reader:
            for place, pairs in enumerate(plan, start=first):
                seed = f"{self._seed} {epoch} {place * self._world_size + self._rank}"
                yield self._batch(reader, self._kept[pairs], seed)

    @property
    def padding_fraction(self) -> float:
        """The part of this epoch's target positions that is padding, over all ranks."""
        return padding_fraction(self._plan.epoch(self._epoch), self._target_lengths)

    def _batch(self, reader: "_Reader", places: Indices, seed: str) -> ParallelBatch:
        if self._segmenters is None:
            return batch_of(reader.source(places), reader.target(places), indices=places)
        source, target = self._segmenters
        return batch_of(
            source(reader.source_text(places), f"{seed} source"),
            target(reader.target_text(places), f"{seed} target"),
            indices=places,
        )


class EvaluationBatches:
    """The pairs of a validation or test split, each once, short sources first, with their references.

    Rank ``r`` gets batches r, r + world_size, …, and every rank as many; ``batch.indices`` tells the line of each pair.

    Args:
        pairs: the split.
        budget: what a batch may hold; a pair that is longer is a batch of its own.
        rank: this process's place among those that share the pairs.
        world_size: how many they are.

    Raises:
        InputError: there are fewer pairs than ranks.
    """

    def __init__(self, pairs: PairFile, budget: Budget, *, rank: int = 0, world_size: int = 1) -> None:
        self._pairs = pairs
        self._plan = evaluation_plan(*_lengths(pairs), budget, world_size=world_size)[rank::world_size]

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[ParallelBatch]:
        with _Reader(self._pairs) as reader:
            for places in self._plan:
                references = reader.target_text(places)
                yield batch_of(reader.source(places), reader.target(places), references, indices=places)


def batch_of(
    source: Sequence[npt.ArrayLike],
    target: Sequence[npt.ArrayLike],
    references: list[str] | None = None,
    *,
    indices: Indices | None = None,
) -> ParallelBatch:
    """Pads token ids, ``<eos>`` not among them, to a batch.

    >>> batch = batch_of([[5, 6], [7]], [[8], [9, 9]])
    >>> batch.source.tolist(), batch.source_lengths.tolist()
    ([[5, 6, 2], [7, 2, 0]], [3, 2])
    >>> batch.target_inputs.tolist(), batch.target_outputs.tolist()
    ([[1, 8, 0], [1, 9, 9]], [[8, 2, -100], [9, 9, 2]])
    """
    sources, source_lengths = _padded(source, PAD, last=EOS)
    inputs, _ = _padded(target, PAD, first=BOS)
    outputs, _ = _padded(target, IGNORED, last=EOS)
    places = None if indices is None else torch.from_numpy(indices)
    return ParallelBatch(sources, source_lengths, inputs, outputs, references, places)


def _padded(
    rows: Sequence[npt.ArrayLike], filler: int, *, first: int | None = None, last: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    ends: tuple[list[int], list[int]] = ([] if first is None else [first], [] if last is None else [last])
    whole = [np.concatenate([ends[0], row, ends[1]]) for row in rows]
    lengths = np.array([len(row) for row in whole])
    padded = np.full((len(whole), int(lengths.max())), filler, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(whole)
    return torch.from_numpy(padded), torch.from_numpy(lengths)


def _lengths(pairs: PairFile) -> tuple[Lengths, Lengths]:
    """Of both sides, with ``<eos>``."""
    return pairs.source.lengths() + 1, pairs.target.lengths() + 1


class _Reader:
    """The open files of a split."""

    def __init__(self, pairs: PairFile) -> None:
        self._pairs = pairs
        self._stack = ExitStack()

    def __enter__(self) -> "_Reader":
        pairs, enter = self._pairs, self._stack.enter_context
        self._ids = enter(pairs.source.open()), enter(pairs.target.open())
        self._texts = enter(pairs.source_text.open()), enter(pairs.target_text.open())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def source(self, places: Indices) -> Rows:
        return [self._ids[0].read(place) for place in places.tolist()]

    def target(self, places: Indices) -> Rows:
        return [self._ids[1].read(place) for place in places.tolist()]

    def source_text(self, places: Indices) -> list[str]:
        return [self._texts[0].text(place) for place in places.tolist()]

    def target_text(self, places: Indices) -> list[str]:
        return [self._texts[1].text(place) for place in places.tolist()]
