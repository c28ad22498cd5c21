"""The data of a language model: any text, tokenized once and read as lanes."""

import os
import zlib
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from tokenizers import Tokenizer

from rnn_blocks.recipes.errors import InputError
from rnn_blocks.recipes.shares import batches_of_an_epoch, place_among_ranks
from rnn_blocks.recipes.text.corpus import SPLITS, Corpus, Split
from rnn_blocks.recipes.text.files import FileCorpus
from rnn_blocks.recipes.text.hub import HubCorpus
from rnn_blocks.recipes.text.lanes import Lanes
from rnn_blocks.recipes.text.settings import TokenizerSettings
from rnn_blocks.recipes.text.stdlib import StandardLibrary
from rnn_blocks.recipes.text.store import PreparedText, TokenFile, default_cache_dir, prepare_text
from rnn_blocks.recipes.text.tokenizer import TokenizerKind

_HUB = "hub:"


class TextDataModule(LightningDataModule):
    r"""A corpus of text as batches for a language model.

    The first run tokenizes the corpus into the cache folder; later runs find it there by its content and settings.

    Args:
        source: The corpus: ``stdlib`` (the source code of the running Python's standard library), the path of one
            plain or gzip text file in UTF-8 (split 90/5/5 by position), or ``hub:NAME``, a dataset of the Hugging Face
            Hub with train, validation and test splits.
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
        batch_size: Lanes read side by side in training, on each device.
        bptt: Tokens of a lane in each training batch (steps of truncated backpropagation through time).
        eval_batch_size: Lanes in validation and test; by default as ``batch_size``.
        eval_bptt: Tokens of a lane in each validation or test batch; by default as ``bptt``.
        cache_dir: Folder for tokenized corpora; by default ``$RNN_BLOCKS_CACHE``, else ``~/.cache/rnn-blocks``.

    Raises:
        InputError: the arguments do not go together. ``prepare`` raises it for all that is wrong with the text.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "sea.txt")
    ...     _ = path.write_text("the sea the sea the open sea\n" * 50)
    ...     data = TextDataModule(str(path), tokenizer="word", batch_size=2, bptt=5, cache_dir=folder)
    ...     data.prepare()
    ...     batch = next(iter(data.train_dataloader()))
    >>> data.vocabulary_size, data.tokenizer.decode(batch.inputs[0].tolist())
    (5, 'the sea the sea the')
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
        batch_size: int = 20,
        bptt: int = 35,
        eval_batch_size: int | None = None,
        eval_bptt: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self._cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self._settings = TokenizerSettings(tokenizer, vocab_size, min_count, _path(vocabulary))
        self._corpus = _corpus(source, [train, val, test], hub_config, text_column, self._cache_dir / "text" / "scans")
        self._train_shape = (batch_size, bptt)
        self._eval_shape = (eval_batch_size or batch_size, eval_bptt or bptt)
        sizes = {"batch_size": batch_size, "bptt": bptt, "eval_batch_size": eval_batch_size, "eval_bptt": eval_bptt}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise InputError(f"{name} {size}: give 1 or more")
        self._prepared: PreparedText | None = None
        self._tokenizer: Tokenizer | None = None

    def prepare(self) -> None:
        """Tokenizes the corpus, or finds it in the cache. Doing it again costs nothing.

        Raises:
            InputError: a file is missing, empty, no text in UTF-8 or damaged gzip; a Hub dataset cannot be loaded; the
                vocabulary cannot be used; a split is too short for a batch; the cache folder cannot be written.
        """
        if self._prepared is not None:
            return
        prepared = prepare_text(self._corpus, self._settings, self._cache_dir)
        Lanes(prepared.splits["train"], *self._train_shape)
        for split in ("val", "test"):
            Lanes(prepared.splits[split], *self._eval_shape, complete=True)
        self._prepared = prepared

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
        """The token files of ``train``, ``val`` and ``test``, with their counts of tokens and bytes."""
        return self._text().splits

    def gzip_bits_per_byte(self, split: Split) -> float:
        """What ``gzip -9`` makes of a split's text, in bits per byte: the mark that a model should beat."""
        compressor = zlib.compressobj(9, wbits=31)
        plain = compressed = 0
        for piece in self._corpus.pieces(split):
            text = piece.encode()
            plain += len(text)
            compressed += len(compressor.compress(text))
        return 8 * (compressed + len(compressor.flush())) / plain

    def prepare_data(self) -> None:
        """Lightning's hook: ``prepare``, on one process of each machine."""
        self.prepare()

    def setup(self, stage: str) -> None:
        """Lightning's hook: ``prepare``, on every process."""
        self.prepare()

    def train_dataloader(self) -> Lanes:
        """The lanes of the train split that are this process's."""
        rank, world_size = place_among_ranks(self.trainer)
        lanes = Lanes(self.splits["train"], *self._train_shape, rank=rank, world_size=world_size)
        # A checkpoint of the moment where Lightning ends an epoch is one of an epoch's end.
        lanes.end_pass_after(batches_of_an_epoch(len(lanes), self.trainer))
        return lanes

    def val_dataloader(self) -> Lanes:
        """The lanes of the validation split that are this process's; every token is predicted once."""
        return self._eval_lanes("val")

    def test_dataloader(self) -> Lanes:
        """The lanes of the test split that are this process's; every token is predicted once."""
        return self._eval_lanes("test")

    def state_dict(self) -> dict[str, Any]:
        """The tokenizer and what tells this corpus from others, for the checkpoint."""
        text = self._text()
        return {"source": self._corpus.name, "data": text.fingerprint, "tokenizer": text.tokenizer_json}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares a checkpoint's corpus with this one.

        Raises:
            InputError: the tokenizer is another one; or the training goes on, and the text is another one.
        """
        here, source = self.state_dict(), state_dict["source"]
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

    def _eval_lanes(self, split: Split) -> Lanes:
        rank, world_size = place_among_ranks(self.trainer)
        return Lanes(self.splits[split], *self._eval_shape, complete=True, rank=rank, world_size=world_size)


def _corpus(source: str, paths: list[str | None], hub_config: str | None, text_column: str, memory: Path) -> Corpus:
    given = [path for path in paths if path is not None]
    if given:
        missing = [name for name, path in zip(SPLITS, paths, strict=True) if path is None]
        if missing:
            raise InputError(f"train, val and test go together; missing: {', '.join(missing)}")
        if source != "stdlib":
            raise InputError(f"source {source!r}: train, val and test take its place; give one or the others")
        train, val, test = (Path(path).expanduser() for path in given)
        return FileCorpus(train, val, test, memory=memory)
    if source.startswith(_HUB):
        return HubCorpus(source.removeprefix(_HUB), hub_config, text_column, memory=memory)
    if hub_config is not None:
        raise InputError(f"hub_config {hub_config!r}: source {source!r} is no dataset of the Hub (hub:NAME)")
    if source == "stdlib":
        return StandardLibrary()
    path = Path(source).expanduser()
    if not path.exists() and os.sep not in source:
        raise InputError(f"source {source!r}: no such file; give a text file's path, stdlib, or hub:NAME")
    return FileCorpus(path, memory=memory)


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text is not None else None
