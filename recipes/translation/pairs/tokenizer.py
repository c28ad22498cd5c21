"""Tokenizers of one line of a translation: byte-level BPE and unigram, words, characters.

The first four ids are the same in all of them: ``<pad>`` 0, ``<bos>`` 1, ``<eos>`` 2, ``<unk>`` 3. No text is ever
encoded as one of the first three, not even text that spells it.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ParallelTokenizerKind = Literal["bpe", "unigram", "word", "char"]

PAD, BOS, EOS, UNK = range(4)
SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]
NUM_BYTES = 256

_ONE_SPACE = normalizers.Replace(Regex(r"\s+"), " ")
_PRINTED = normalizers.Replace(Regex(r"[\s\p{Cc}]+"), " ")  # without control characters
# A word with the space before it, so that nothing is lost; punctuation and digits stand apart. Marks are part of their
# word: vowels of Bengali, Hindi or Thai are marks.
_WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"


def bpe_tokenizer(lines: Iterable[str], vocab_size: int, *, lowercase: bool = False) -> Tokenizer:
    """Byte-pair encoding on bytes, within words, punctuation and digits apart.

    Every line comes back exactly but for runs of whitespace, which become one space; no character is unknown.

    Args:
        lines: the training lines.
        vocab_size: types at most: the 4 special ones, the 256 bytes and what is merged from them.
        lowercase: whether all text is lowercased first.

    Source: Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019.

    >>> tokenizer = bpe_tokenizer(["a man, sitting.", "a man sits."] * 9, vocab_size=280)
    >>> decode(tokenizer, tokenizer.encode("a man,  sitting “here”.").ids)
    'a man, sitting “here”.'
    """
    tokenizer = _on_bytes(models.BPE(), lowercase)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(lines, trainer)
    return _as_plain_types(tokenizer)


def unigram_tokenizer(lines: Iterable[str], vocab_size: int, *, lowercase: bool = False) -> Tokenizer:
    """A unigram language model over pieces of words, on bytes; otherwise as ``bpe_tokenizer``.

    Source: Kudo 2018, arXiv:1804.10959.

    >>> tokenizer = unigram_tokenizer(["a man, sitting.", "a man sits."] * 9, vocab_size=280)
    >>> decode(tokenizer, tokenizer.encode("a man, sitting “here”.").ids)
    'a man, sitting “here”.'
    """
    tokenizer = _on_bytes(models.Unigram(), lowercase)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=SPECIALS,
        unk_token=SPECIALS[UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(lines, trainer)
    return _as_plain_types(tokenizer)


def word_tokenizer(lines: Iterable[str], vocab_size: int | None = None, *, lowercase: bool = False) -> Tokenizer:
    """Whole words, punctuation and digits apart; a word outside the vocabulary is ``<unk>``.

    Args:
        lines: the training lines.
        vocab_size: types at most, the most frequent words; None for all.
        lowercase: whether all text is lowercased first.

    >>> tokenizer = word_tokenizer(["a man, sitting."])
    >>> decode(tokenizer, tokenizer.encode("a man, standing.").ids)
    'a man,<unk>.'
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=SPECIALS[UNK]))
    tokenizer.normalizer = _normalizer(lowercase, prefix=" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    tokenizer.decoder = decoders.Fuse()
    counts: Counter[str] = Counter()
    for line in lines:
        normal = tokenizer.normalizer.normalize_str(line)
        counts.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *words][:vocab_size])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=SPECIALS[UNK])
    return tokenizer


def char_tokenizer(lines: Iterable[str], *, lowercase: bool = False) -> Tokenizer:
    """One token for each character (Unicode code point) of the training lines, ``<unk>`` for the others.

    >>> tokenizer = char_tokenizer(["hello"])
    >>> tokenizer.encode("hole?").tokens
    ['h', 'o', 'l', 'e', '<unk>']
    """
    normalizer = _normalizer(lowercase)
    characters: set[str] = set()
    for line in lines:
        characters.update(normalizer.normalize_str(line))
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *sorted(characters)])}
    # BPE without merges splits into characters faster than a pre-tokenizer by regular expression does.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIALS[UNK]))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def normalise(tokenizer: Tokenizer, line: str) -> str:
    """A line as the tokenizer gives it back: whitespace runs as one space, none at the ends, lowercased if it does so.

    >>> normalise(char_tokenizer(["abc"], lowercase=True), " A  b ")
    'a b'
    """
    return str(tokenizer.normalizer.normalize_str(line)).strip(" ")


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of token ids up to the first ``<eos>``; padding and ``<bos>`` are left out, ``<unk>`` stays to be seen.

    It is one line that a terminal shows and a corpus may hold, whatever bytes a model writes: runs of whitespace and
    control characters are one space.

    >>> decode(char_tokenizer(["abc"]), [1, 4, 5, 3, 2, 6])
    'ab<unk>'
    """
    text: list[int] = []
    for token in ids:
        if token == EOS:
            break
        if token not in (PAD, BOS):
            text.append(token)
    return str(_PRINTED.normalize_str(tokenizer.decode(text, skip_special_tokens=False))).strip(" ")


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""A token as a label: a word's beginning marked by ``▁``, bytes that are no whole character as ``�``.

    What no font or terminal shows, such as control characters, is told as in a string of Python.

    >>> token_text(word_tokenizer(["two words"]), 4)
    '▁two'
    >>> print(token_text(char_tokenizer(["\x1b"]), 4))
    \x1b
    """
    if token < len(SPECIALS):
        return SPECIALS[token]
    text = str(tokenizer.decode([token], skip_special_tokens=False)).replace(" ", "▁")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _on_bytes(model: models.Model, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(lowercase, prefix=" ")  # a line's first word has the types of the others
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _normalizer(lowercase: bool, prefix: str = "") -> normalizers.Normalizer:
    steps = [_ONE_SPACE, normalizers.Strip()]
    steps += [normalizers.Lowercase()] if lowercase else []
    steps += [normalizers.Prepend(prefix)] if prefix else []
    return normalizers.Sequence(steps)


def _as_plain_types(tokenizer: Tokenizer) -> Tokenizer:
    """Without the special tokens' rule that text which spells one is encoded as it."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
