"""How long the chunks of truncated backpropagation through time are."""

import numpy as np
import numpy.typing as npt

SHORTEST = 5
SPREAD = 5.0  # the standard deviation of a length
FURTHEST = 20  # four standard deviations: what a batch takes of memory stays bounded
HALVED = 0.05


class FixedLengths:
    """Chunks of ``bptt`` steps that cover all ``steps``; the last may be shorter.

    >>> FixedLengths(10, 4).epoch(0)
    array([4, 4, 2])
    """

    def __init__(self, steps: int, bptt: int) -> None:
        self._lengths = np.full(-(-steps // bptt), bptt, dtype=np.int64)
        self._lengths[-1] = steps - bptt * (len(self._lengths) - 1)

    def __len__(self) -> int:
        return len(self._lengths)

    def epoch(self, number: int) -> npt.NDArray[np.int64]:
        """The same lengths in every epoch, ``(chunks,)``."""
        return self._lengths


class DrawnLengths:
    """Lengths of chunks drawn at random, so that chunks end at other tokens each time the text is read.

    Merity et al. (2018), "Regularizing and optimizing LSTM language models", section 5: a length is drawn around
    ``bptt``, or with a probability of 5 % around half of it, normally with a standard deviation of 5. It is at least
    5, and at most ``bptt`` + 20 so that the memory of a batch is bounded. One chunk takes what is left over at the end
    and may be shorter.

    The lengths are drawn once, and each epoch has them in another order: all epochs have as many batches, as a Trainer
    needs. They follow from ``seed`` and the number of the epoch alone, the same on all ranks.

    Args:
        steps: what the chunks of an epoch cover together.
        bptt: the length around which they are drawn.
        seed: of the draw.

    >>> lengths = DrawnLengths(1000, 70, seed=1)
    >>> first, second = lengths.epoch(0).tolist(), lengths.epoch(1).tolist()
    >>> sum(first), sum(second), first == second, sorted(first) == sorted(second)
    (1000, 1000, False, True)
    """

    def __init__(self, steps: int, bptt: int, *, seed: int) -> None:
        self._seed = seed
        drawn: list[int] = []
        random = np.random.default_rng([seed, steps, bptt])
        left = steps
        while left > 0:
            mean = bptt / 2 if random.random() < HALVED else bptt
            length = int(np.clip(random.normal(mean, SPREAD), SHORTEST, bptt + FURTHEST))
            drawn.append(min(length, left))
            left -= length
        self._lengths = np.array(drawn, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._lengths)

    def epoch(self, number: int) -> npt.NDArray[np.int64]:
        """The lengths in the order of an epoch, ``(chunks,)``."""
        return np.random.default_rng([self._seed, number]).permutation(self._lengths)
