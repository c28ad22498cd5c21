"""Which tokenizer a run uses, checked before any text is read."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tokenizers import Tokenizer

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.tokenizer import (
    TokenizerKind,
    bpe_tokenizer,
    char_tokenizer,
    count_vocabulary,
    read_vocabulary,
    word_tokenizer,
)

DEFAULT_BPE_SIZE = 4096


@dataclass(frozen=True)
class TokenizerSettings:
    """How a tokenizer is made.

    Attributes:
        kind: ``bpe``, ``word`` or ``char``.
        vocab_size: types at most; None is 4096 for ``bpe`` and no limit for ``word``.
        min_count: how often a word must occur in the train split to be counted in.
        vocabulary: a file of words, one a line, in place of counting; for ``word``.

    Raises:
        InputError: the settings do not go together.

    >>> TokenizerSettings("bpe", vocab_size=100)
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: vocab_size 100: byte-level BPE needs at least 256, one type for each byte
    """

    kind: TokenizerKind = "bpe"
    vocab_size: int | None = None
    min_count: int = 1
    vocabulary: Path | None = None

    def __post_init__(self) -> None:
        kinds = get_args(TokenizerKind)
        if self.kind not in kinds:
            raise InputError(f"tokenizer {self.kind!r}: choose one of {', '.join(kinds)}")
        if self.kind == "bpe" and self.vocab_size is not None and self.vocab_size < 256:
            raise InputError(f"vocab_size {self.vocab_size}: byte-level BPE needs at least 256, one type for each byte")
        if self.kind == "word" and self.vocab_size is not None and self.vocab_size < 3:
            raise InputError(f"vocab_size {self.vocab_size}: give at least 3, for <unk>, <eos> and a word")
        if self.kind == "char" and self.vocab_size is not None:
            raise InputError(
                f"vocab_size {self.vocab_size}: tokenizer char takes every character; leave vocab_size out"
            )
        if self.kind != "word" and self.vocabulary is not None:
            raise InputError(f"vocabulary {self.vocabulary}: only tokenizer word reads one, and this is {self.kind}")
        if self.vocabulary is not None and self.vocab_size is not None:
            raise InputError(f"vocab_size {self.vocab_size}: vocabulary {self.vocabulary} has its own size; give one")
        if self.min_count < 1:
            raise InputError(f"min_count {self.min_count}: give 1 or more")

    def key(self) -> list[str | int | None]:
        """What tells these settings from others, with the content of the vocabulary file.

        Raises:
            InputError: the vocabulary file cannot be used.
        """
        words = read_vocabulary(self.vocabulary) if self.vocabulary else []
        digest = hashlib.sha256("\n".join(words).encode()).hexdigest() if words else None
        size = DEFAULT_BPE_SIZE if self.kind == "bpe" and self.vocab_size is None else self.vocab_size
        return [self.kind, size, self.min_count, digest]

    def build(self, train_text: Callable[[], Iterable[str]]) -> Tokenizer:
        """Makes the tokenizer.

        Args:
            train_text: gives the blocks of the train split; not called where a vocabulary file is given.
        """
        if self.kind == "bpe":
            return bpe_tokenizer(train_text(), self.vocab_size or DEFAULT_BPE_SIZE)
        if self.kind == "char":
            return char_tokenizer(train_text())
        if self.vocabulary:
            return word_tokenizer(read_vocabulary(self.vocabulary))
        return word_tokenizer(count_vocabulary(train_text(), self.vocab_size, self.min_count))
