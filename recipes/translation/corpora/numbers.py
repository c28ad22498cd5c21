"""Numbers spelled out in two languages, by ``num2words``: real grammar, and an exact answer to score against."""

import hashlib
import importlib.metadata
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import SPLITS, Split
from rnn_blocks.recipes.translation.corpora.corpus import Pair

# Part of the fingerprint: raise it when the same settings would give other numbers.
_FORMAT = 1
# Not the training's seed: another order of training must not change what is tested.
_SEED = 2015
# Of the numbers with so many digits, the part that val and test together may hold out.
_HELD_OUT = 0.1
# Spelling takes some 0.2 ms a pair, and the pairs are read twice: so many stay in memory in between (some 20 MB).
_REMEMBERED_PAIRS = 1 << 16


@dataclass(frozen=True)
class NumberSizes:
    """How many numbers there are in each split, and how great they may be.

    Raises:
        InputError: there are too few numbers for it.

    >>> NumberSizes(train=100, val=10, test=10, greatest=99)  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: numbers_max 99: too few to hold out 10 + 10; raise it, or ask for
    9 at most by numbers_val and numbers_test
    """

    train: int = 30_000
    val: int = 1_000
    test: int = 1_000
    greatest: int = 999_999

    def __post_init__(self) -> None:
        for name, size in (("train", self.train), ("val", self.val), ("test", self.test)):
            if size < 1:
                raise InputError(f"numbers_{name} {size}: give 1 or more")
        if not 9 <= self.greatest <= 10**15:
            raise InputError(f"numbers_max {self.greatest}: give 9 to 10^15")
        self.numbers()

    def numbers(self) -> dict[Split, list[int]]:
        """The numbers of each split, all distinct: no number is in two splits, or twice in one.

        In each split the numbers of digits are equally frequent as far as there are that many numbers. All digits and
        at least nine in ten of the numbers of each length are left to training.
        """
        draw = random.Random(_SEED)
        pools = [
            range(10**digits if digits else 0, min(10 ** (digits + 1), self.greatest + 1))
            for digits in range(len(str(self.greatest)))
        ]
        free = [0, *(int(len(pool) * _HELD_OUT) for pool in pools[1:])]
        held_out = _shares(self.val + self.test, free)
        told = f"numbers_max {self.greatest}: too few to "
        if held_out is None:
            most = f"{sum(free)} at most by numbers_val and numbers_test"
            raise InputError(f"{told}hold out {self.val} + {self.test}; raise it, or ask for {most}")
        left = [len(pool) - out for pool, out in zip(pools, held_out, strict=True)]
        trained = _shares(self.train, left)
        if trained is None:
            most = f"{sum(left)} at most by numbers_train"
            raise InputError(f"{told}train on {self.train}; raise it, or ask for {most}")
        test: list[int] = []
        train: list[int] = []
        for pool, out, size in zip(pools, held_out, trained, strict=True):
            away = set(draw.sample(pool, out))
            test += sorted(away)
            drawn = draw.sample(pool, min(len(pool), size + out))
            train += [number for number in drawn if number not in away][:size]
        draw.shuffle(test)
        draw.shuffle(train)
        return {"train": train, "val": test[: self.val], "test": test[self.val :]}


class SpelledNumbers:
    """A parallel corpus of numbers spelled out in two languages.

    Args:
        languages: the source and the target language, such as ``("en", "de")``.
        sizes: how many numbers, and how great.

    Raises:
        InputError: ``num2words`` lacks a language (the message lists those that it has), or is not installed.

    >>> corpus = SpelledNumbers(("en", "de"), NumberSizes(train=30, val=5, test=5, greatest=999))
    >>> corpus.place("test", 0, "target").startswith("numbers (en → de): ")
    True
    >>> Pair("twenty-one", "einundzwanzig") in SpelledNumbers(("en", "de"), NumberSizes(80, 2, 2, 99)).pairs("train")
    True
    """

    def __init__(self, languages: tuple[str, str], sizes: NumberSizes) -> None:
        self._spell = [_speller(language) for language in languages]
        self._languages = languages
        self._sizes = sizes
        self._numbers = sizes.numbers()
        self._spelled: dict[Split, list[Pair]] = {}

    @property
    def name(self) -> str:
        """``numbers``, and the languages."""
        return f"numbers ({self._languages[0]} → {self._languages[1]})"

    @property
    def splits(self) -> tuple[Split, ...]:
        """All three."""
        return SPLITS

    def fingerprint(self) -> str:
        """A hash of the numbers, the languages and the version of ``num2words``."""
        # What can be seen at once comes before the long work: what a language cannot spell is among the first of these.
        for number in (0, self._sizes.greatest, *self._numbers["val"][:50]):
            self._pair(number)
        parts = [_FORMAT, importlib.metadata.version("num2words"), self._languages, self._numbers]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def num_pairs(self, split: Split) -> int:
        """How many numbers a split has."""
        return len(self._numbers[split])

    def pairs(self, split: Split) -> Iterator[Pair]:
        """The numbers of a split, spelled out."""
        if split in self._spelled:
            yield from self._spelled[split]
            return
        pairs: list[Pair] = []
        for number in self._numbers[split]:
            pair = self._pair(number)
            yield pair
            if self.num_pairs(split) <= _REMEMBERED_PAIRS:
                pairs.append(pair)
        if pairs:
            self._spelled[split] = pairs

    def place(self, split: Split, index: int, side: str) -> str:
        """The number and the language."""
        language = self._languages[0 if side == "source" else 1]
        return f"{self.name}: {self._numbers[split][index]} in {language}"

    def _pair(self, number: int) -> Pair:
        source, target = (spell(number) for spell in self._spell)
        return Pair(source, target)


def _shares(total: int, capacities: Sequence[int]) -> list[int] | None:
    """Equal shares of a total, as far as each capacity allows; None where they do not reach."""
    shares = [0] * len(capacities)
    rising = sorted(range(len(capacities)), key=lambda place: capacities[place])
    for place, others in zip(rising, range(len(rising), 0, -1), strict=True):
        shares[place] = min(capacities[place], -(-total // others))
        total -= shares[place]
    return shares if total == 0 else None


def _speller(language: str) -> Callable[[int], str]:
    try:
        import num2words  # only this corpus needs it
    except ImportError:
        raise InputError("source numbers: install num2words, or the extra: pip install 'rnn-blocks[recipes]'") from None
    if language not in num2words.CONVERTER_CLASSES:
        known = ", ".join(sorted(num2words.CONVERTER_CLASSES))
        raise InputError(f"language {language!r}: num2words has no such language; it has: {known}")

    def spell(number: int) -> str:
        try:
            return str(num2words.num2words(number, lang=language))
        except Exception as error:  # each of its languages fails in its own way
            raise InputError(
                f"num2words cannot spell {number} in language {language!r} ({error}); choose a smaller numbers_max, or"
                " another language"
            ) from error

    return spell
