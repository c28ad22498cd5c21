"""Which pairs go into which batch: a budget of padded tokens, like lengths together."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rnn_blocks.recipes import InputError

Indices = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int32]

# Tokens by which source lengths are blurred in training, so that a pair's company changes from epoch to epoch. On
# Multi30k it takes 1 % more batches and 2 % more source padding; the target padding stays below 1 %.
_BLUR = 2.0
# Room for what the blur adds.
_MORE_BATCHES = 0.03


@dataclass(frozen=True)
class Budget:
    """What a batch may hold.

    Attributes:
        tokens: padded positions of its longer side: sentences times the longest of them, source or target.
        sentences: pairs at most; None for no limit.
    """

    tokens: int
    sentences: int | None = None


class TrainingPlan:
    """The batches of each training epoch. They differ from epoch to epoch; their number does not.

    Each pair comes once an epoch. The batches of an epoch follow from ``seed`` and its number alone.

    Args:
        source: the source lengths, ``(pairs,)``, with ``<eos>``.
        target: the target lengths.
        budget: what a batch may hold; a pair that is longer is a batch of its own.
        seed: of the order.
        world_size: what the number of batches is a multiple of: some are made smaller for it, no pair is lost.

    Raises:
        InputError: there are fewer pairs than ranks.

    >>> lengths = np.array([2, 9, 3, 8, 2, 9], dtype=np.int32)
    >>> plan = TrainingPlan(lengths, lengths, Budget(18))
    >>> batches = plan.epoch(0)
    >>> len(batches) == plan.num_batches, sorted(np.concatenate(batches).tolist())
    (True, [0, 1, 2, 3, 4, 5])
    """

    def __init__(self, source: Lengths, target: Lengths, budget: Budget, *, seed: int = 0, world_size: int = 1) -> None:
        self._source, self._target, self._budget, self._seed = source, target, budget, seed
        least = len(_cut(_in_order(source, target), np.maximum(source, target), budget))
        self.num_batches = _shared(least + int(least * _MORE_BATCHES) + (least > 1), len(source), world_size)

    def epoch(self, number: int) -> list[Indices]:
        """The places of the pairs of each batch."""
        random = np.random.default_rng([self._seed, number])
        longest = np.maximum(self._source, self._target)
        shuffled = random.permutation(len(longest))  # pairs of the same lengths meet by chance
        for blur in (_BLUR, 0.0):  # without it there are as few batches as there can be
            blurred = self._source[shuffled] + blur * random.random(len(shuffled))
            order = shuffled[_in_order(blurred, self._target[shuffled])]
            batches = _cut(order, longest, self._budget)
            if len(batches) <= self.num_batches:
                break
        batches = _resized(batches, self.num_batches)
        return [batches[place] for place in random.permutation(len(batches))]


def evaluation_plan(source: Lengths, target: Lengths, budget: Budget, *, world_size: int = 1) -> list[Indices]:
    """Each pair once, short sources first; as many batches as a multiple of ``world_size``.

    Raises:
        InputError: there are fewer pairs than ranks.

    >>> lengths = np.array([2, 9, 3], dtype=np.int32)
    >>> [batch.tolist() for batch in evaluation_plan(lengths, lengths, Budget(9))]
    [[0, 2], [1]]
    """
    batches = _cut(np.lexsort((target, source)), np.maximum(source, target), budget)
    return _resized(batches, _shared(len(batches), len(source), world_size))


def padding_fraction(batches: list[Indices], lengths: Lengths) -> float:
    """The part of all positions of padded batches that is padding.

    >>> padding_fraction([np.array([0, 1])], np.array([1, 3], dtype=np.int32))
    0.33333333333333337
    """
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / padded


def _in_order(source: npt.NDArray[np.floating] | Lengths, target: Lengths) -> Indices:
    """By target length; among like targets sources go up and down in turn, so that neighbours are alike throughout."""
    return np.lexsort((np.where(target % 2 == 0, source, -source), target))


def _cut(order: Indices, longest: Lengths, budget: Budget) -> list[Indices]:
    """Consecutive pairs, each batch as large as the budget allows."""
    most = min(budget.tokens, budget.sentences or budget.tokens)
    batches, start = [], 0
    while start < len(order):
        window = np.maximum.accumulate(longest[order[start : start + most]])
        over = np.flatnonzero(window * np.arange(1, len(window) + 1) > budget.tokens)
        size = max(1, int(over[0]) if len(over) else len(window))
        batches.append(order[start : start + size])
        start += size
    return batches


def _shared(batches: int, pairs: int, world_size: int) -> int:
    """The next number of batches that gives each rank as many."""
    if pairs < world_size:
        raise InputError(
            f"there are {pairs} pairs, and {world_size} ranks share them: give more text, or fewer devices"
        )
    more = -(-batches // world_size) * world_size
    return more if more <= pairs else pairs // world_size * world_size


def _resized(batches: list[Indices], count: int) -> list[Indices]:
    """As many batches as asked for: the largest are halved. The smallest are joined where pairs are too few for it."""
    batches = list(batches)
    while len(batches) < count:
        place = max(range(len(batches)), key=lambda index: len(batches[index]))
        batches[place : place + 1] = np.array_split(batches[place], 2)
    while len(batches) > count:
        place = min(range(len(batches) - 1), key=lambda index: len(batches[index]) + len(batches[index + 1]))
        batches[place : place + 2] = [np.concatenate(batches[place : place + 2])]
    return batches
