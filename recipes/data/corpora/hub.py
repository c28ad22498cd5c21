"""Datasets of the Hugging Face Hub, by name."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import SPLITS, Split
from rnn_blocks.recipes.data.corpora.plain import plain
from rnn_blocks.recipes.data.corpora.remember import remembered

if TYPE_CHECKING:
    import datasets

_ROWS_AT_ONCE = 64


class HubCorpus:
    """A column of text of a dataset on the Hugging Face Hub, or of a local folder in one of the Hub's formats.

    A row is one or more whole lines: a newline is added to each row that does not end with one. Empty (null) rows are
    left out. ``datasets`` does the downloading and keeps its own cache.

    Args:
        dataset: the dataset's name, such as ``Salesforce/wikitext``, or a local folder's path.
        config: the dataset's configuration, such as ``wikitext-2-raw-v1``, where it has several.
        text_column: the column that holds the text.
        memory: as for ``FileCorpus``.

    >>> HubCorpus("Salesforce/wikitext", "wikitext-2-raw-v1").name
    'hub:Salesforce/wikitext (wikitext-2-raw-v1)'
    """

    def __init__(
        self, dataset: str, config: str | None = None, text_column: str = "text", *, memory: Path | None = None
    ) -> None:
        self._dataset = dataset
        self._config = config
        self._text_column = text_column
        self._memory = memory
        self._splits: dict[Split, datasets.Dataset] = {}

    @property
    def name(self) -> str:
        """As the user names it, with the configuration."""
        return f"hub:{self._dataset}" + (f" ({self._config})" if self._config else "")

    def fingerprint(self) -> str:
        """Loads the dataset; returns a hash of its files. See ``Corpus``."""
        digest = hashlib.sha256()
        for split, rows in self._load().items():
            digest.update(f"{split}\0{self._text_column}\0{rows.num_rows}\0".encode())
            digest.update((hash_files(rows, self._memory) or hash_text(self.pieces(split))).encode())
        return digest.hexdigest()

    def num_bytes(self, split: Split) -> int | None:
        """Not known before the rows are read."""
        return None

    def pieces(self, split: Split) -> Iterator[str]:
        """A split's rows, each ended by a newline."""
        for batch in self._load()[split].iter(batch_size=_ROWS_AT_ONCE):
            rows: list[str | None] = batch[self._text_column]
            texts = (plain(row) for row in rows if row is not None)
            yield "".join(text if text.endswith("\n") else text + "\n" for text in texts)

    def _load(self) -> "dict[Split, datasets.Dataset]":
        if not self._splits:
            self._splits = self._open()
        return self._splits

    def _open(self) -> "dict[Split, datasets.Dataset]":
        there = load_splits(self._dataset, self._config, self.name)
        for split in SPLITS:
            self._check_column(there[split])
        return {split: there[split].select_columns([self._text_column]) for split in SPLITS}

    def _check_column(self, rows: "datasets.Dataset") -> None:
        texts = [
            name for name, kind in rows.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")
        ]
        if self._text_column not in texts:
            raise InputError(
                f"{self.name}: text_column {self._text_column!r} is no column of text; the columns of text are:"
                f" {', '.join(texts) or 'none'}"
            )


def load_splits(
    dataset: str, config: str | None, name: str, needed: tuple[Split, ...] = SPLITS
) -> "dict[Split, datasets.Dataset]":
    """Loads a dataset of the Hub, or of a local folder.

    Args:
        dataset: its name or the folder's path.
        config: its configuration, where it has several.
        name: what messages call it.
        needed: the splits that it must have; the others of train, val and test come where they are there.

    Raises:
        InputError: it cannot be loaded, or lacks a split.
    """
    import datasets  # it takes a second to import, and few runs read the Hub

    try:
        found: Any = datasets.load_dataset(dataset, config)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{name}: the dataset cannot be loaded: {error}") from error
    named = {str(datasets.Split.VALIDATION): "val"}
    there = {named.get(str(split), str(split)): rows for split, rows in found.items()}
    missing = [split for split in needed if split not in there]
    if missing:
        told = ["validation" if split == "val" else split for split in needed]
        raise InputError(
            f"{name}: the dataset has no split for {' and '.join(missing)}; the recipe needs"
            f" {', '.join(told[:-1])} and {told[-1]}, and there are: {', '.join(map(str, found))}. Save the splits as"
            " text files and give them as train, val and test"
        )
    return {split: there[split] for split in SPLITS if split in there}


def hash_files(rows: "datasets.Dataset", memory: Path | None) -> str:
    """A hash of the files that a split lies in; empty where it lies in memory."""
    digest = hashlib.sha256()
    files = [Path(entry["filename"]) for entry in rows.cache_files]
    for path in files:
        digest.update(str(remembered(path, memory, partial(_hash, path))).encode())
    return digest.hexdigest() if files else ""


def hash_text(pieces: Iterable[str]) -> str:
    """A hash of text in pieces."""
    digest = hashlib.sha256()
    for text in pieces:
        digest.update(text.encode())
    return digest.hexdigest()


def _hash(path: Path) -> list[str | int]:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return [digest.hexdigest()]
