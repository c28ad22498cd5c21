"""What a corpus is: text in three splits, read as a stream and cut into blocks."""

import re
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

FILES = "files"  # those that are given
NO_FILES = f"source {FILES}: give --data.train, --data.val and --data.test, or another source"
NAMED = ("stdlib", "stdlib-by-file", "rhymes", "numbers", FILES)
"""The sources of all recipes that have a name; others begin with ``HUB`` or are paths."""
HUB = "hub:"

# A tokenizer's work on a block of this size stays in the processor's cache: blocks of 64 Ki take 1.6 times as long.
BLOCK_CHARACTERS = 4096

_UP_TO_LAST_BREAK = re.compile(r".*[ \n](?=\S)", re.DOTALL)


class Corpus(Protocol):
    """Text in three splits. Nothing holds a whole split in memory."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""

    def fingerprint(self) -> str:
        """Checks that all of the text can be read, and returns a hash of it.

        Raises:
            InputError: some of the text is missing or cannot be read.
        """

    def num_bytes(self, split: Split) -> int | None:
        """Bytes of a split's text in UTF-8, or None where that is not known without reading it."""

    def pieces(self, split: Split) -> Iterator[str]:
        """A split's text, in order, in pieces of any size."""


def blocks(pieces: Iterable[str], limit: int = BLOCK_CHARACTERS) -> Iterator[str]:
    r"""Cuts text into blocks of at most ``limit`` characters; their concatenation is the text.

    A cut lies before the last whitespace character between two words, where the pre-tokenizers of byte-level BPE and of
    words cut too, so that tokenizing the blocks gives the tokens of the whole. Only a run without any such place is
    cut at the limit. The blocks depend on the text alone, not on how it came in pieces.

    >>> list(blocks(["one two thr", "ee\n  four"], limit=9))
    ['one two', ' three\n ', ' four']
    """
    waiting = ""
    for piece in pieces:
        waiting += piece
        start = 0
        while len(waiting) - start > limit:
            match = _UP_TO_LAST_BREAK.match(waiting, start, start + limit + 1)
            end = match.end() - 1 if match and match.end() - 1 > start else start + limit
            yield waiting[start:end]
            start = end
        waiting = waiting[start:]
    if waiting:
        yield waiting


def utf8_length(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
