"""The data of a cloze model: any text, tokenized once and read as sequences with blanks."""

from typing import Any

import numpy as np
from tokenizers import Tokenizer
from typing_extensions import Unpack

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.cloze.batches import BlankedText, EvaluationBlanks, TrainingBlanks
from rnn_blocks.recipes.cloze.sequences import UNITS, Sequences, Unit, line_ends, lines, windows
from rnn_blocks.recipes.data.corpora.corpus import Split
from rnn_blocks.recipes.data.corpus_module import CorpusOptions, TextCorpusModule
from rnn_blocks.recipes.data.plan import Budget
from rnn_blocks.recipes.data.shares import batches_of_an_epoch, place_among_ranks
from rnn_blocks.recipes.data.store import PreparedText
from rnn_blocks.signatures import with_options_of


@with_options_of(TextCorpusModule)
class ClozeDataModule(TextCorpusModule):
    r"""A corpus of text as sequences with blanks for a cloze model.

    The first run tokenizes the corpus into the cache folder, which it shares with the language model; later runs find
    it there by its content and settings. Blanks are drawn anew in each epoch of the training, and are the same in every
    validation and test.

    Args:
        vocab_size: Types at most, without the blank; by default 4096 for ``bpe`` and every word for ``word``.
        unit: What a sequence is: a ``line``, whose end is never blanked out, or a ``window`` of ``length`` tokens of
            the stream.
        length: Tokens of a sequence at most; longer lines are cut.
        mask_rate: The part of the tokens that is blanked out; at least one of a sequence.
        batch_tokens: Padded positions of a training batch at most, on each device.
        max_sentences: Sequences of a batch at most; None for no limit.
        eval_batch_tokens: As ``batch_tokens``, for validation and test; by default the same.
        seed: Of the order of the training sequences, and of the blanks.

    Raises:
        InputError: the arguments do not go together. ``prepare`` raises it for all that is wrong with the text.

    >>> data = ClozeDataModule("rhymes", tokenizer="word", mask_rate=0.3, batch_tokens=100)
    >>> batch = next(iter(data.train_dataloader()))
    >>> data.vocabulary_size, data.mask_id, batch.inputs.shape
    (528, 527, torch.Size([10, 5]))
    """

    def __init__(
        self,
        source: str = "stdlib",
        *,
        unit: Unit = "line",
        length: int = 64,
        mask_rate: float = 0.15,
        batch_tokens: int = 2048,
        max_sentences: int | None = None,
        eval_batch_tokens: int | None = None,
        seed: int = 0,
        **corpus: Unpack[CorpusOptions],
    ) -> None:
        super().__init__(source, **corpus)
        if unit not in UNITS:
            raise InputError(f"unit {unit!r}: choose one of {', '.join(UNITS)}")
        if not 0 < mask_rate < 1:
            raise InputError(f"mask_rate {mask_rate:g}: give a part of the tokens, above 0 and below 1")
        if length < 2:
            raise InputError(f"length {length}: give 2 or more, a blank and something beside it")
        if seed < 0:
            raise InputError(f"seed {seed}: give 0 or more")
        limits = {
            "batch_tokens": batch_tokens,
            "max_sentences": max_sentences,
            "eval_batch_tokens": eval_batch_tokens,
        }
        for name, size in limits.items():
            least = 1 if name == "max_sentences" else length
            if size is not None and size < least:
                raise InputError(f"{name} {size}: give {least} or more, so that a sequence fits")
        self._unit: Unit = unit
        self._length = length
        self._mask_rate = mask_rate
        self._budget = Budget(batch_tokens, max_sentences)
        self._eval_budget = Budget(eval_batch_tokens or batch_tokens, max_sentences)
        self._seed = seed
        self._sequences: dict[Split, Sequences] = {}
        self._line_ends: frozenset[int] = frozenset()

    def _check(self, prepared: PreparedText) -> None:
        if self._unit == "line":
            self._line_ends = line_ends(Tokenizer.from_str(prepared.tokenizer_json))
        for split, tokens in prepared.splits.items():
            if self._unit == "line":
                found = lines(tokens, self._length, self._line_ends)
            else:
                found = windows(tokens.num_tokens, self._length)
            if not len(found):
                raise InputError(
                    f"the {split} split of {self._corpus.name} has {tokens.num_tokens} tokens, and none of them can be"
                    " blanked out: give it more text"
                )
            self._sequences[split] = found

    @property
    def mask_id(self) -> int:
        """The id that stands for a blank, one more than the tokenizer's greatest."""
        return super().vocabulary_size

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, the blank's included."""
        return super().vocabulary_size + 1

    @property
    def unit(self) -> Unit:
        """What a sequence is."""
        return self._unit

    def train_dataloader(self) -> TrainingBlanks:
        """The sequences of the train split that are this process's."""
        rank, world_size = place_among_ranks(self.trainer)
        trainer = self.trainer
        loader = TrainingBlanks(
            self._blanked("train"),
            self._budget,
            rank=rank,
            world_size=world_size,
            current_epoch=None if trainer is None else lambda: trainer.current_epoch,
        )
        # A checkpoint of the moment where Lightning ends an epoch is one of an epoch's end.
        loader.end_pass_after(batches_of_an_epoch(len(loader), trainer))
        return loader

    def val_dataloader(self) -> EvaluationBlanks:
        """The sequences of the validation split that are this process's."""
        return self._evaluation("val")

    def test_dataloader(self) -> EvaluationBlanks:
        """The sequences of the test split that are this process's."""
        return self._evaluation("test")

    def state_dict(self) -> dict[str, Any]:
        """The tokenizer, what a sequence is, and what tells this corpus from others, for the checkpoint."""
        return {**super().state_dict(), "unit": self._unit}

    def _evaluation(self, split: Split) -> EvaluationBlanks:
        rank, world_size = place_among_ranks(self.trainer)
        return EvaluationBlanks(self._blanked(split), self._eval_budget, rank=rank, world_size=world_size)

    def _blanked(self, split: Split) -> BlankedText:
        tokens = self.splits[split]
        never = np.array(sorted(self._line_ends), dtype=np.int64)
        return BlankedText(tokens, self._sequences[split], self.mask_id, never, self._mask_rate, self._seed)
