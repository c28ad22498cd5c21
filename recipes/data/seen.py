"""What a training text held, so that what it did not hold can be told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

_SHOWN = 20
_SPACES = ("Ġ", "▁")  # how tokenizers of bytes and of pieces write a space


@dataclass(frozen=True)
class Seen:
    """The characters of a training text, and the types of its vocabulary that it was never cut into.

    Attributes:
        characters: all of them, as the tokenizer's normalizer leaves them.
        unseen: ids of the types without any training.

    >>> from rnn_blocks.recipes.data.tokenizer import char_tokenizer
    >>> Seen(frozenset("cab"), frozenset()).missing(char_tokenizer(["abc"]), "a bad cad")
    [' ', 'd']
    """

    characters: frozenset[str]
    unseen: frozenset[int]

    @classmethod
    def from_state(cls, state: dict[str, Any] | None) -> "Seen | None":
        """From what ``state`` gave; None of a checkpoint that does not hold it."""
        return None if state is None else cls(frozenset(state["characters"]), frozenset(state["unseen"]))

    def state(self) -> dict[str, Any]:
        """What fits into JSON and into a checkpoint."""
        return {"characters": "".join(sorted(self.characters)), "unseen": sorted(self.unseen)}

    def missing(self, tokenizer: Tokenizer, text: str) -> list[str]:
        """What of a text was never trained on, in order: characters, and pieces of known characters.

        Args:
            tokenizer: what cuts the text.
            text: any.
        """
        normal = normal_form(tokenizer, text)
        found = dict.fromkeys(character for character in normal if character not in self.characters)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        for token, (start, stop) in zip(encoding.tokens, encoding.offsets, strict=True):
            piece = text[start:stop].strip(" ")
            if piece and not any(c in found for c in piece) and not self._knows(tokenizer, token):
                found[piece] = None
        return list(found)

    def _knows(self, tokenizer: Tokenizer, token: str) -> bool:
        """Whether a token was trained on, or the same piece behind a space or without one."""
        piece = token.lstrip("".join(_SPACES))
        ids = {tokenizer.token_to_id(same) for same in (token, piece, *(space + piece for space in _SPACES))}
        return token != "<unk>" and bool(ids - self.unseen - {None})


@dataclass
class Seeing:
    """Gathers what a training text holds."""

    characters: set[str] = field(default_factory=set)
    ids: set[int] = field(default_factory=set)

    def add(self, text: Iterable[str], ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> None:
        """Add some text, as the normalizer leaves it, and its token ids."""
        for part in text:
            self.characters.update(part)
        self.ids.update(np.unique(np.asarray(ids, dtype=np.int64)).tolist())

    def seen(self, vocab_size: int) -> Seen:
        """All of it."""
        return Seen(frozenset(self.characters), frozenset(range(vocab_size)) - self.ids)


def normal_form(tokenizer: Tokenizer, text: str) -> str:
    """Text as the tokenizer's normalizer leaves it."""
    normalizer = tokenizer.normalizer
    return text if normalizer is None else str(normalizer.normalize_str(text))


def missing_told(missing: Sequence[str]) -> str:
    r"""What is said of it.

    >>> missing_told(["1", "\u2028"])
    "never seen in training: '1', '\\u2028'"
    """
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return f"never seen in training: {', '.join(map(repr, missing[:_SHOWN]))}{more}"
