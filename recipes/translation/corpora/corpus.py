"""What a parallel corpus is: pairs of a source line and its translation, in splits."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from rnn_blocks.recipes.data.corpora.corpus import Split


class Pair(NamedTuple):
    """A line and its translation."""

    source: str
    target: str


class ParallelCorpus(Protocol):
    """Pairs of lines in two or three splits. Nothing holds a whole split in memory."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """``train`` and ``val``, and ``test`` where there is one."""

    def fingerprint(self) -> str:
        """Checks that all of the text can be read, and returns a hash of it.

        Raises:
            InputError: some of the text is missing or cannot be read, or the two sides do not match.
        """

    def num_pairs(self, split: Split) -> int | None:
        """How many pairs a split has, or None where that is not known without reading it."""

    def pairs(self, split: Split) -> Iterator[Pair]:
        """A split's pairs, in order."""

    def place(self, split: Split, index: int, side: str) -> str:
        """Where the source (or ``target``) line of a pair stands, for messages: ``val.en: line 7``."""
