"""Pairs from files: two line-aligned ones, or one with two columns separated by tabs."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import SPLITS, Split
from rnn_blocks.recipes.data.corpora.files import read_lines
from rnn_blocks.recipes.data.corpora.remember import remembered
from rnn_blocks.recipes.translation.corpora.corpus import Pair


@dataclass(frozen=True)
class Aligned:
    """Two files, plain or gzip: line n of the one is the translation of line n of the other."""

    source: Path
    target: Path

    @property
    def paths(self) -> list[Path]:
        """Both files."""
        return [self.source, self.target]

    def lines(self, path: Path) -> Iterator[str]:
        """The lines of one of the files."""
        return read_lines(path)

    def pairs(self) -> Iterator[Pair]:
        """The lines side by side."""
        return map(Pair, read_lines(self.source), read_lines(self.target))

    def place(self, index: int, side: str) -> str:
        """See ``ParallelCorpus``."""
        return f"{self.source if side == 'source' else self.target}: line {index + 1}"


@dataclass(frozen=True)
class Columns:
    """One file, plain or gzip, with two columns separated by a tab: the source and its translation."""

    path: Path

    @property
    def paths(self) -> list[Path]:
        """The file."""
        return [self.path]

    def lines(self, path: Path) -> Iterator[str]:
        """The lines of the file, their columns counted."""
        return map("\t".join, self.pairs())

    def pairs(self) -> Iterator[Pair]:
        """The columns of each line.

        Raises:
            InputError: a line has not two columns.
        """
        for number, line in enumerate(read_lines(self.path), start=1):
            columns = line.split("\t")
            if len(columns) != 2:
                raise InputError(
                    f"{self.path}: line {number} has {len(columns)} column{'s' * (len(columns) != 1)}; give two,"
                    " the source and its translation, separated by one tab"
                )
            yield Pair(*columns)

    def place(self, index: int, side: str) -> str:
        """See ``ParallelCorpus``."""
        return f"{self.path}: line {index + 1}, column {1 if side == 'source' else 2}"


class ParallelFiles:
    r"""A parallel corpus from files in UTF-8, plain or gzip.

    Each split is the path of one file with two columns, or a stem: with ``train`` = ``data/train`` and the languages
    ``en`` and ``de`` the lines of ``data/train.en`` (or ``data/train.en.gz``) are translated in ``data/train.de``.

    Args:
        stems: the stem or file of each split.
        languages: the endings of source and target files.
        memory: a folder in which what the scan of a big file told is kept; see ``remembered``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, text in {"val.en": "one\ntwo\n", "val.de": "eins\nzwei\n"}.items():
    ...         _ = Path(folder, name).write_text(text)
    ...     corpus = ParallelFiles({"val": Path(folder, "val")}, ("en", "de"))
    ...     [pair.target for pair in corpus.pairs("val")]
    ['eins', 'zwei']

    Raises:
        InputError: a split's file is not there; the message names what was looked for.
    """

    def __init__(self, stems: dict[Split, Path], languages: tuple[str, str], *, memory: Path | None = None) -> None:
        self._stems = stems
        self._files = {split: _find(split, stem, languages) for split, stem in stems.items()}
        self._counts: dict[Split, int] = {}
        self._memory = memory

    @property
    def name(self) -> str:
        """The stems, each once."""
        return ", ".join(map(str, dict.fromkeys(self._stems.values())))

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that were given."""
        return tuple(split for split in SPLITS if split in self._files)

    def fingerprint(self) -> str:
        """Reads all files through once; returns a hash of their text. See ``ParallelCorpus``."""
        digest = hashlib.sha256()
        known: dict[Path, tuple[str, int]] = {}  # several splits may be one file
        for split in self.splits:
            files = self._files[split]
            known |= {path: _scan(files, path, self._memory) for path in files.paths if path not in known}
            scans = [known[path] for path in files.paths]
            (first, lines), (last, others) = scans[0], scans[-1]
            if lines != others:
                raise InputError(
                    f"{files.paths[0]} has {lines} lines and {files.paths[-1]} has {others}: each line needs its"
                    " translation in the same line of the other file"
                )
            self._counts[split] = lines
            digest.update(f"{split}\0{isinstance(files, Columns)}\0{first}\0{last}\0".encode())
        return digest.hexdigest()

    def num_pairs(self, split: Split) -> int | None:
        """Known once ``fingerprint`` has read the files."""
        return self._counts.get(split)

    def pairs(self, split: Split) -> Iterator[Pair]:
        """See ``ParallelCorpus``."""
        return self._files[split].pairs()

    def place(self, split: Split, index: int, side: str) -> str:
        """See ``ParallelCorpus``."""
        return self._files[split].place(index, side)


def _find(split: Split, stem: Path, languages: tuple[str, str]) -> Aligned | Columns:
    if stem.is_file():
        for language, other in (languages, languages[::-1]):
            for end in (f".{language}", f".{language}.gz"):
                common = str(stem).removesuffix(end)
                beside = [path for name in ("", ".gz") if (path := Path(f"{common}.{other}{name}")).is_file()]
                if common != str(stem) and beside:
                    raise InputError(
                        f"{split} {str(stem)!r}: for {stem} and {beside[0]} give what both begin with, {common}"
                    )
        return Columns(stem)
    sides, looked_for = [], [str(stem)]
    for language in languages:
        names = [Path(f"{stem}.{language}"), Path(f"{stem}.{language}.gz")]
        looked_for += map(str, names)
        sides += [name for name in names if name.is_file()][:1]
    if len(sides) < 2:
        found = f"; only {sides[0]} is there" if sides else ""
        raise InputError(
            f"{split} {str(stem)!r}: no such text{found}. Looked for a file with two columns, or one file for each of"
            f" {languages[0]} and {languages[1]}: {', '.join(looked_for)}"
        )
    return Aligned(*sides)


def _scan(files: Aligned | Columns, path: Path, memory: Path | None) -> tuple[str, int]:
    """The hash of a file's lines and their number."""

    def read() -> list[str | int]:
        digest, number = hashlib.sha256(), 0
        for line in files.lines(path):
            digest.update(line.encode() + b"\n")
            number += 1
        if number == 0:
            raise InputError(f"{path}: the file is empty; give a file with text in it")
        return [digest.hexdigest(), number]

    digest, number = remembered(path, memory, read)
    return str(digest), int(number)
