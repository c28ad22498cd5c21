"""The source code of the running Python's standard library: real text that every machine has."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import Split

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


class StandardLibrary:
    """Python's standard library as a corpus: its modules' sources without their tests, in the order of their paths.

    A file's split hangs on a hash of its path alone, so that it is the same on every machine: about 90 % of the files
    train, 5 % validation, 5 % test. Files that are not UTF-8 are left out and counted in ``skipped``.

    Args:
        folder: the library's folder; the running Python's own where it is not given.

    >>> library = StandardLibrary()
    >>> library.split_of("argparse.py")
    'train'
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(sysconfig.get_path("stdlib"))
        self.skipped = 0
        self._files: dict[Split, list[Path]] = {}
        self._num_bytes: dict[Split, int] = {}

    @property
    def name(self) -> str:
        """As the user names it."""
        return "stdlib"

    @staticmethod
    def split_of(relative_path: str) -> Split:
        """The split of the file with this path below the library's folder, written with forward slashes."""
        percent = int.from_bytes(hashlib.sha256(relative_path.encode()).digest()[:8], "big") * 100 >> 64
        return "train" if percent < 90 else "val" if percent < 95 else "test"

    def fingerprint(self) -> str:
        """Reads all files through once; returns a hash of their paths and text. See ``Corpus``."""
        digest = hashlib.sha256()
        self.skipped = 0
        self._files = {"train": [], "val": [], "test": []}
        self._num_bytes = {"train": 0, "val": 0, "test": 0}
        for relative in sorted(self._sources()):
            try:
                data = (self.folder / relative).read_bytes()
                data.decode()
            except (OSError, UnicodeDecodeError):
                self.skipped += 1
                continue
            split = self.split_of(relative)
            self._files[split].append(self.folder / relative)
            self._num_bytes[split] += len(data)
            digest.update(f"{relative}\0{len(data)}\0".encode())
            digest.update(data)
        if not self._files["train"]:
            raise InputError(
                f"stdlib: Python {platform.python_version()} has no source files of its standard library in"
                f" {self.folder}; give the path of a text file or hub:NAME instead"
            )
        return digest.hexdigest()

    def num_bytes(self, split: Split) -> int:
        """Bytes of a split's files."""
        self._ready()
        return self._num_bytes[split]

    def pieces(self, split: Split) -> Iterator[str]:
        """A split's files, one after the other."""
        self._ready()
        for path in self._files[split]:
            yield path.read_bytes().decode()

    def _ready(self) -> None:
        if not self._files:
            self.fingerprint()

    def _sources(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if name not in _LEFT_OUT]
            for name in files:
                if name.endswith(".py"):
                    yield Path(folder, name).relative_to(self.folder).as_posix()
