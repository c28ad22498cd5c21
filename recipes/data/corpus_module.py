"""What data modules of text share: a corpus, tokenized once, and what tells it from others."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypedDict

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from tokenizers import Tokenizer

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import FILES, HUB, NO_FILES, SPLITS, Corpus, Split
from rnn_blocks.recipes.data.corpora.files import FileCorpus
from rnn_blocks.recipes.data.corpora.hub import HubCorpus
from rnn_blocks.recipes.data.corpora.stdlib import StandardLibrary
from rnn_blocks.recipes.data.settings import TokenizerSettings
from rnn_blocks.recipes.data.store import PreparedText, TokenFile, default_cache_dir, prepare_splits, prepare_text
from rnn_blocks.recipes.data.tokenizer import UNKNOWN, TokenizerKind

RHYMES = Path(str(files("rnn_blocks.recipes"))) / "data" / "corpora" / "rhymes.txt"
"""Nursery rhymes, small enough to be learnt by heart: training, validation and test are all of them."""


class CorpusOptions(TypedDict, total=False):
    """The options of :class:`TextCorpusModule`, to whoever hands them to it."""

    train: str | None
    val: str | None
    test: str | None
    hub_config: str | None
    text_column: str
    tokenizer: TokenizerKind
    vocab_size: int | None
    min_count: int
    vocabulary: str | None
    cache_dir: str | None


class TextCorpusModule(LightningDataModule):
    """A tokenized corpus of text; a data module adds its batches.

    Args:
        source: The corpus: ``stdlib`` (the source code of the running Python's standard library; ``stdlib-by-file``
            is the same in the splits that it had before 2026-11-28, for checkpoints of then), ``rhymes`` (nursery
            rhymes, all of which are also the validation and test text), the path of one plain or gzip text file in
            UTF-8 (split 90/5/5 by position), ``hub:NAME``, a dataset of the Hugging Face Hub with train, validation
            and test splits, or ``files``: those that have to be given as ``train``, ``val`` and ``test``.
        train: Path of the training text, plain or gzip; with ``val`` and ``test``, in place of ``source``.
        val: Path of the validation text.
        test: Path of the test text.
        hub_config: The Hub dataset's configuration, such as ``wikitext-2-raw-v1``.
        text_column: The Hub dataset's column of text.
        tokenizer: ``bpe`` (byte-level byte-pair encoding learnt from the train split), ``word`` (words between spaces,
            ``<eos>`` at the end of each line, ``<unk>`` for words outside the vocabulary) or ``char`` (characters).
        vocab_size: Types at most; by default 4096 for ``bpe`` and every word for ``word``.
        min_count: How often a word must occur in the train split to be in the vocabulary (``word``).
        vocabulary: Path of a vocabulary (``word``), one word a line, ``<unk>`` and ``<eos>`` among them; else counted.
        cache_dir: Folder for tokenized corpora; by default ``$RNN_BLOCKS_CACHE``, else ``~/.cache/rnn-blocks``.

    Raises:
        InputError: the arguments do not go together.
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
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        words = Path(vocabulary).expanduser() if vocabulary is not None else None
        self._cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self._settings = TokenizerSettings(tokenizer, vocab_size, min_count, words)
        memory = self._cache_dir / "text" / "scans"
        self._corpus = _corpus(source, [train, val, test], hub_config, text_column, memory)
        self._evaluated: tuple[tuple[Split, ...], str] | None = None
        self._prepared: PreparedText | None = None
        self._tokenizer: Tokenizer | None = None

    def prepare(self) -> None:
        """Tokenizes the corpus, or finds it in the cache. Doing it again costs nothing.

        Raises:
            InputError: a file is missing, empty, no text in UTF-8 or damaged gzip; a Hub dataset cannot be loaded; the
                vocabulary cannot be used; a split has no word of it, or is too short for a batch; the cache folder
                cannot be written.
        """
        if self._prepared is not None:
            return
        if self._evaluated is None:
            prepared = prepare_text(self._corpus, self._settings, self._cache_dir)
        else:
            prepared = prepare_splits(self._corpus, *self._evaluated, self._cache_dir)
        for split, tokens in prepared.splits.items():
            if tokens.num_unknown and tokens.num_unknown + tokens.num_ends == tokens.num_tokens:
                raise InputError(
                    f"the {split} split of {self._corpus.name} is nothing but <unk>: of its {tokens.num_unknown:,}"
                    " words none is in the vocabulary, so that a perplexity would say nothing: give text and a"
                    " vocabulary that go together"
                )
        self._check(prepared)
        self._prepared = prepared

    def evaluate(self, splits: tuple[Split, ...], state: Mapping[str, Any]) -> None:
        """Read some splits alone, with a checkpoint's tokenizer; to be called before ``prepare``.

        Args:
            splits: which.
            state: what the checkpoint holds of its data module.
        """
        self._evaluated = splits, state["tokenizer"]

    def _check(self, prepared: PreparedText) -> None:
        """Refuses splits that are too short."""

    @property
    def vocabulary_size(self) -> int:
        """How many types the vocabulary has, one more than the greatest token id."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, ready to encode and decode."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_str(self.tokenizer_json)
        return self._tokenizer

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as text, for ``tokenizers.Tokenizer.from_str``."""
        return self._text().tokenizer_json

    @property
    def splits(self) -> dict[Split, TokenFile]:
        """The token files of ``train``, ``val`` and ``test``, or those evaluated, with counts of tokens and bytes."""
        return self._text().splits

    def unknown_share(self, split: Split) -> float | None:
        """The share of a split's tokens that are ``<unk>``; None where the tokenizer knows every text."""
        tokens = self.splits[split]
        return tokens.num_unknown / tokens.num_tokens if self.tokenizer.token_to_id(UNKNOWN) is not None else None

    def prepare_data(self) -> None:
        """Lightning's hook: ``prepare``, on one process of each machine."""
        self.prepare()

    def setup(self, stage: str) -> None:
        """Lightning's hook: ``prepare``, on every process."""
        self.prepare()

    def state_dict(self) -> dict[str, Any]:
        """The tokenizer, what training saw, and what tells this corpus from others, for the checkpoint."""
        text = self._text()
        seen = None if text.seen is None else text.seen.state()
        state = {"source": self._corpus.name, "data": text.fingerprint, "tokenizer": text.tokenizer_json}
        return {**state, "seen": seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares a checkpoint's corpus with this one.

        Raises:
            InputError: the tokenizer is another one; or the training goes on, and the text is another one.
        """
        here, source = self.state_dict(), state_dict["source"]
        if (
            source == self._corpus.name == "stdlib"
            and state_dict["data"] == _BY_NAME[f"{source}-by-file"]().fingerprint()
        ):
            raise InputError(
                "the checkpoint was trained on the standard library as it was split before, by files: give"
                " --data.source stdlib-by-file"
            )
        if state_dict["tokenizer"] != here["tokenizer"]:
            size = Tokenizer.from_str(state_dict["tokenizer"]).get_vocab_size()
            raise InputError(
                f"the checkpoint's tokenizer ({size} types, from {source}) is not this run's ({self.vocabulary_size}"
                f" types, from {self._corpus.name}): give the same text and the same tokenizer settings as then"
            )
        fitting = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        if fitting and state_dict["data"] != here["data"]:
            raise InputError(
                f"the checkpoint was trained on other text ({source}, {state_dict['data'][:12]}) than this run reads"
                f" ({self._corpus.name}, {here['data'][:12]}): resume on the same text, or start without the checkpoint"
            )

    def _text(self) -> PreparedText:
        self.prepare()
        assert self._prepared is not None
        return self._prepared


_BY_NAME: dict[str, Callable[[], Corpus]] = {
    "stdlib": StandardLibrary,
    "stdlib-by-file": partial(StandardLibrary, split_by="file"),
    "rhymes": lambda: FileCorpus(RHYMES, RHYMES, RHYMES),
}


def _corpus(source: str, paths: list[str | None], hub_config: str | None, text_column: str, memory: Path) -> Corpus:
    given = [path for path in paths if path is not None]
    if given:
        missing = [name for name, path in zip(SPLITS, paths, strict=True) if path is None]
        if missing:
            raise InputError(f"train, val and test go together; missing: {', '.join(missing)}")
        if source not in ("stdlib", FILES):
            raise InputError(f"source {source!r}: train, val and test take its place; give one or the others")
        train, val, test = (Path(path).expanduser() for path in given)
        return FileCorpus(train, val, test, memory=memory)
    if source == FILES:
        raise InputError(NO_FILES)
    if source.startswith(HUB):
        return HubCorpus(source.removeprefix(HUB), hub_config, text_column, memory=memory)
    if hub_config is not None:
        raise InputError(f"hub_config {hub_config!r}: source {source!r} is no dataset of the Hub (hub:NAME)")
    if source in _BY_NAME:
        return _BY_NAME[source]()
    path = Path(source).expanduser()
    if not path.exists() and os.sep not in source:
        raise InputError(f"source {source!r}: no such file; give a text file's path, stdlib, rhymes, or hub:NAME")
    return FileCorpus(path, memory=memory)
