"""The text side of a translation: lines to token ids and back."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.translation.pairs.tokenizer import EOS, decode, token_text


class TextCodec:
    """The tokenizers of both sides.

    Args:
        source_json: the source side's tokenizer, as ``tokenizers.Tokenizer.from_str`` reads it.
        target_json: the target side's; None where both share one.

    >>> from rnn_blocks.recipes.translation.pairs.tokenizer import char_tokenizer
    >>> codec = TextCodec(char_tokenizer(["abc"]).to_str())
    >>> codec.encode_source(["cab", ""])
    [[6, 4, 5, 2], [2]]
    >>> codec.detokenize([[1, 6, 4, 5, 2, 0]])
    ['cab']
    """

    def __init__(self, source_json: str, target_json: str | None = None) -> None:
        self._json = source_json, target_json
        self._source = _tokenizer(source_json)
        self._target = self._source if target_json is None else _tokenizer(target_json)

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> "TextCodec":
        """Rebuilds it from ``state``, or from any mapping that holds that, without a corpus.

        Args:
            state: what a checkpoint holds under ``ParallelDataModule``; None where it holds nothing there.

        Raises:
            InputError: there is no tokenizer in it.
        """
        source = None if state is None else state.get("source_tokenizer")
        if not source:
            raise InputError("the checkpoint holds no tokenizer: it is not one of the translation recipe")
        assert state is not None
        return cls(source, state.get("target_tokenizer"))

    def state(self) -> dict[str, str | None]:
        """What ``from_state`` needs."""
        return {"source_tokenizer": self._json[0], "target_tokenizer": self._json[1]}

    @property
    def joint(self) -> bool:
        """Whether one vocabulary serves both sides."""
        return self._json[1] is None

    @property
    def source_tokenizer(self) -> Tokenizer:
        """The source side's tokenizer."""
        return self._source

    @property
    def target_tokenizer(self) -> Tokenizer:
        """The target side's tokenizer; the same where they share one."""
        return self._target

    @property
    def source_vocab_size(self) -> int:
        """One more than the greatest token id of the source side."""
        return int(self._source.get_vocab_size())

    @property
    def target_vocab_size(self) -> int:
        """One more than the greatest token id of the target side."""
        return int(self._target.get_vocab_size())

    def encode_source(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of source lines, each ended by ``<eos>``, which is all that an empty line has."""
        encoded = self._source.encode_batch_fast(list(lines), add_special_tokens=False)
        return [[*encoding.ids, EOS] for encoding in encoded]

    def detokenize(self, ids: Iterable[Iterable[int]]) -> list[str]:
        """The text of translations, each up to its first ``<eos>``."""
        return [decode(self._target, sentence) for sentence in ids]

    def source_tokens(self, ids: Iterable[int]) -> list[str]:
        """Source tokens as labels, a word's beginning marked by ``▁``."""
        return [token_text(self._source, token) for token in ids]

    def target_tokens(self, ids: Iterable[int]) -> list[str]:
        """Target tokens as labels, a word's beginning marked by ``▁``."""
        return [token_text(self._target, token) for token in ids]


@lru_cache(maxsize=4)
def _tokenizer(content: str) -> Tokenizer:
    return Tokenizer.from_str(content)
