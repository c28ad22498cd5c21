"""The data of a cloze model: any text, tokenized once and read as sequences with blanks."""

from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rnn_blocks.recipes.errors import InputError
from rnn_blocks.recipes.masking.batches import BlankedText, EvaluationBlanks, TrainingBlanks
from rnn_blocks.recipes.masking.sequences import UNITS, Sequences, Unit, line_ends, lines, windows
from rnn_blocks.recipes.parallel.plan import Budget
from rnn_blocks.recipes.shares import batches_of_an_epoch, place_among_ranks
from rnn_blocks.recipes.text.corpus import Split
from rnn_blocks.recipes.text.corpus_module import TextCorpusModule, as_path
from rnn_blocks.recipes.text.settings import TokenizerSettings
from rnn_blocks.recipes.text.store import PreparedText
from rnn_blocks.recipes.text.tokenizer import TokenizerKind


class ClozeDataModule(TextCorpusModule):
    r"""A corpus of text as sequences with blanks for a cloze model.

    The first run tokenizes the corpus into the cache folder, which it shares with the language model; later runs find
    it there by its content and settings. Blanks are drawn anew in each epoch of the training, and are the same in every
    validation and test.

    Args:
        source: The corpus: ``stdlib`` (the source code of the running Python's standard library), ``rhymes`` (nursery
            rhymes, all of which are also the validation and test text), the path of one plain or gzip text file in
            UTF-8 (split 90/5/5 by position), or ``hub:NAME``, a dataset of the Hugging Face Hub with train, validation
            and test splits.
        train: Path of the training text, plain or gzip; with ``val`` and ``test``, in place of ``source``.
        val: Path of the validation text.
        test: Path of the test text.
        hub_config: The Hub dataset's configuration, such as ``wikitext-2-raw-v1``.
        text_column: The Hub dataset's column of text.
        tokenizer: ``bpe`` (byte-level byte-pair encoding learnt from the train split), ``word`` (words between spaces,
            ``<eos>`` at the end of each line, ``<unk>`` for words outside the vocabulary) or ``char`` (characters).
        vocab_size: Types at most, without the blank; by default 4096 for ``bpe`` and every word for ``word``.
        min_count: How often a word must occur in the train split to be in the vocabulary (``word``).
        vocabulary: Path of a vocabulary (``word``), one word a line, ``<unk>`` and ``<eos>`` among them; else counted.
        unit: What a sequence is: a ``line``, whose end is never blanked out, or a ``window`` of ``length`` tokens of
            the stream.
        length: Tokens of a sequence at most; longer lines are cut.
        mask_rate: The part of the tokens that is blanked out; at least one of a sequence.
        batch_tokens: Padded positions of a training batch at most, on each device.
        max_sentences: Sequences of a batch at most; None for no limit.
        eval_batch_tokens: As ``batch_tokens``, for validation and test; by default the same.
        seed: Of the order of the training sequences, and of the blanks.
        cache_dir: Folder for tokenized corpora; by default ``$RNN_BLOCKS_CACHE``, else ``~/.cache/rnn-blocks``.

    Raises:
        InputError: the arguments do not go together. ``prepare`` raises it for all that is wrong with the text.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "sea.txt")
    ...     _ = path.write_text("the sea the open sea\n" * 50)
    ...     data = ClozeDataModule(str(path), tokenizer="word", mask_rate=0.3, cache_dir=folder)
    ...     batch = next(iter(data.train_dataloader()))
    ...     data.vocabulary_size, data.mask_id, batch.inputs.shape
    (6, 5, torch.Size([45, 6]))
    """

    def __init__(
        self,
        source: str = "stdlib",
        *,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        hub_config: str | None = None,
        text_column: str = "text",
        tokenizer: TokenizerKind = "bpe",
        vocab_size: int | None = None,
        min_count: int = 1,
        vocabulary: str | None = None,
        unit: Unit = "line",
        length: int = 64,
        mask_rate: float = 0.15,
        batch_tokens: int = 2048,
        max_sentences: int | None = None,
        eval_batch_tokens: int | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            source,
            [train, val, test],
            hub_config=hub_config,
            text_column=text_column,
            settings=TokenizerSettings(tokenizer, vocab_size, min_count, as_path(vocabulary)),
            cache_dir=cache_dir,
        )
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
