"""Pairs from datasets of the Hugging Face Hub, by name."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import Split
from rnn_blocks.recipes.data.corpora.hub import hash_files, hash_text, load_splits
from rnn_blocks.recipes.data.corpora.plain import plain
from rnn_blocks.recipes.translation.corpora.corpus import Pair

if TYPE_CHECKING:
    import datasets

_ROWS_AT_ONCE = 256


class HubPairs:
    """A parallel dataset of the Hugging Face Hub, or of a local folder in one of the Hub's formats.

    Its rows hold a translation (``{"translation": {"en": …, "de": …}}``), or a column for each language. A test split
    may be absent. ``datasets`` does the downloading and keeps its own cache.

    Args:
        dataset: the dataset's name, such as ``bentrevett/multi30k``, or a local folder's path.
        config: the dataset's configuration, where it has several.
        languages: the source and the target language, as the dataset calls them.
        column: the column of translations.
        memory: a folder in which the hashes of big files are kept; see ``remembered``.

    >>> HubPairs("IWSLT/iwslt2017", "iwslt2017-de-en", ("de", "en")).name
    'hub:IWSLT/iwslt2017 (iwslt2017-de-en, de → en)'
    """

    def __init__(
        self,
        dataset: str,
        config: str | None,
        languages: tuple[str, str],
        column: str = "translation",
        *,
        memory: Path | None = None,
    ) -> None:
        self._dataset = dataset
        self._config = config
        self._languages = languages
        self._column = column
        self._memory = memory
        self._loaded: dict[Split, datasets.Dataset] = {}

    @property
    def name(self) -> str:
        """As the user names it, with the configuration and the languages."""
        config = f"{self._config}, " if self._config else ""
        return f"hub:{self._dataset} ({config}{' → '.join(self._languages)})"

    @property
    def splits(self) -> tuple[Split, ...]:
        """``train`` and ``val``, and ``test`` where the dataset has one."""
        return tuple(self._load())

    def fingerprint(self) -> str:
        """Loads the dataset; returns a hash of its files and of which languages are read. See ``ParallelCorpus``."""
        digest = hashlib.sha256()
        for split, rows in self._load().items():
            digest.update(f"{split}\0{self._column}\0{self._languages}\0{rows.num_rows}\0".encode())
            lines = ("\0".join(pair) for pair in self.pairs(split))
            digest.update((hash_files(rows, self._memory) or hash_text(lines)).encode())
        return digest.hexdigest()

    def num_pairs(self, split: Split) -> int:
        """The rows of a split."""
        return int(self._load()[split].num_rows)

    def pairs(self, split: Split) -> Iterator[Pair]:
        """The rows of a split; a null is an empty line."""
        for batch in self._load()[split].iter(batch_size=_ROWS_AT_ONCE):
            if self._column in batch:
                for row in batch[self._column]:
                    yield Pair(*(plain((row or {}).get(language) or "") for language in self._languages))
            else:
                for row in zip(*(batch[language] for language in self._languages), strict=True):
                    yield Pair(*(plain(line or "") for line in row))

    def place(self, split: Split, index: int, side: str) -> str:
        """The split, the row from 0 as the Hub's viewer counts, and the language."""
        language = self._languages[0 if side == "source" else 1]
        return f"{self.name}: {'validation' if split == 'val' else split}, row {index}, {language}"

    def _load(self) -> "dict[Split, datasets.Dataset]":
        if not self._loaded:
            there = load_splits(self._dataset, self._config, self.name, ("train", "val"))
            self._loaded = {split: rows.select_columns(self._columns(rows)) for split, rows in there.items()}
        return self._loaded

    def _columns(self, rows: "datasets.Dataset") -> list[str]:
        if all(language in rows.features for language in self._languages):
            return list(self._languages)
        if self._column not in rows.features:
            raise InputError(
                f"{self.name}: no column {self._column!r} of translations, nor one for each language; the columns are:"
                f" {', '.join(rows.features)}"
            )
        known = _languages(rows.features[self._column])
        missing = [language for language in self._languages if language not in known]
        if missing:
            raise InputError(
                f"{self.name}: column {self._column!r} has no {' and no '.join(missing)}; it has:"
                f" {', '.join(known) or 'no languages'}"
            )
        return [self._column]


def _languages(feature: Any) -> list[str]:
    """The languages of a column: of the Hub's ``Translation``, or of a plain dictionary."""
    found = getattr(feature, "languages", feature)
    return list(found) if isinstance(found, dict | list | tuple) else []
