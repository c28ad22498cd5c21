"""The source code of the running Python's standard library: real text that every machine has."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import SPLITS, Split
from rnn_blocks.recipes.data.corpora.plain import plain

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
# Tables of character sets, the same lines in file after file: what is held out of them would be trained on elsewhere.
_REPEATED = frozenset({"encodings"})
# Characters of a stretch at least, where there is enough text.
_STRETCH = 1 << 11
# Of so many stretches in a row one validates and one tests.
_PERIOD = 20


class _Piece(NamedTuple):
    path: Path
    start: int  # characters of its text
    stop: int


class StandardLibrary:
    """Python's standard library as a corpus: its modules' sources without their tests, in the order of their paths.

    The text is cut at ends of lines into stretches of some 2,000 characters, over the ends of files. Of twenty in a row
    the tenth is validation text and the last is test text; the others are trained on. Each split so has its share of
    every part of the library, and no part of the text is in two. The tables of character sets (``encodings``), which
    repeat one another, are left out. Files that are not UTF-8 are left out as well, and counted in ``skipped``.

    Args:
        folder: the library's folder; the running Python's own where it is not given.
        split_by: ``stretch``, or ``file``, as it was before 2026-11-28: by a hash of each file's path, 90, 5 and 5 % of
            the files, the tables among them. Its splits are of unlike text.

    >>> StandardLibrary().name, StandardLibrary(split_by="file").name
    ('stdlib', 'stdlib-by-file')
    """

    def __init__(self, folder: Path | None = None, split_by: Literal["stretch", "file"] = "stretch") -> None:
        self.folder = folder or Path(sysconfig.get_path("stdlib"))
        self.skipped = 0
        self._split_by = split_by
        self._pieces: dict[Split, list[_Piece]] = {}
        self._num_bytes: dict[Split, int] = {}

    @property
    def name(self) -> str:
        """As the user names it."""
        return "stdlib" if self._split_by == "stretch" else "stdlib-by-file"

    @staticmethod
    def split_of(relative_path: str) -> Split:
        """By file, the split of the file with this path below the library's folder, written with forward slashes.

        >>> StandardLibrary.split_of("argparse.py")
        'train'
        """
        percent = int.from_bytes(hashlib.sha256(relative_path.encode()).digest()[:8], "big") * 100 >> 64
        return "train" if percent < 90 else "val" if percent < 95 else "test"

    def fingerprint(self) -> str:
        """Reads all files through once; returns a hash of their paths, their text and its splits. See ``Corpus``."""
        texts = self._texts()
        if not texts:
            raise InputError(
                f"stdlib: Python {platform.python_version()} has no source files of its standard library in"
                f" {self.folder}; give the path of a text file or hub:NAME instead"
            )
        cut = _by_stretch(texts) if self._split_by == "stretch" else _by_file(texts)
        self._pieces = {split: [] for split in SPLITS}
        self._num_bytes = dict.fromkeys(SPLITS, 0)
        digest = hashlib.sha256(f"{_STRETCH} {_PERIOD}\0".encode() if self._split_by == "stretch" else b"")
        for relative, text in texts.items():
            data = text.encode()
            digest.update(f"{relative}\0{len(data)}\0".encode())
            digest.update(data)
        for split, relative, start, stop in cut:
            self._pieces[split].append(_Piece(self.folder / relative, start, stop))
            self._num_bytes[split] += len(texts[relative][start:stop].encode())
        return digest.hexdigest()

    def num_bytes(self, split: Split) -> int:
        """Bytes of a split's text."""
        self._ready()
        return self._num_bytes[split]

    def pieces(self, split: Split) -> Iterator[str]:
        """A split's stretches or files, one after the other."""
        self._ready()
        for path, start, stop in self._pieces[split]:
            yield _read(path)[start:stop]

    def _ready(self) -> None:
        if not self._pieces:
            self.fingerprint()

    def _texts(self) -> dict[str, str]:
        """The text of each file by its path, in the order of the paths."""
        texts = {}
        self.skipped = 0
        for relative in sorted(self._sources()):
            try:
                texts[relative] = _read(self.folder / relative)
            except (OSError, UnicodeDecodeError):
                self.skipped += 1
        return texts

    def _sources(self) -> Iterator[str]:
        left_out = _LEFT_OUT | _REPEATED if self._split_by == "stretch" else _LEFT_OUT
        for folder, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if name not in left_out]
            for name in files:
                if name.endswith(".py"):
                    yield Path(folder, name).relative_to(self.folder).as_posix()


def _read(path: Path) -> str:
    return plain(path.read_bytes().decode())


def _by_stretch(texts: dict[str, str]) -> Iterator[tuple[Split, str, int, int]]:
    size = min(_STRETCH, sum(map(len, texts.values())) // _PERIOD)
    held_out: dict[int, Split] = {_PERIOD // 2 - 1: "val", _PERIOD - 1: "test"}
    number, left = 0, size
    for relative, text in texts.items():
        start = 0
        while start < len(text):
            end = text.find("\n", start + left - 1) + 1 or len(text)
            yield held_out.get(number % _PERIOD, "train"), relative, start, end
            left -= end - start
            if left <= 0:
                number, left = number + 1, size
            start = end


def _by_file(texts: dict[str, str]) -> Iterator[tuple[Split, str, int, int]]:
    for relative, text in texts.items():
        yield StandardLibrary.split_of(relative), relative, 0, len(text)
