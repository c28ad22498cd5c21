"""Sequences of a tokenized text: its lines, or windows of one length."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rnn_blocks.recipes.data.store import TokenFile

Unit: TypeAlias = Literal["line", "window"]
UNITS: tuple[Unit, ...] = ("line", "window")

_AT_ONCE = 1 << 20  # tokens


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a token file lie.

    Attributes:
        starts: place of each first token, ``(sequences,)``.
        lengths: tokens of each, ``(sequences,)``.
    """

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.starts)


def windows(num_tokens: int, length: int) -> Sequences:
    """Windows of a stream, one after the other; the last may be shorter.

    >>> found = windows(10, 4)
    >>> found.starts.tolist(), found.lengths.tolist()
    ([0, 4, 8], [4, 4, 2])
    """
    return _pieces(np.zeros(1, np.int64), np.full(1, num_tokens), length)


def lines(tokens: TokenFile, length: int, line_ends: Collection[int]) -> Sequences:
    """Lines of a stream, each with the token that ends it; long ones are cut into pieces of ``length``.

    What holds nothing but an end is left out.

    Args:
        tokens: the stream.
        length: tokens of a sequence at most.
        line_ends: ids of the tokens that end a line.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "train.bin")
    ...     np.array([5, 6, 1, 1, 7, 8, 9, 1, 4], dtype=np.uint16).tofile(path)
    ...     found = lines(TokenFile(path, "uint16", num_tokens=9, num_bytes=9), 3, [1])
    >>> found.starts.tolist(), found.lengths.tolist()
    ([0, 4, 8], [3, 3, 1])
    """
    ids, places = np.array(sorted(line_ends)), [np.zeros(0, np.int64)]
    for first in range(0, tokens.num_tokens, _AT_ONCE):
        offset = first * np.dtype(tokens.dtype).itemsize
        part = np.fromfile(tokens.path, tokens.dtype, count=_AT_ONCE, offset=offset)
        places.append(first + np.flatnonzero(np.isin(part, ids)))
    ends = np.concatenate(places)
    stops = np.append(ends + 1, tokens.num_tokens)
    found = _pieces(np.append(0, ends + 1), stops, length)
    bare = (found.lengths == 1) & np.isin(found.starts, ends, assume_unique=True)
    return Sequences(found.starts[~bare], found.lengths[~bare])


def line_ends(tokenizer: Tokenizer) -> frozenset[int]:
    r"""Ids of the tokens that end a line: those whose text holds a newline.

    >>> from rnn_blocks.recipes.data.tokenizer import char_tokenizer, word_tokenizer
    >>> sorted(line_ends(word_tokenizer(["<unk>", "<eos>", "sea"]))), sorted(line_ends(char_tokenizer(["a\nb"])))
    ([1], [1])
    """
    texts = tokenizer.decode_batch([[id_] for id_ in range(tokenizer.get_vocab_size())], skip_special_tokens=False)
    return frozenset(id_ for id_, text in enumerate(texts) if "\n" in text)


def _pieces(starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], length: int) -> Sequences:
    """Ranges of places, cut into pieces of ``length``; empty ones are left out."""
    counts = -(-(stops - starts) // length)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a piece in its range
    begins = np.repeat(starts, counts) + number * length
    return Sequences(begins, np.minimum(length, np.repeat(stops, counts) - begins).astype(np.int32))
