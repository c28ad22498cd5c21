import errno
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data import store
from rnn_blocks.recipes.data.corpora.corpus import SPLITS
from rnn_blocks.recipes.data.corpora.files import FileCorpus
from rnn_blocks.recipes.data.settings import TokenizerSettings
from rnn_blocks.recipes.data.store import default_cache_dir, prepare_text, write_tokens
from rnn_blocks.recipes.data.tokenizer import char_tokenizer

WORDS = TokenizerSettings("word")


@pytest.fixture
def text_corpus(tmp_path: Path) -> FileCorpus:
    path = tmp_path / "sea.txt"
    path.write_text("".join(f"the öpen sea number {i % 7}\n" for i in range(2000)), encoding="utf-8")
    return FileCorpus(path)


def test_the_files_hold_the_ids_and_the_counts_of_the_text(text_corpus: FileCorpus, tmp_path: Path) -> None:
    prepared = prepare_text(text_corpus, WORDS, tmp_path / "cache")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(prepared.tokenizer_json)
    for split in SPLITS:
        text = "".join(text_corpus.pieces(split))
        ids = np.fromfile(prepared.splits[split].path, dtype=np.uint16)
        assert prepared.splits[split].dtype == "uint16"
        assert ids.tolist() == tokenizer.encode(text).ids
        assert prepared.splits[split].num_tokens == len(ids)
        assert prepared.splits[split].num_bytes == len(text.encode())


def test_a_vocabulary_beyond_16_bits_takes_32(tmp_path: Path) -> None:
    characters = "".join(map(chr, range(0x10000, 0x10000 + 70_000)))
    file = write_tokens(tmp_path / "ids", [characters], char_tokenizer([characters]))
    assert file.dtype == "uint32"
    assert np.fromfile(file.path, dtype=np.uint32).tolist() == list(range(1, 70_001))


def test_the_same_text_and_settings_are_found_again(
    text_corpus: FileCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_text(text_corpus, WORDS, tmp_path / "cache")
    monkeypatch.setattr(store, "_make", None)  # calling it would raise
    assert prepare_text(text_corpus, WORDS, tmp_path / "cache") == first


def test_other_text_and_other_settings_are_made_anew(text_corpus: FileCorpus, tmp_path: Path) -> None:
    vocabulary = tmp_path / "words"
    vocabulary.write_text("<unk>\n<eos>\nsea\n")
    other = tmp_path / "other.txt"
    other.write_text("the same words in another order\n" * 99)
    made = [
        prepare_text(text_corpus, WORDS, tmp_path),
        prepare_text(text_corpus, TokenizerSettings("word", min_count=2000), tmp_path),
        prepare_text(text_corpus, TokenizerSettings("word", vocab_size=5), tmp_path),
        prepare_text(text_corpus, TokenizerSettings("word", vocabulary=vocabulary), tmp_path),
        prepare_text(text_corpus, TokenizerSettings("char"), tmp_path),
        prepare_text(FileCorpus(other), WORDS, tmp_path),
    ]
    vocabulary.write_text("<unk>\n<eos>\nopen\n")
    made.append(prepare_text(text_corpus, TokenizerSettings("word", vocabulary=vocabulary), tmp_path))
    assert len({prepared.splits["train"].path for prepared in made}) == len(made)


def test_a_file_cut_short_in_the_cache_is_made_anew(text_corpus: FileCorpus, tmp_path: Path) -> None:
    prepared = prepare_text(text_corpus, WORDS, tmp_path)
    path = prepared.splits["val"].path
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    assert prepare_text(text_corpus, WORDS, tmp_path) == prepared
    assert path.read_bytes() == content


def test_what_a_killed_run_left_behind_is_never_used(text_corpus: FileCorpus, tmp_path: Path) -> None:
    code = """if True:
        import os, sys, signal
        from pathlib import Path
        from rnn_blocks.recipes.data import store
        from rnn_blocks.recipes.data.corpora.files import FileCorpus
        from rnn_blocks.recipes.data.settings import TokenizerSettings
        done = store.write_tokens
        def die_at_the_second(path, *rest, **options):
            if path.stem == "val":
                path.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return done(path, *rest, **options)
        store.write_tokens = die_at_the_second
        store.prepare_text(FileCorpus(Path(sys.argv[1])), TokenizerSettings("word"), Path(sys.argv[2]))
    """
    cache = tmp_path / "cache"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "sea.txt"), str(cache)], check=False)
    assert killed.returncode == -9
    assert [path.name for path in cache.rglob("val.bin")] == ["val.bin"]
    prepared = prepare_text(text_corpus, WORDS, cache)
    assert all(file.whole for file in prepared.splits.values())
    assert not list(cache.rglob("*.partial"))


@pytest.mark.processes
def test_several_processes_at_once_make_it_once(text_corpus: FileCorpus, tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from rnn_blocks.recipes.data import store
        from rnn_blocks.recipes.data.corpora.files import FileCorpus
        from rnn_blocks.recipes.data.settings import TokenizerSettings
        make = store._make
        def noted(*arguments):
            with open(sys.argv[2] + "/made", "a") as file:
                file.write("x")
            make(*arguments)
        store._make = noted
        store.prepare_text(FileCorpus(Path(sys.argv[1])), TokenizerSettings("bpe", 300), Path(sys.argv[2]))
    """
    arguments = [sys.executable, "-c", code, str(tmp_path / "sea.txt"), str(tmp_path)]
    processes = [subprocess.Popen(arguments) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (tmp_path / "made").read_text() == "x"


def test_a_cache_folder_that_cannot_be_made_is_told(text_corpus: FileCorpus, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/cache: cannot be written \(Not a directory\); give another folder"):
        prepare_text(text_corpus, WORDS, tmp_path / "file" / "cache")


def test_a_full_disk_is_told_and_nothing_is_left(text_corpus: FileCorpus, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cache: no room for the token files \(File too large\); give another"):
            prepare_text(text_corpus, WORDS, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.suffix for path in (tmp_path / "cache" / "text").iterdir()] in ([], [".lock"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_and_quota_are_told_alike(
    text_corpus: FileCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no room for the token files"):
        prepare_text(text_corpus, WORDS, tmp_path)


def test_an_unreadable_vocabulary_is_told_before_the_text_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"words\.txt: no such file"):
        prepare_text(
            FileCorpus(tmp_path / "absent"), TokenizerSettings("word", vocabulary=tmp_path / "words.txt"), tmp_path
        )


def test_the_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("RNN_BLOCKS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == Path("/home/someone/.cache/rnn-blocks")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert default_cache_dir() == Path("/fast/rnn-blocks")
    monkeypatch.setenv("RNN_BLOCKS_CACHE", "/own")
    assert default_cache_dir() == Path("/own")


def test_text_is_taken_a_few_blocks_at_a_time(tmp_path: Path) -> None:
    path, sizes = tmp_path / "ids", []

    def text() -> Iterator[str]:
        for _ in range(2000):
            sizes.append(path.stat().st_size)
            yield "x" * 1000

    write_tokens(path, text(), char_tokenizer(["x"]))
    lag = [2 * 1000 * i - size for i, size in enumerate(sizes)]
    assert max(lag) <= 2 * 1000 * 2 * store._BLOCKS_AT_ONCE


def test_long_work_shows_a_bar_on_stderr(
    text_corpus: FileCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_text(text_corpus, WORDS, tmp_path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("rnn_blocks.recipes.data.progress.SHOWN_AFTER_SECONDS", 1e-6)
    monkeypatch.setattr("rnn_blocks.recipes.data.progress.LOG_EVERY_SECONDS", 1e-6)
    prepare_text(text_corpus, TokenizerSettings("char"), tmp_path)
    shown = capsys.readouterr()
    assert "tokenizing train" in shown.err
    assert shown.out == ""


def test_counts_on_disk_are_plain_json(text_corpus: FileCorpus, tmp_path: Path) -> None:
    prepared = prepare_text(text_corpus, WORDS, tmp_path)
    counts = json.loads((prepared.splits["train"].path.parent / "counts.json").read_text())
    assert set(counts["train"]) == {"dtype", "num_tokens", "num_bytes", "num_unknown", "num_ends"}
    assert counts["train"]["num_tokens"] == prepared.splits["train"].num_tokens


def test_a_corpus_that_is_there_already_is_ready_at_once(text_corpus: FileCorpus, tmp_path: Path) -> None:
    prepare_text(text_corpus, WORDS, tmp_path)
    start = time.perf_counter()
    prepare_text(text_corpus, WORDS, tmp_path)
    assert time.perf_counter() - start < 1
