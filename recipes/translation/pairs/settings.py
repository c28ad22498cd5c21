"""Which tokenizers a translation uses, checked before any text is read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import get_args

from tokenizers import Tokenizer

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.translation.pairs.tokenizer import (
    NUM_BYTES,
    SPECIALS,
    ParallelTokenizerKind,
    bpe_tokenizer,
    char_tokenizer,
    unigram_tokenizer,
    word_tokenizer,
)

DEFAULT_SUBWORDS = 8000


@dataclass(frozen=True)
class ParallelTokenizerSettings:
    """How the tokenizers of both sides are made.

    Attributes:
        kind: ``bpe``, ``unigram``, ``word`` or ``char``.
        joint: whether one vocabulary serves both sides.
        vocab_size: types at most, of each vocabulary; None is 8000 for ``bpe`` and ``unigram`` and no limit for
            ``word``.
        lowercase: whether all text is lowercased.

    Raises:
        InputError: the settings do not go together.

    >>> ParallelTokenizerSettings("bpe", vocab_size=100)
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: vocab_size 100: tokenizer bpe needs at least 260: 4 special types, the bytes
    """

    kind: ParallelTokenizerKind = "bpe"
    joint: bool = True
    vocab_size: int | None = None
    lowercase: bool = False

    def __post_init__(self) -> None:
        kinds, size, least = get_args(ParallelTokenizerKind), self.vocab_size, len(SPECIALS) + NUM_BYTES
        if self.kind not in kinds:
            raise InputError(f"tokenizer {self.kind!r}: choose one of {', '.join(kinds)}")
        if size is None:
            return
        if self.kind in ("bpe", "unigram") and size < least:
            raise InputError(
                f"vocab_size {size}: tokenizer {self.kind} needs at least {least}: {len(SPECIALS)} special types,"
                " the bytes"
            )
        if self.kind == "word" and size <= len(SPECIALS):
            raise InputError(f"vocab_size {size}: give at least 5, for {', '.join(SPECIALS)} and a word")
        if self.kind == "char":
            raise InputError(f"vocab_size {size}: tokenizer char takes every character; leave vocab_size out")

    def key(self) -> list[str | int | bool | None]:
        """What tells these settings from others."""
        return [self.kind, self.joint, self._size, self.lowercase]

    def build(self, lines: Callable[[], Iterable[str]]) -> Tokenizer:
        """Makes one tokenizer.

        Args:
            lines: gives the training lines of one side, or of both where they share it.
        """
        if self.kind == "char":
            return char_tokenizer(lines(), lowercase=self.lowercase)
        if self.kind == "word":
            return word_tokenizer(lines(), self._size, lowercase=self.lowercase)
        learn = bpe_tokenizer if self.kind == "bpe" else unigram_tokenizer
        return learn(lines(), self._size or DEFAULT_SUBWORDS, lowercase=self.lowercase)

    @property
    def _size(self) -> int | None:
        return DEFAULT_SUBWORDS if self.kind in ("bpe", "unigram") and self.vocab_size is None else self.vocab_size
