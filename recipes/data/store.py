"""A corpus's token ids on disk: made once, found again by content and settings."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import tokenizers
from filelock import FileLock

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import SPLITS, Corpus, Split, blocks, utf8_length
from rnn_blocks.recipes.data.progress import with_progress
from rnn_blocks.recipes.data.seen import Seeing, Seen, normal_form
from rnn_blocks.recipes.data.settings import TokenizerSettings
from rnn_blocks.recipes.data.tokenizer import END_OF_LINE, UNKNOWN

# Part of every key: raise it when the same text and settings would give other files.
_FORMAT = 3
# An Encoding takes about a hundred bytes a token; 256 KiB of text at once keep that at some ten megabytes.
_BLOCKS_AT_ONCE = 64

Made = TypeVar("Made")


@dataclass(frozen=True)
class TokenFile:
    """The token ids of one split, as raw integers on disk.

    Attributes:
        path: the file.
        dtype: ``uint16`` or ``uint32``.
        num_tokens: how many ids it holds.
        num_bytes: bytes of the text in UTF-8 that they stand for.
        num_unknown: how many of them are ``<unk>``.
        num_ends: how many of them are ``<eos>``.
    """

    path: Path
    dtype: str
    num_tokens: int
    num_bytes: int
    num_unknown: int = 0
    num_ends: int = 0

    @property
    def whole(self) -> bool:
        """Whether the file is there in its full length."""
        try:
            return self.path.stat().st_size == self.num_tokens * np.dtype(self.dtype).itemsize
        except OSError:
            return False


@dataclass(frozen=True)
class PreparedText:
    """A tokenized corpus.

    Attributes:
        fingerprint: hash of the corpus's text.
        tokenizer_json: the tokenizer, as ``tokenizers.Tokenizer.from_str`` reads it.
        splits: the token ids of each split.
        seen: what the training text held; None where it was not read.
    """

    fingerprint: str
    tokenizer_json: str
    splits: dict[Split, TokenFile]
    seen: Seen | None = None


def default_cache_dir() -> Path:
    """``$RNN_BLOCKS_CACHE``, else ``$XDG_CACHE_HOME/rnn-blocks``, else ``~/.cache/rnn-blocks``."""
    if own := os.environ.get("RNN_BLOCKS_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "rnn-blocks"


def cache_home(cache_dir: Path, kind: str) -> Path:
    """The folder for one kind of corpus below the cache folder, made where it is not there.

    Raises:
        InputError: it cannot be written.
    """
    home = cache_dir / kind
    with cache_errors(home):
        home.mkdir(parents=True, exist_ok=True)
    return home


def prepare_text(corpus: Corpus, settings: TokenizerSettings, cache_dir: Path) -> PreparedText:
    """Tokenizes a corpus, or finds what was made of the same text with the same settings before.

    Several processes may call it at once: one works, the others wait for it. The finished files appear all at once.

    Args:
        corpus: where the text comes from.
        settings: which tokenizer, and how it comes by its vocabulary.
        cache_dir: the folder below which the files lie.

    Raises:
        InputError: the text or the vocabulary cannot be read, or the cache folder cannot be written.
    """
    home = cache_home(cache_dir, "text")
    settings_key = settings.key()
    fingerprint = corpus.fingerprint()
    parts = [_FORMAT, tokenizers.__version__, fingerprint, settings_key]
    folder = home / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]

    def make(partial: Path) -> None:
        tokenizer = settings.build(lambda: _told(corpus, "train", "learning the vocabulary of"))
        _make(corpus, SPLITS, tokenizer, tokenizer.to_str(), partial)

    return find_or_make(folder, load=lambda: _load(folder, fingerprint), make=make)


def prepare_splits(corpus: Corpus, splits: Iterable[Split], tokenizer_json: str, cache_dir: Path) -> PreparedText:
    """As ``prepare_text``, of some splits alone, with a tokenizer that there is already.

    Args:
        corpus: where the text comes from.
        splits: which.
        tokenizer_json: the tokenizer.
        cache_dir: the folder below which the files lie.
    """
    home = cache_home(cache_dir, "text")
    fingerprint = corpus.fingerprint()
    parts = [_FORMAT, tokenizers.__version__, fingerprint, sorted(splits), tokenizer_json]
    folder = home / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]

    def make(partial: Path) -> None:
        _make(corpus, splits, tokenizers.Tokenizer.from_str(tokenizer_json), tokenizer_json, partial)

    return find_or_make(folder, load=lambda: _load(folder, fingerprint), make=make)


def find_or_make(folder: Path, *, load: Callable[[], Made | None], make: Callable[[Path], None]) -> Made:
    """Returns what a folder of the cache holds, and makes it first where it is not there.

    Several processes may call it at once: one makes it, the others wait. The folder appears at once, when it is whole.

    Args:
        folder: where it lies, below the cache folder.
        load: reads it, None where it is not there or not whole.
        make: writes its files into the folder that it is given.

    Raises:
        InputError: the cache folder cannot be written.
    """
    if found := load():
        return found
    with cache_errors(folder.parent), FileLock(folder.with_suffix(".lock")):
        if found := load():
            return found
        partial = folder.with_suffix(".partial")  # left behind by a run that was killed, if it is there
        for leftover in (partial, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        try:
            make(partial)
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    made = load()
    assert made is not None
    return made


def write_tokens(
    path: Path,
    text: Iterable[str],
    tokenizer: tokenizers.Tokenizer,
    dtype: str | None = None,
    seeing: Seeing | None = None,
) -> TokenFile:
    """Encodes blocks of text and writes the ids, a few blocks at a time.

    Args:
        path: the file to write.
        text: blocks of text.
        tokenizer: what encodes them.
        dtype: ``uint16`` or ``uint32``; the smaller that holds the vocabulary where it is not given.
        seeing: gathers what the text holds, where that is asked for.
    """
    dtype = dtype or ("uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "uint32")
    counts = dict.fromkeys(("num_tokens", "num_bytes", "num_unknown", "num_ends"), 0)
    special = {"num_unknown": tokenizer.token_to_id(UNKNOWN), "num_ends": tokenizer.token_to_id(END_OF_LINE)}
    stream = iter(text)
    with path.open("wb") as file:
        while batch := list(islice(stream, _BLOCKS_AT_ONCE)):
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                ids = np.array(encoding.ids, dtype=dtype)
                file.write(ids.tobytes())
                if seeing is not None:
                    seeing.add((), ids)
                counts["num_tokens"] += len(ids)
                for name, token in special.items():
                    counts[name] += int((ids == token).sum()) if token is not None else 0
            counts["num_bytes"] += sum(map(utf8_length, batch))
            if seeing is not None:
                seeing.add((normal_form(tokenizer, block) for block in batch), ())
        file.flush()
        os.fsync(file.fileno())
    return TokenFile(path, dtype, **counts)


def _told(corpus: Corpus, split: Split, doing: str) -> Iterator[str]:
    return with_progress(blocks(corpus.pieces(split)), f"{doing} {split}", corpus.num_bytes(split))


def _make(
    corpus: Corpus, splits: Iterable[Split], tokenizer: tokenizers.Tokenizer, tokenizer_json: str, folder: Path
) -> None:
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    counts = {}
    for split in splits:
        seeing = Seeing() if split == "train" else None
        file = write_tokens(folder / f"{split}.bin", _told(corpus, split, "tokenizing"), tokenizer, seeing=seeing)
        if seeing is not None:
            seen = seeing.seen(tokenizer.get_vocab_size()).state()
            (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")
        counts[split] = {name: value for name, value in asdict(file).items() if name != "path"}
    (folder / "counts.json").write_text(json.dumps(counts, indent=1), encoding="utf-8")


def _load(folder: Path, fingerprint: str) -> PreparedText | None:
    try:
        counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
        seen = Seen.from_state(json.loads((folder / "seen.json").read_bytes())) if "train" in counts else None
    except FileNotFoundError:
        return None
    splits: dict[Split, TokenFile] = {split: TokenFile(folder / f"{split}.bin", **counts[split]) for split in counts}
    if not all(file.whole for file in splits.values()):
        return None
    return PreparedText(fingerprint, tokenizer_json, splits, seen)


@contextmanager
def cache_errors(home: Path) -> Iterator[None]:
    """Tells of a folder below the cache folder that cannot be written, and what to do about it."""
    cache_dir = home.parent
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(
                f"cache folder {cache_dir}: no room for the token files ({reason}); {_ELSEWHERE}"
            ) from error
        raise InputError(f"cache folder {cache_dir}: cannot be written ({reason}); {_ELSEWHERE}") from error


_ELSEWHERE = "give another folder as cache_dir, or set RNN_BLOCKS_CACHE"
