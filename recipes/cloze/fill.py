"""Text with blanks in it, and what a model puts there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers

from rnn_blocks.modules import ClozeModel
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.cloze.sequences import Unit
from rnn_blocks.recipes.data.corpora.plain import given_text, is_blank
from rnn_blocks.recipes.data.seen import Seen
from rnn_blocks.recipes.data.tokenizer import UNKNOWN
from rnn_blocks.recipes.run.load import load_model

BLANK = "___"

Candidates = list[tuple[str, float]]
"""What may belong into a blank, with probabilities, the most probable first."""


@dataclass(frozen=True)
class BlankText:
    """A text with blanks, as a model reads it.

    Attributes:
        ids: token ids, the mask's at each blank.
        spaced: of each blank whether it stands behind a space that a token brings along (byte-level BPE).
        unknown: words that the vocabulary does not have.
        unseen: what else was never seen in training: characters, and pieces of known ones.
    """

    ids: list[int]
    spaced: list[bool]
    unknown: list[str]
    unseen: list[str]


class Filler:
    """Fills in the blanks of texts.

    Args:
        model: the model.
        tokenizer: the one it was trained with.
        unit: what a sequence was in its training.
        seen: what that training saw, where it is known.

    >>> import rnn_blocks
    >>> from rnn_blocks.recipes.data.tokenizer import word_tokenizer
    >>> tokenizer = word_tokenizer(["<unk>", "<eos>", "the", "sea"])
    >>> layer = rnn_blocks.Bidirectional(rnn_blocks.GRU(4, 4))
    >>> filler = Filler(ClozeModel(layer, vocab_size=5, mask_id=4), tokenizer, "line")
    >>> filler.read("the open ___").ids, filler.read("the open ___").unknown
    ([2, 0, 4, 1], ['open'])
    >>> len(filler("the ___ the ___", top_k=2))
    2
    """

    def __init__(self, model: ClozeModel, tokenizer: Tokenizer, unit: Unit, seen: Seen | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.unit = unit
        self.seen = seen
        self._spaces = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)  # they are part of words

    @classmethod
    def load(cls, path: Path) -> "Filler":
        """From a checkpoint of the recipe.

        Raises:
            InputError: where it is not one.
        """
        model, state = load_model(path, ClozeModel, "cloze")
        return cls(model, Tokenizer.from_str(state["tokenizer"]), state["unit"], Seen.from_state(state.get("seen")))

    def read(self, text: str, blank: str = BLANK) -> BlankText:
        """The ids of a text; a model of lines reads it as a line, with its end.

        Raises:
            InputError: it is no text, there is no blank in it, or it has several lines and the model reads one.
        """
        text, blank = given_text("the text", text), given_text("--blank", blank)
        if is_blank(blank):
            raise InputError(f"--blank {blank!r}: give something that can be seen in the text")
        if blank not in text:
            raise InputError(
                f'there is no blank in {text!r}: mark it by {blank}, as in "the clouds are in the {blank}", or give'
                " another marker by --blank"
            )
        text = text.strip("\n")
        if self.unit == "line":
            if "\n" in text:
                raise InputError(f"{text!r}: this model was trained on lines (--data.unit line); give it one at a time")
            text += "\n"
        ids: list[int] = []
        spaced: list[bool] = []
        unknown: list[str] = []
        missing: dict[str, None] = {}
        pieces = text.split(blank)
        for number, piece in enumerate(pieces):
            if number:
                ids.append(self.model.mask_id)
            if number < len(pieces) - 1:
                spaced.append(self._spaces and piece.endswith(" "))
                piece = piece[:-1] if spaced[-1] else piece
            encoding = self.tokenizer.encode(piece, add_special_tokens=False)
            ids += encoding.ids
            spans = [piece[slice(*span)] for span in encoding.offsets]
            tokens = zip(encoding.tokens, spans, strict=True)
            unknown += [word for token, word in tokens if token == UNKNOWN != word]
            missing.update(dict.fromkeys(self.seen.missing(self.tokenizer, piece) if self.seen is not None else ()))
        unseen = [part for part in missing if not any(part in word for word in unknown)]
        return BlankText(ids, spaced, unknown, unseen)

    def __call__(self, text: str, *, blank: str = BLANK, top_k: int = 5) -> list[Candidates]:
        """The best candidates of each blank, in their order; each is predicted with the others blank."""
        return self.fill(self.read(text, blank), top_k)

    def fill(self, text: BlankText, top_k: int = 5) -> list[Candidates]:
        """The same of a text that was read."""
        filled = self.model.fill(torch.tensor([text.ids], device=self.model.device), top_k=top_k)
        return [
            [(self._shown(token, spaced), p) for token, p in zip(tokens, probabilities, strict=True)]
            for tokens, probabilities, spaced in zip(
                filled.tokens.tolist(), filled.probabilities.tolist(), text.spaced, strict=True
            )
        ]

    def _shown(self, token: int, spaced: bool) -> str:
        """A token as it stands in the text, without the space that the blank stands behind; in quotes where it differs.

        Quotes are for what would join the word before the blank, begin another, or not be seen.
        """
        text = str(self.tokenizer.decode([token], skip_special_tokens=False))
        begins = text.startswith(" ")
        shown = text[1:] if spaced and begins else text
        plain = shown and shown == shown.strip() and shown.isprintable()
        return shown if plain and (spaced == begins or not self._spaces) else repr(text)


def table(candidates: Sequence[Candidates]) -> str:
    """Candidates with their probabilities, a block for each blank.

    >>> print(table([[("little", 0.98), ("bright", 0.011)]]))
      little   98.00 %
      bright    1.10 %
    """
    width = max(len(text) for blank in candidates for text, _ in blank)
    blocks = []
    for number, blank in enumerate(candidates, start=1):
        head = [f"blank {number} of {len(candidates)}"] if len(candidates) > 1 else []
        blocks.append("\n".join([*head, *(f"  {text:{width}}  {100 * p:6.2f} %" for text, p in blank)]))
    return "\n\n".join(blocks)
