"""BPE-dropout: training text cut into other pieces each time it is read."""

import json
import math
import random
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rnn_blocks.recipes import InputError

_WORDS_REMEMBERED = 1 << 15


class BpeDropout:
    """Byte-pair encoding in which each merge is left out with some probability, at each step anew.

    ``tokenizers`` has it as well, with random numbers that cannot be seeded; a resumed training would read other text.

    Args:
        tokenizer: a tokenizer of ``bpe_tokenizer``.
        rate: the probability of leaving a possible merge out; 0 is plain BPE, 1 gives single bytes.

    Raises:
        InputError: the rate is no probability.

    Source: Provilkov et al. 2020, arXiv:1910.13267, Algorithm 1.

    >>> from rnn_blocks.recipes.translation.pairs.tokenizer import bpe_tokenizer, decode
    >>> tokenizer = bpe_tokenizer(["low lower lowest"] * 9, vocab_size=300)
    >>> plain = tokenizer.encode("lower lowest").ids
    >>> BpeDropout(tokenizer, 0.0)(["lower lowest"], seed="a")[0].tolist() == plain
    True
    >>> cut = BpeDropout(tokenizer, 0.5)(["lower lowest"], seed="a")[0].tolist()
    >>> len(cut) > len(plain), decode(tokenizer, cut)
    (True, 'lower lowest')
    """

    def __init__(self, tokenizer: Tokenizer, rate: float) -> None:
        check_rate(rate)
        model = json.loads(tokenizer.to_str())["model"]
        self._ids: dict[str, int] = model["vocab"]
        self._merges: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, (left, right) in enumerate(model["merges"]):
            self._merges[self._ids[left], self._ids[right]] = rank, self._ids[left + right]
        self._tokenizer = tokenizer
        self._rate = rate
        self._path = lru_cache(_WORDS_REMEMBERED)(self._plain_path)

    def __call__(self, lines: list[str], seed: str) -> list[npt.NDArray[np.int32]]:
        """Token ids of each line; the same for the same seed."""
        draw = random.Random(seed)
        rows = []
        for line in lines:
            normal = self._tokenizer.normalizer.normalize_str(line)
            words = self._tokenizer.pre_tokenizer.pre_tokenize_str(normal)
            ids = [token for word, _ in words for token in self._word(word, draw)]
            rows.append(np.array(ids, dtype=np.int32))
        return rows

    def _word(self, word: str, draw: random.Random) -> tuple[int, ...]:
        path = self._path(word)
        kept = self._merges_before_a_drop(draw)
        if kept >= len(path) - 1:
            return path[-1]
        # The first merge that is left out is known: from there on each step is drawn.
        tokens = list(path[kept])
        place = self._best_merge(tokens, draw, without=self._best_merge(tokens))
        while place is not None:
            self._merge(tokens, place)
            place = self._best_merge(tokens, draw)
        return tuple(tokens)

    def _merges_before_a_drop(self, draw: random.Random) -> int:
        """How many best merges in a row are kept: geometric, so that most words need one random number."""
        if self._rate in (0.0, 1.0):
            return 0 if self._rate else 1 << 30
        return int(math.log(1.0 - draw.random()) / math.log(1.0 - self._rate))

    def _best_merge(
        self, tokens: list[int], draw: random.Random | None = None, without: int | None = None
    ) -> int | None:
        """The place of the first pair that was learnt earliest, among those not left out."""
        best, best_rank = None, len(self._merges)
        for place in range(len(tokens) - 1):
            found = self._merges.get((tokens[place], tokens[place + 1]))
            # Whether a pair is left out matters only where it would be the best: the others need no random number.
            if found is None or found[0] >= best_rank or place == without:
                continue
            if draw is None or draw.random() >= self._rate:
                best, best_rank = place, found[0]
        return best

    def _merge(self, tokens: list[int], place: int) -> None:
        tokens[place : place + 2] = [self._merges[tokens[place], tokens[place + 1]][1]]

    def _plain_path(self, word: str) -> list[tuple[int, ...]]:
        """The states of a word on the way to its plain tokens."""
        tokens = [self._ids[character] for character in word]
        path = [tuple(tokens)]
        while (place := self._best_merge(tokens)) is not None:
            self._merge(tokens, place)
            path.append(tuple(tokens))
        return path


def check_rate(rate: float) -> None:
    """Refuses what is no probability.

    Raises:
        InputError: ``rate`` is below 0 or above 1.

    >>> check_rate(1.5)
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: bpe_dropout 1.5: give a probability, from 0 to 1
    """
    if not 0.0 <= rate <= 1.0:
        raise InputError(f"bpe_dropout {rate:g}: give a probability, from 0 to 1")
