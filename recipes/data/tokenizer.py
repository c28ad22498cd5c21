"""Tokenizers of Hugging Face ``tokenizers``: byte-level BPE, words, characters."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import utf8_length
from rnn_blocks.recipes.data.corpora.files import read_text
from rnn_blocks.recipes.data.corpora.plain import words

TokenizerKind = Literal["bpe", "word", "char"]

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"

# What a byte-level BPE learns hardly changes beyond this, while the memory and the time to learn it grow.
BPE_TRAINING_BYTES = 16 << 20
_DISTINCT_WORDS = 1 << 20


def bpe_tokenizer(text: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level byte-pair encoding as GPT-2's, without an added space; every text comes back exactly.

    Args:
        text: blocks of the train split. Only the first 16 MiB are used, so that memory stays bounded.
        vocab_size: types at most: the 256 bytes and what is merged from them; text with few words gives fewer.

    Raises:
        InputError: ``vocab_size`` is below 256.

    Source: Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019.

    >>> tokenizer = bpe_tokenizer(["low lower lowest " * 9], vocab_size=260)
    >>> tokenizer.decode(tokenizer.encode("löwer").ids)
    'löwer'
    """
    if vocab_size < 256:
        raise InputError(f"vocab_size {vocab_size}: byte-level BPE needs at least 256, one type for each byte")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_first_bytes(text, BPE_TRAINING_BYTES), trainer)
    return tokenizer


def word_tokenizer(vocabulary: Iterable[str]) -> Tokenizer:
    r"""Words between whitespace; the end of a line is the word ``<eos>``, an unknown word is ``<unk>``.

    Args:
        vocabulary: the words in the order of their ids, with ``<unk>`` and ``<eos>`` among them.

    >>> tokenizer = word_tokenizer(["<unk>", "<eos>", "the", "cat"])
    >>> tokenizer.encode("the cat\nthe dog\n").tokens
    ['the', 'cat', '<eos>', 'the', '<unk>', '<eos>']
    """
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace("\n", f" {END_OF_LINE} ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence(
        [
            # Puts a space before each word but the first; no word starts with a newline, so that none is taken apart.
            decoders.WordPiece(prefix="\n", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(rf" ?(?<!\S){END_OF_LINE}(?!\S) ?"), "\n"),
        ]
    )
    return tokenizer


def char_tokenizer(text: Iterable[str]) -> Tokenizer:
    """One token for each character (Unicode code point) that the text holds, and ``<unk>`` for the others.

    Args:
        text: blocks of the train split.

    >>> char_tokenizer(["hello"]).encode("hole?").tokens
    ['h', 'o', 'l', 'e', '<unk>']
    """
    characters: set[str] = set()
    for block in text:
        characters.update(block)
    ids = {token: i for i, token in enumerate([UNKNOWN, *sorted(characters)])}
    # BPE without merges splits into characters faster than a pre-tokenizer by regular expression does.
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def count_vocabulary(text: Iterable[str], vocab_size: int | None = None, min_count: int = 1) -> list[str]:
    """The words of a text, most frequent first, after ``<unk>`` and ``<eos>``.

    With more than a million distinct words the rarest are forgotten on the way (lossy counting, Manku and Motwani
    2002), so that memory stays bounded.

    Args:
        text: blocks of the train split.
        vocab_size: types at most, ``<unk>`` and ``<eos>`` included; None for all.
        min_count: how often a word must occur.

    >>> count_vocabulary(["a rose is a rose is a rose"], vocab_size=4)
    ['<unk>', '<eos>', 'a', 'rose']
    """
    counts: Counter[str] = Counter()
    forgotten = 0
    for block in text:
        counts.update(words(block))
        while len(counts) > _DISTINCT_WORDS:
            forgotten += 1
            counts = Counter({word: count for word, count in counts.items() if count > forgotten})
    for special in (UNKNOWN, END_OF_LINE):
        counts.pop(special, None)
    frequent = (word for word, count in counts.items() if count >= min_count)
    return [UNKNOWN, END_OF_LINE, *sorted(frequent, key=lambda word: (-counts[word], word))][:vocab_size]


def read_vocabulary(path: Path) -> list[str]:
    """Reads a vocabulary file: one word a line, the first line is id 0.

    Raises:
        InputError: the file cannot be read, lacks ``<unk>`` or ``<eos>``, or a line holds no word, several, or one that
            was there before.
    """
    lines = "".join(read_text(path)).rstrip("\n").split("\n")
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        found = words(line)
        if len(found) != 1:
            raise InputError(f"{path}: line {number} is {line!r}; a vocabulary has one word a line")
        (word,) = found
        if word in first_line:
            raise InputError(f"{path}: line {number}: {word!r} is already in line {first_line[word]}")
        first_line[word] = number
    for special, meaning in ((UNKNOWN, "every word outside the vocabulary"), (END_OF_LINE, "the end of a line")):
        if special not in first_line:
            raise InputError(f"{path}: the vocabulary has no {special}, which stands for {meaning}; add it as a line")
    return list(first_line)


def _first_bytes(text: Iterable[str], limit: int) -> Iterator[str]:
    for block in text:
        yield block
        limit -= utf8_length(block)
        if limit <= 0:
            return
