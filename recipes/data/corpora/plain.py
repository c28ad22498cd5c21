r"""What text is, wherever it comes from: UTF-8, its lines, and its words.

- A byte order mark (U+FEFF) at the start of a text is no part of it; anywhere else it is a character like others.
- A line ends with a newline, or with a carriage return and a newline, which are read as a newline. Nothing else ends a
  line: neither a lone carriage return nor U+0085 or U+2028.
- Words stand between characters of Unicode's property White_Space, as tokenizers have it. The separators U+001C to
  U+001F, at which ``str.split`` cuts, are not among them, nor are characters without a width (U+200B, U+FEFF).
- Nothing else is changed: an accent that is a character of its own stays one.
"""

import re
from collections.abc import Iterable, Iterator

from rnn_blocks.recipes import InputError

BYTE_ORDER_MARK = "\ufeff"
WHITESPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""The characters of White_Space, for a class of a regular expression."""

_WORD = re.compile(f"[^{WHITESPACE}]+")


def words(text: str) -> list[str]:
    r"""The words of a text.

    >>> words("the cat\u2028sat\x1fstill ")
    ['the', 'cat', 'sat\x1fstill']
    """
    return _WORD.findall(text)


def is_blank(text: str) -> bool:
    """Whether there is no word in it."""
    return _WORD.search(text) is None


def plain(text: str) -> str:
    r"""A whole text without the mark at its start, its lines ended by newlines.

    >>> plain("\ufeffone\r\ntwo\rthree")
    'one\ntwo\rthree'
    """
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n")


def plain_pieces(pieces: Iterable[str], *, start: bool = True) -> Iterator[str]:
    r"""The same of a text that comes in pieces.

    Args:
        pieces: the text.
        start: whether its start is among them.

    >>> list(plain_pieces(["\ufeff", "one\r", "\ntwo"]))
    ['one', '\ntwo']
    """
    held = ""  # a carriage return that a newline may follow
    for piece in pieces:
        if not piece:
            continue
        text = held + (piece.removeprefix(BYTE_ORDER_MARK) if start else piece)
        start = False
        held = "\r" if text.endswith("\r") else ""
        if text := text.removesuffix("\r").replace("\r\n", "\n"):
            yield text
    if held:
        yield held


def given_text(name: str, text: str) -> str:
    """A text from the command line or a configuration, as ``plain`` has it.

    Args:
        name: of the option, for the message.
        text: what was given; bytes that are no UTF-8 come as lone surrogates.

    Raises:
        InputError: it is no text in UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        raise InputError(
            f"{name}: not text in UTF-8: byte 0x{byte:02x} at place {len(text[: error.start].encode()) + 1}"
        ) from None
    return plain(text)


def decode_line(name: str, number: int, data: bytes, then: str = "convert the file to UTF-8") -> str:
    r"""A line of a file without its end.

    Args:
        name: of the file, for messages.
        number: of the line, from 1.
        data: the line with its end.
        then: what the user can do about bytes that are no text.

    Raises:
        InputError: it is no text in UTF-8.

    >>> decode_line("text", 1, b"\xef\xbb\xbfone\r\n"), decode_line("text", 2, b"two\r")
    ('one', 'two\r')
    """
    if data.endswith(b"\n"):
        data = data[:-1].removesuffix(b"\r")
    try:
        line = data.decode()
    except UnicodeDecodeError as error:
        raise no_text(name, number, error.start + 1, data[error.start], then, number == 1 and is_utf16(data)) from None
    if (place := line.find("\0")) >= 0:
        raise no_text(name, number, len(line[:place].encode()) + 1, 0, then)
    return line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def no_text(name: str, line: int, place: int, byte: int, then: str, utf16: bool = False) -> InputError:
    """What is said of a byte that is not of a text in UTF-8.

    Args:
        name: of the file.
        line: its line, from 1.
        place: its place in the line, from 1.
        byte: the byte.
        then: what the user can do about it.
        utf16: whether the file begins with the mark of UTF-16.

    >>> print(no_text("train.en", 2, 7, 0xE4, "convert the file to UTF-8"))
    train.en: line 2 is not text in UTF-8: byte 0xe4 at place 7 of the line; convert the file to UTF-8
    """
    kind = " (it begins as UTF-16 does)" if utf16 else " (of a binary file, or of UTF-16)" if byte == 0 else ""
    return InputError(
        f"{name}: line {line} is not text in UTF-8: byte 0x{byte:02x} at place {place} of the line{kind}; {then}"
    )


def is_utf16(data: bytes) -> bool:
    """Whether the first bytes of a file are the mark of UTF-16 (or of UTF-32, which is like it)."""
    return data[:2] in (b"\xff\xfe", b"\xfe\xff")
