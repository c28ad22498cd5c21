"""Plain and gzip text files: checked, hashed, and read from one byte to another."""

import codecs
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import SPLITS, Split, utf8_length
from rnn_blocks.recipes.data.corpora.plain import decode_line, is_utf16, no_text, plain_pieces
from rnn_blocks.recipes.data.corpora.remember import remembered

_READ_BYTES = 1 << 18
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Scan:
    """What one pass over a file tells: the hash of its text, as ``plain`` has it, and its (uncompressed) bytes."""

    digest: str
    num_bytes: int


class FileCorpus:
    r"""Text from files, plain or gzip, in UTF-8.

    One file is split by position: the first 90 % train, 5 % validation, 5 % test, cut at ends of lines.

    Args:
        train: the file to train on, or the only file.
        val: the validation file; with ``test``.
        test: the test file; with ``val``.
        memory: a folder in which the hashes of big files are kept; see ``remembered``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "lines.txt")
    ...     _ = path.write_text("a line\n" * 100)
    ...     corpus = FileCorpus(path)
    ...     _ = corpus.fingerprint()
    ...     [corpus.num_bytes(split) // 7 for split in SPLITS]
    [90, 5, 5]
    """

    def __init__(
        self, train: Path, val: Path | None = None, test: Path | None = None, *, memory: Path | None = None
    ) -> None:
        if (val is None) != (test is None):
            raise ValueError(f"val and test go together, got val={val} and test={test}")
        self._paths = [train] if val is None or test is None else [train, val, test]
        self._memory = memory
        self._ranges: dict[Split, tuple[Path, int, int]] = {}

    @property
    def name(self) -> str:
        """The paths, each once."""
        return ", ".join(map(str, dict.fromkeys(self._paths)))

    def fingerprint(self) -> str:
        """Reads all files through once; returns a hash of their text. See ``Corpus``."""
        # What can be seen at once comes before the first long read.
        for path in self._paths:
            _check_regular(path)
            with _open(path):
                pass
        found = {path: scan(path, self._memory) for path in dict.fromkeys(self._paths)}
        scans = [found[path] for path in self._paths]
        if len(scans) == 3:
            files = zip(SPLITS, self._paths, scans, strict=True)
            self._ranges = {split: (path, 0, text.num_bytes) for split, path, text in files}
        else:
            path, total = self._paths[0], scans[0].num_bytes
            ends = [0, _line_end(path, total * 90 // 100), _line_end(path, total * 95 // 100), total]
            self._ranges = {split: (path, ends[i], ends[i + 1]) for i, split in enumerate(SPLITS)}
        return hashlib.sha256(json.dumps([text.digest for text in scans]).encode()).hexdigest()

    def num_bytes(self, split: Split) -> int:
        """Bytes of a split's (uncompressed) text."""
        _, start, stop = self._range(split)
        return stop - start

    def pieces(self, split: Split) -> Iterator[str]:
        """A split's text, in order, in pieces."""
        return read_text(*self._range(split))

    def _range(self, split: Split) -> tuple[Path, int, int]:
        if not self._ranges:
            self.fingerprint()
        return self._ranges[split]


def read_text(path: Path, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """Yields the text of a file between two byte offsets (of the uncompressed text), piece by piece.

    See ``plain`` for what is text, and how marks and ends of lines are read.

    Raises:
        InputError: the file is missing, is no text in UTF-8 (with line and byte), or is damaged gzip.
    """
    return plain_pieces(_decoded(path, start, stop), start=start == 0)


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file without their ends.

    Raises:
        InputError: the file is missing, a line is no text in UTF-8 (with line and byte), or it is damaged gzip.
    """
    with open_text(path) as file:
        for number, data in enumerate(file, start=1):
            yield decode_line(str(path), number, data)


def scan(path: Path, memory: Path | None = None) -> Scan:
    """Reads a file through once: checks that it is text and hashes it.

    Args:
        path: a plain or gzip text file.
        memory: a folder in which the result for a big file is kept; see ``remembered``.

    Raises:
        InputError: as ``read_text``; also where the file is empty.
    """

    def read() -> list[str | int]:
        digest, num_bytes, empty = hashlib.sha256(), 0, True

        def as_it_is() -> Iterator[str]:
            nonlocal num_bytes
            for text in _decoded(path):
                num_bytes += utf8_length(text)
                yield text

        for text in plain_pieces(as_it_is()):
            digest.update(text.encode())
            empty = False
        if empty:
            raise InputError(f"{path}: the file is empty; give a file with text in it")
        return [digest.hexdigest(), num_bytes]

    digest, num_bytes = remembered(path, memory, read)
    return Scan(str(digest), int(num_bytes))


def _check_regular(path: Path) -> None:
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(f"{path}: no regular file: a text is read more than once, which a pipe cannot be")


@contextmanager
def _open(path: Path) -> Iterator[BufferedReader]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: this is a folder; give a text or gzip file") from None
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror})") from None
    with file:
        yield file


@contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked where it is gzip.

    Raises:
        InputError: the file cannot be read, or, while it is read, it is damaged gzip.
    """
    with _open(path) as file:
        if file.peek(2)[:2] != GZIP_MAGIC:  # a pipe cannot go back
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast(BinaryIO, unpacked)
        except EOFError:
            raise InputError(f"{path}: the gzip file is cut short; download or pack it again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: the gzip file is damaged ({error})") from None


def _read_bytes(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    _check_regular(path)
    with open_text(path) as file:
        file.seek(start)
        left = stop - start if stop is not None else None
        while data := file.read(_READ_BYTES if left is None else min(_READ_BYTES, left)):
            if left is not None:
                left -= len(data)
            yield data


def _decoded(path: Path, start: int = 0, stop: int | None = None) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = start
    for data in _read_bytes(path, start, stop):
        pending = len(decoder.getstate()[0])
        yield _decode(path, decoder, data, offset - pending)
        offset += len(data)
    pending = len(decoder.getstate()[0])
    yield _decode(path, decoder, b"", offset - pending, final=True)


def _decode(path: Path, decoder: codecs.IncrementalDecoder, data: bytes, offset: int, *, final: bool = False) -> str:
    try:
        text = decoder.decode(data, final)
    except UnicodeDecodeError as error:
        raise _no_text(path, offset + error.start, error.object[error.start]) from None
    if (place := text.find("\0")) >= 0:
        raise _no_text(path, offset + len(text[:place].encode()), 0)
    return text


def _no_text(path: Path, offset: int, byte: int) -> InputError:
    line, start, read = 1, 0, 0  # the line of the byte, and the offset at which that begins
    for data in _read_bytes(path, 0, offset):
        if ends := data.count(b"\n"):
            line, start = line + ends, read + data.rindex(b"\n") + 1
        read += len(data)
    with open_text(path) as file:
        utf16 = is_utf16(file.read(2))
    return no_text(str(path), line, offset - start + 1, byte, "convert the file to UTF-8", utf16)


def _line_end(path: Path, offset: int) -> int:
    """The first place from ``offset`` on to cut the text at: after a line, else a word, else a character."""
    if offset == 0:
        return 0
    ahead = next(_read_bytes(path, offset - 1, offset + _READ_BYTES), b"")  # from the byte before: it may end a line
    for mark in (b"\n", b" "):
        if (place := ahead.find(mark)) >= 0:
            return offset + place
    return next((offset + i for i, byte in enumerate(ahead[1:]) if byte & 0xC0 != 0x80), offset + len(ahead) - 1)
