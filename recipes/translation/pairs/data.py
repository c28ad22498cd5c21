"""The data of a translation: pairs of lines, tokenized once and read in batches of like lengths."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from tokenizers import Tokenizer

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import FILES, HUB, NO_FILES, Split
from rnn_blocks.recipes.data.plan import Budget
from rnn_blocks.recipes.data.shares import batches_of_an_epoch, place_among_ranks
from rnn_blocks.recipes.data.store import default_cache_dir
from rnn_blocks.recipes.translation.corpora.corpus import ParallelCorpus
from rnn_blocks.recipes.translation.corpora.files import ParallelFiles
from rnn_blocks.recipes.translation.corpora.hub import HubPairs
from rnn_blocks.recipes.translation.corpora.numbers import NumberSizes, SpelledNumbers
from rnn_blocks.recipes.translation.pairs.batches import EvaluationBatches, TrainingBatches
from rnn_blocks.recipes.translation.pairs.codec import TextCodec
from rnn_blocks.recipes.translation.pairs.dropout import BpeDropout, check_rate
from rnn_blocks.recipes.translation.pairs.filtering import Kept, keep
from rnn_blocks.recipes.translation.pairs.settings import ParallelTokenizerSettings
from rnn_blocks.recipes.translation.pairs.store import PairFile, PreparedPairs, prepare_pairs, prepare_split
from rnn_blocks.recipes.translation.pairs.tokenizer import ParallelTokenizerKind

# Numbers have few words: with many types, whole compounds (German, Finnish) would become types of their own.
_TYPES_OF_NUMBERS = 330


class ParallelDataModule(LightningDataModule):
    r"""Pairs of lines in two languages as batches for a translation model.

    The first run tokenizes the corpus into the cache folder; later runs find it there by its content and settings.

    Args:
        source: The corpus where no files are given: ``numbers``, spelled out in both languages by ``num2words``, or
            ``hub:NAME``, a dataset of the Hugging Face Hub with train and validation splits.
        source_lang: The language to translate from; with files, the ending of their names.
        target_lang: The language to translate into.
        hub_config: The Hub dataset's configuration, such as ``iwslt2017-de-en``.
        translation_column: The Hub dataset's column of translations (``{"en": …, "de": …}``); not needed where it has a
            column for each language.
        train: The training text: a stem such that ``stem.en`` and ``stem.de`` (or ``stem.en.gz``, …) are line-aligned,
            or one file with two columns separated by a tab. Plain or gzip, in UTF-8; with ``val``.
        val: The validation text.
        test: The test text, if there is one.
        numbers_train: How many numbers to train on.
        numbers_val: How many numbers to validate on; none of them is trained on.
        numbers_test: How many numbers to test on; none of them is trained or validated on.
        numbers_max: The greatest number.
        tokenizer: ``bpe`` or ``unigram`` (pieces of words, on bytes), ``word`` (words and punctuation) or ``char``.
        joint: Whether one vocabulary serves both sides.
        vocab_size: Types at most, of each vocabulary; by default 8000 for ``bpe`` and ``unigram`` (330 for
            numbers) and every word for ``word``.
        lowercase: Whether all text is lowercased, references as well.
        bpe_dropout: The probability of leaving a merge out (``bpe``), so that each epoch reads the training text in
            other pieces; 0.1 is usual. Budgets and ``max_length`` count the pieces without it.
        batch_tokens: Padded positions of a training batch at most, on each device: its sentences times the tokens of
            the longest, source or target.
        max_sentences: Sentences of a batch at most; None for no limit.
        eval_batch_tokens: As ``batch_tokens``, for validation and test; by default the same.
        max_length: Tokens of a training sentence at most; longer pairs are left out, and counted.
        max_ratio: Tokens of a training pair's longer side for each of its shorter at most; None for any.
        seed: Of the order of the training pairs.
        cache_dir: Folder for tokenized corpora; by default ``$RNN_BLOCKS_CACHE``, else ``~/.cache/rnn-blocks``.

    Raises:
        InputError: the arguments do not go together, or a file is not there. ``prepare`` raises it for all that is
            wrong with the text.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, text in {"en": "one\ntwo\ntwo one\n", "de": "eins\nzwei\nzwei eins\n"}.items():
    ...         _ = Path(folder, f"text.{name}").write_text(text)
    ...     stem = str(Path(folder, "text"))
    ...     data = ParallelDataModule(train=stem, val=stem, tokenizer="word", cache_dir=folder)
    ...     data.prepare()
    ...     batch = next(iter(data.val_dataloader()))
    >>> data.source_vocab_size, batch.references, data.detokenize(batch.target_outputs.tolist())
    (8, ['eins', 'zwei', 'zwei eins'], ['eins', 'zwei', 'zwei eins'])
    """

    def __init__(
        self,
        source: str = "numbers",
        *,
        source_lang: str = "en",
        target_lang: str = "de",
        hub_config: str | None = None,
        translation_column: str = "translation",
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        numbers_train: int = 30_000,
        numbers_val: int = 1_000,
        numbers_test: int = 1_000,
        numbers_max: int = 999_999,
        tokenizer: ParallelTokenizerKind = "bpe",
        joint: bool = True,
        vocab_size: int | None = None,
        lowercase: bool = False,
        bpe_dropout: float = 0.0,
        batch_tokens: int = 4096,
        max_sentences: int | None = None,
        eval_batch_tokens: int | None = None,
        max_length: int = 100,
        max_ratio: float | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        limits = {
            "batch_tokens": batch_tokens,
            "max_sentences": max_sentences,
            "eval_batch_tokens": eval_batch_tokens,
            "max_length": max_length,
            "max_ratio": max_ratio,
        }
        for name, size in limits.items():
            if size is not None and size < 1:
                raise InputError(f"{name} {size}: give 1 or more")
        if batch_tokens <= max_length:
            raise InputError(
                f"batch_tokens {batch_tokens}: a sentence of max_length {max_length} tokens and <eos> does not fit;"
                " raise the one or lower the other"
            )
        self._cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        check_rate(bpe_dropout)
        if bpe_dropout and tokenizer != "bpe":
            raise InputError(
                f"bpe_dropout {bpe_dropout:g}: only tokenizer bpe has merges to leave out, not {tokenizer}"
            )
        languages, memory = (source_lang, target_lang), self._cache_dir / "parallel" / "scans"
        stems = _stems(source, {"train": train, "val": val, "test": test})
        if hub_config is not None and (stems or not source.startswith(HUB)):
            raise InputError(f"hub_config {hub_config!r}: the corpus is no dataset of the Hub (hub:NAME)")
        self._corpus: ParallelCorpus
        if stems:
            self._corpus = ParallelFiles(stems, languages, memory=memory)
        elif source.startswith(HUB):
            name = source.removeprefix(HUB)
            self._corpus = HubPairs(name, hub_config, languages, translation_column, memory=memory)
        else:
            sizes = NumberSizes(numbers_train, numbers_val, numbers_test, numbers_max)
            self._corpus = SpelledNumbers(languages, sizes)
            if tokenizer in ("bpe", "unigram"):
                vocab_size = vocab_size or _TYPES_OF_NUMBERS
        self._settings = ParallelTokenizerSettings(tokenizer, joint, vocab_size, lowercase)
        self._bpe_dropout = bpe_dropout
        self._budget = Budget(batch_tokens, max_sentences)
        self._eval_budget = Budget(eval_batch_tokens or batch_tokens, max_sentences)
        self._limits = max_length, max_ratio
        self._seed = seed
        self._evaluated: tuple[Split, TextCodec] | None = None
        self._prepared: PreparedPairs | None = None
        self._codec: TextCodec | None = None
        self._kept: Kept | None = None

    def prepare(self) -> None:
        """Tokenizes the corpus, or finds it in the cache, and tells which pairs are left out. Again, it costs nothing.

        Raises:
            InputError: a file is empty, no text in UTF-8 or damaged gzip; the sides have different numbers of lines; a
                line of val or test is empty; no training pair is left; the cache folder cannot be written.
        """
        if self._prepared is not None:
            return
        if self._evaluated is not None:
            self._prepared = self._prepare_evaluated(*self._evaluated)
            return
        prepared = prepare_pairs(self._corpus, self._settings, self._cache_dir)
        kept = keep(prepared.splits["train"], *self._limits)
        if not len(kept.places):
            raise InputError(f"{self._corpus.name}: no training pair is left: {kept}")
        if any(kept.dropped.values()):
            rank_zero_info(str(kept))
        self._prepared, self._kept = prepared, kept

    def _prepare_evaluated(self, split: Split, codec: TextCodec) -> PreparedPairs:
        if split not in self._corpus.splits:
            raise InputError(f"{self._corpus.name}: there is no {split} text; give it as {split}")
        sides = codec.source_tokenizer, codec.target_tokenizer
        return prepare_split(self._corpus, split, sides, self._cache_dir)

    def evaluate(self, splits: Sequence[Split], state: Mapping[str, Any]) -> None:
        """Read one split alone, with a checkpoint's tokenizers; to be called before ``prepare``.

        Args:
            splits: that one.
            state: what the checkpoint holds of its data module.
        """
        (split,) = splits
        self._codec = TextCodec.from_state(state)
        self._evaluated = split, self._codec

    @property
    def codec(self) -> TextCodec:
        """The tokenizers of both sides."""
        if self._codec is None:
            text = self._text()
            self._codec = TextCodec(text.source_json, None if self._settings.joint else text.target_json)
        return self._codec

    @property
    def joint(self) -> bool:
        """Whether one vocabulary serves both sides."""
        return self.codec.joint

    @property
    def source_vocab_size(self) -> int:
        """One more than the greatest token id of the source side."""
        return self.codec.source_vocab_size

    @property
    def target_vocab_size(self) -> int:
        """One more than the greatest token id of the target side."""
        return self.codec.target_vocab_size

    @property
    def source_tokenizer(self) -> Tokenizer:
        """The source side's tokenizer."""
        return self.codec.source_tokenizer

    @property
    def target_tokenizer(self) -> Tokenizer:
        """The target side's tokenizer; the same where they share one."""
        return self.codec.target_tokenizer

    def encode_source(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of source lines, each ended by ``<eos>``."""
        return self.codec.encode_source(lines)

    def detokenize(self, ids: Iterable[Iterable[int]]) -> list[str]:
        """The text of translations, each up to its first ``<eos>``."""
        return self.codec.detokenize(ids)

    def source_tokens(self, ids: Iterable[int]) -> list[str]:
        """Source tokens as labels, a word's beginning marked by ``▁``."""
        return self.codec.source_tokens(ids)

    @property
    def splits(self) -> dict[Split, PairFile]:
        """The pairs of ``train``, ``val`` and, where there is one, ``test``."""
        return self._text().splits

    @property
    def dropped(self) -> dict[str, int]:
        """How many training pairs were left out for each reason."""
        self._text()
        assert self._kept is not None
        return self._kept.dropped

    @property
    def padding_fraction(self) -> float:
        """The part of the target positions that is padding in a training epoch."""
        return self._training_batches().padding_fraction

    def prepare_data(self) -> None:
        """Lightning's hook: ``prepare``, on one process of each machine."""
        self.prepare()

    def setup(self, stage: str) -> None:
        """Lightning's hook: ``prepare``, on every process."""
        self.prepare()

    def train_dataloader(self) -> TrainingBatches:
        """The batches of the train split that are this process's."""
        batches = self._training_batches()
        # A checkpoint of the moment where Lightning ends an epoch is one of an epoch's end.
        batches.end_pass_after(batches_of_an_epoch(len(batches), self.trainer))
        return batches

    def val_dataloader(self) -> EvaluationBatches:
        """The batches of the validation split that are this process's; every pair comes once."""
        return self._evaluation_batches("val")

    def test_dataloader(self) -> EvaluationBatches:
        """The batches of the test split that are this process's; every pair comes once.

        Raises:
            InputError: there is no test split.
        """
        if "test" not in self.splits:
            raise InputError(f"{self._corpus.name}: there is no test text; give it as test")
        return self._evaluation_batches("test")

    def state_dict(self) -> dict[str, Any]:
        """The tokenizers, what training saw, and what tells this corpus from others, for the checkpoint."""
        text = self._text()
        # Leaving merges out cuts lines into any of the pieces.
        seen = text.seen
        if seen is not None and self._bpe_dropout:
            seen = dataclasses.replace(seen, unseen=frozenset())
        told = None if seen is None else seen.state()
        return {"source": self._corpus.name, "data": text.fingerprint, **self.codec.state(), "seen": told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares a checkpoint's corpus with this one.

        Raises:
            InputError: a tokenizer is another one; or the training goes on, and the text is another one.
        """
        here, then, source = self.codec, TextCodec.from_state(state_dict), state_dict["source"]
        if then.state() != here.state():
            raise InputError(
                f"the checkpoint's tokenizers ({_sizes(then)}, from {source}) are not this run's ({_sizes(here)}, from"
                f" {self._corpus.name}): give the same text and the same tokenizer settings as then"
            )
        fitting = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        data = self._text().fingerprint
        if fitting and state_dict["data"] != data:
            raise InputError(
                f"the checkpoint was trained on other text ({source}, {state_dict['data'][:12]}) than this run reads"
                f" ({self._corpus.name}, {data[:12]}): resume on the same text, or start without the checkpoint"
            )

    def _text(self) -> PreparedPairs:
        self.prepare()
        assert self._prepared is not None
        return self._prepared

    def _training_batches(self) -> TrainingBatches:
        pairs = self.splits["train"]
        assert self._kept is not None
        rank, world_size = place_among_ranks(self.trainer)
        segmenters, trainer = None, self.trainer
        if self._bpe_dropout:
            source, target = (
                BpeDropout(tokenizer, self._bpe_dropout) for tokenizer in (self.source_tokenizer, self.target_tokenizer)
            )
            segmenters = source, target
        return TrainingBatches(
            pairs,
            self._kept.places,
            self._budget,
            seed=self._seed,
            rank=rank,
            world_size=world_size,
            segmenters=segmenters,
            current_epoch=None if trainer is None else lambda: trainer.current_epoch,
        )

    def _evaluation_batches(self, split: Split) -> EvaluationBatches:
        rank, world_size = place_among_ranks(self.trainer)
        return EvaluationBatches(self.splits[split], self._eval_budget, rank=rank, world_size=world_size)


def _stems(source: str, paths: dict[Split, str | None]) -> dict[Split, Path]:
    """The files that were given, checked against the source."""
    stems = {split: Path(path).expanduser() for split, path in paths.items() if path is not None}
    missing = [split for split in ("train", "val") if split not in stems]
    if stems and missing:
        raise InputError(f"train and val go together; missing: {', '.join(missing)}")
    if not stems and source == FILES:
        raise InputError(NO_FILES)
    if stems and source not in ("numbers", FILES):
        raise InputError(f"source {source!r}: train, val and test take its place; give one or the others")
    if not stems and source != "numbers" and not source.startswith(HUB):
        raise InputError(f"source {source!r}: give numbers or hub:NAME; files are given as train, val and test")
    return stems


def _sizes(codec: TextCodec) -> str:
    if codec.joint:
        return f"{codec.source_vocab_size} joint types"
    return f"{codec.source_vocab_size} and {codec.target_vocab_size} types"
