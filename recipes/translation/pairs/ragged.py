"""Rows of different lengths on disk: their values one after another, and where each row begins."""

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RaggedFile:
    """Rows of integers in a file, read one by one.

    Attributes:
        path: the file of the values; ``offsets_path`` is beside it.
        dtype: of the values.
        num_rows: how many rows there are.
        num_values: how many values they hold together.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RaggedWriter(Path(folder, "rows"), "int32") as writer:
    ...         for row in ([5, 6], [], [7]):
    ...             writer.append(np.array(row, dtype="int32"))
    ...     file = writer.file()
    ...     with file.open() as rows:
    ...         rows.read(2).tolist(), file.lengths().tolist()
    ([7], [2, 0, 1])
    """

    path: Path
    dtype: str
    num_rows: int
    num_values: int

    @property
    def offsets_path(self) -> Path:
        """The file of ``num_rows + 1`` places."""
        return self.path.with_name(self.path.name + ".offsets")

    @property
    def whole(self) -> bool:
        """Whether both files are there in their full length."""
        try:
            values, offsets = self.path.stat().st_size, self.offsets_path.stat().st_size
        except OSError:
            return False
        return values == self.num_values * np.dtype(self.dtype).itemsize and offsets == (self.num_rows + 1) * 8

    def lengths(self) -> npt.NDArray[np.int32]:
        """The number of values of each row, ``(num_rows,)``."""
        return np.diff(np.fromfile(self.offsets_path, dtype=np.int64)).astype(np.int32)

    @contextmanager
    def open(self) -> "Iterator[RaggedRows]":
        """Opens the file to read rows."""
        # Read, not mapped: a mapped file's pages count as the process's memory.
        with self.path.open("rb", buffering=0) as values, self.offsets_path.open("rb", buffering=0) as offsets:
            yield RaggedRows(values, offsets, np.dtype(self.dtype))


class RaggedRows:
    """The rows of an open ``RaggedFile``."""

    def __init__(self, values: Any, offsets: Any, dtype: np.dtype[Any]) -> None:
        self._values = values
        self._offsets = offsets
        self._dtype = dtype

    def read(self, index: int) -> npt.NDArray[Any]:
        """One row."""
        ends = np.empty(2, dtype=np.int64)
        self._offsets.seek(index * 8)
        self._offsets.readinto(ends)
        row = np.empty(int(ends[1] - ends[0]), dtype=self._dtype)
        self._values.seek(int(ends[0]) * self._dtype.itemsize)
        self._values.readinto(row)
        return row

    def text(self, index: int) -> str:
        """One row of bytes as text in UTF-8."""
        return self.read(index).tobytes().decode()


class RaggedWriter:
    """Writes a ``RaggedFile`` row by row."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._path = path
        self._dtype = dtype
        self._offsets = array("q", [0])
        self._file: BinaryIO | None = None

    def __enter__(self) -> "RaggedWriter":
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        with self.file().offsets_path.open("wb") as offsets:
            self._offsets.tofile(offsets)
            offsets.flush()
            os.fsync(offsets.fileno())

    def append(self, row: npt.NDArray[Any] | bytes) -> None:
        """Writes one row."""
        assert self._file is not None
        self._file.write(row if isinstance(row, bytes) else row.tobytes())
        self._offsets.append(self._offsets[-1] + len(row))

    def file(self) -> RaggedFile:
        """What was written so far."""
        return RaggedFile(self._path, self._dtype, len(self._offsets) - 1, self._offsets[-1])
