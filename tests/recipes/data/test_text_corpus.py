import gzip
import os
import random
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import SPLITS, Corpus, blocks
from rnn_blocks.recipes.data.corpora.files import FileCorpus, read_text
from rnn_blocks.recipes.data.corpora.hub import HubCorpus
from rnn_blocks.recipes.data.corpora.remember import remembered
from rnn_blocks.recipes.data.corpora.stdlib import StandardLibrary
from rnn_blocks.recipes.data.tokenizer import bpe_tokenizer, word_tokenizer
from rnn_blocks.recipes.translation.corpora.files import ParallelFiles

TEXT = st.text(alphabet=st.one_of(st.sampled_from("ab '\n\t ."), st.characters(codec="utf-8")), max_size=200)


def whole(corpus: Corpus) -> dict[str, str]:
    return {split: "".join(corpus.pieces(split)) for split in SPLITS}


@given(TEXT, st.integers(1, 40), st.lists(st.integers(0, 200), max_size=4))
def test_blocks_are_the_text_whatever_pieces_it_comes_in(text: str, limit: int, cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(ends)]
    expected = list(blocks([text], limit))
    assert "".join(expected) == text
    assert all(0 < len(block) <= limit for block in expected)
    assert list(blocks(pieces, limit)) == expected


@given(st.lists(st.sampled_from(["word", "it's", "x=1", " ", "\n", "    ", "\n\n", "é"]), max_size=60))
def test_tokens_of_blocks_are_the_tokens_of_the_whole(parts: list[str]) -> None:
    text = "".join(parts)
    bpe = bpe_tokenizer(["it's a word = 1\n\n    word\n" * 20], vocab_size=280)
    words = word_tokenizer(["<unk>", "<eos>", "word", "it's"])
    # Only a run longer than the limit is cut anywhere; runs of these parts without a break stay below it.
    if all(len(run) < 100 for run in text.split()) and "          " * 10 not in text:
        for tokenizer in (bpe, words):
            cut = [i for block in blocks([text], limit=120) for i in tokenizer.encode(block).ids]
            assert cut == tokenizer.encode(text).ids


@pytest.mark.parametrize("packed", [False, True])
def test_one_file_is_split_by_position_at_ends_of_lines(tmp_path: Path, packed: bool) -> None:
    lines = "".join(f"line {i} with an é\n" for i in range(30_000)).encode()
    path = tmp_path / "text"
    path.write_bytes(gzip.compress(lines) if packed else lines)
    corpus = FileCorpus(path)
    corpus.fingerprint()
    text = whole(corpus)
    assert "".join(text.values()).encode() == lines
    assert all(part.endswith("\n") for part in text.values())
    shares = [len(text[split].encode()) / len(lines) for split in SPLITS]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=1e-4)
    assert [corpus.num_bytes(split) for split in SPLITS] == [len(text[split].encode()) for split in SPLITS]


@pytest.mark.parametrize("content", ["one long line " * 1000, "é" * 5001])
def test_a_file_without_lines_is_split_between_words_or_characters(tmp_path: Path, content: str) -> None:
    path = tmp_path / "text"
    path.write_text(content, encoding="utf-8")
    text = whole(FileCorpus(path))
    assert "".join(text.values()) == content
    assert 0 < len(text["val"]) < len(content) / 15
    assert content.startswith("é") or text["train"].endswith(" ")


def test_three_files_are_the_three_splits_and_gzip_has_the_fingerprint_of_its_text(tmp_path: Path) -> None:
    paths = [tmp_path / f"{split}.txt" for split in SPLITS]
    packed = [tmp_path / f"{split}.gz" for split in SPLITS]
    for split, plain, pack in zip(SPLITS, paths, packed, strict=True):
        plain.write_text(f"this is {split}\n")
        pack.write_bytes(gzip.compress(plain.read_bytes()))
    assert whole(FileCorpus(*paths)) == {split: f"this is {split}\n" for split in SPLITS}
    assert FileCorpus(*paths).fingerprint() == FileCorpus(*packed).fingerprint()
    paths[2].write_text("another text\n")
    assert FileCorpus(*paths).fingerprint() != FileCorpus(*packed).fingerprint()


def test_a_file_that_stands_for_several_splits_is_named_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    assert FileCorpus(one, one, one).name == str(one)
    assert FileCorpus(one, other, other).name == f"{one}, {other}"
    for name in ("one.txt.en", "one.txt.de"):
        (tmp_path / name).write_text("a\n")
    assert ParallelFiles({"train": one, "val": one}, ("en", "de")).name == str(one)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt: no such file"):
        FileCorpus(tmp_path / "nowhere.txt").fingerprint()


def test_a_pipe_is_refused_before_anybody_waits_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a text is read more than once, which a pipe cannot be"):
        FileCorpus(tmp_path / "pipe").fingerprint()
    with pytest.raises(InputError, match="no regular file"):
        next(read_text(tmp_path / "pipe"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is a folder"):
        FileCorpus(tmp_path).fingerprint()


@pytest.mark.parametrize("content", [b"", gzip.compress(b"")], ids=["plain", "packed"])  # a pack holds the time
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "none.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"none\.txt: the file is empty"):
        FileCorpus(path).fingerprint()


@pytest.mark.parametrize("before", [0, 5, 262_143, 262_144, 300_001])
@pytest.mark.parametrize("packed", [False, True])
def test_an_undecodable_byte_is_told_with_its_place(tmp_path: Path, before: int, packed: bool) -> None:
    data = b"a" * before + b"\xff" + b"b" * 9
    path = tmp_path / "latin.txt"
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(InputError, match=rf"latin\.txt: line 1 is not text in UTF-8: byte 0xff at place {before + 1} "):
        FileCorpus(path).fingerprint()


def test_a_character_cut_short_at_the_end_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "cut.txt"
    path.write_bytes(b"ab\xe2\x82")
    with pytest.raises(InputError, match="byte 0xe2 at place 3 of the line;"):
        FileCorpus(path).fingerprint()


def test_a_binary_file_is_told_with_the_place_of_its_zero_byte(tmp_path: Path) -> None:
    path = tmp_path / "wide.txt"
    path.write_bytes("é".encode() + "ab".encode("utf-16-le"))
    with pytest.raises(
        InputError, match=r"wide\.txt: line 1 is not text .*: byte 0x00 at place 4 of the line \(of a b"
    ):
        FileCorpus(path).fingerprint()


def test_gzip_cut_short_or_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.gz"
    good = gzip.compress(b"".join(b"%d\n" % i for i in range(9999)))
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match=r"text\.gz: the gzip file is cut short"):
        FileCorpus(path).fingerprint()
    path.write_bytes(good[:-8] + b"\0" * 8)
    with pytest.raises(InputError, match=r"text\.gz: the gzip file is damaged \(CRC check failed"):
        FileCorpus(path).fingerprint()
    path.write_bytes(good[:200] + b"\xff" * 200 + good[400:])
    with pytest.raises(InputError, match=r"text\.gz: the gzip file is damaged"):
        FileCorpus(path).fingerprint()


def test_all_files_are_looked_for_before_any_is_read(tmp_path: Path) -> None:
    undecodable = tmp_path / "train.txt"
    undecodable.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"test\.txt: no such file"):
        FileCorpus(undecodable, undecodable, tmp_path / "test.txt").fingerprint()


def test_reading_holds_a_piece_and_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    path.write_bytes(b"some words here\n" * 100_000)
    assert max(map(len, read_text(path))) < 300_000
    assert sum(map(len, read_text(path, 100, 1_000_000))) == 999_900


def test_a_big_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnn_blocks.recipes.data.corpora.remember._FROM_BYTES", 10)
    monkeypatch.setattr("rnn_blocks.recipes.data.corpora.remember._SETTLED_AFTER_NS", -1)
    path, reads = tmp_path / "big.txt", []

    def read() -> list[str | int]:
        reads.append(path.read_text())
        return [reads[-1]]

    path.write_text("a first text")
    assert [remembered(path, tmp_path / "notes", read) for _ in range(2)] == [["a first text"]] * 2
    path.write_text("a second text")
    assert remembered(path, tmp_path / "notes", read) == ["a second text"]
    assert reads == ["a first text", "a second text"]


@pytest.fixture(scope="module")
def library() -> dict[str, str]:
    return whole(StandardLibrary())


def test_the_splits_of_the_standard_library_are_of_like_text(library: dict[str, str]) -> None:
    sizes = {split: len(text.encode()) for split, text in library.items()}
    assert sum(sizes.values()) > 5_000_000
    assert sizes["train"] / sum(sizes.values()) == pytest.approx(0.9, abs=0.005)
    assert sizes["val"] == pytest.approx(sizes["test"], rel=0.05)

    def threes(text: str) -> npt.NDArray[np.int64]:
        ids = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)
        return (ids[:-2] * 128 + ids[1:-1]) * 128 + ids[2:]

    # A model of a character after two others finds them equally likely; by files they differ by a tenth.
    counts = np.bincount(threes(library["train"]), minlength=128**3).reshape(-1, 128) + 0.1
    bits = -np.log2(counts / counts.sum(1, keepdims=True)).ravel()
    means = {split: bits[threes(library[split])].mean() for split in SPLITS}
    assert means["val"] == pytest.approx(means["test"], rel=0.05)
    assert means["train"] == pytest.approx(means["test"], rel=0.1)


def test_no_text_of_the_standard_library_is_held_out_and_trained_on(library: dict[str, str]) -> None:
    def tens(text: str) -> list[str]:
        lines = text.splitlines()
        return ["\n".join(lines[i : i + 10]) for i in range(len(lines) - 9)]

    trained = set(tens(library["train"]))
    for split in ("val", "test"):
        held_out = tens(library[split])
        assert sum(lines in trained for lines in held_out) < 0.02 * len(held_out)  # licences, and the like


def test_every_line_of_the_standard_library_is_in_one_split_and_always_the_same(tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = [f"line {i} {'é' * draw.randrange(60)}\n" for i in range(9000)]
    ends = sorted(draw.sample(range(9000), 30))
    for number, (start, end) in enumerate(pairwise([0, *ends, 9000])):
        (tmp_path / f"{number:02}.py").write_text("".join(lines[start:end]), encoding="utf-8")
    library = StandardLibrary(tmp_path)
    fingerprint, text = library.fingerprint(), whole(library)
    assert sorted("".join(text.values()).splitlines()) == sorted("".join(lines).splitlines())
    for split, share in zip(SPLITS, (0.9, 0.05, 0.05), strict=True):
        found = [int(line.split()[1]) for line in text[split].splitlines()]
        assert found == sorted(found)
        assert len(found) / 9000 == pytest.approx(share, abs=0.02)
        assert library.num_bytes(split) == len(text[split].encode())
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert (StandardLibrary(moved).fingerprint(), whole(StandardLibrary(moved))) == (fingerprint, text)


def test_the_standard_library_as_it_was_split_is_there_by_a_stable_hash_of_paths() -> None:
    library = StandardLibrary(split_by="file")
    places = [library.split_of(f"folder/module_{i}.py") for i in range(20_000)]
    assert [places.count(split) / 20_000 for split in SPLITS] == pytest.approx([0.9, 0.05, 0.05], abs=0.01)
    modules = {path.name: path.read_text() for path in library.folder.glob("[a-c]*.py")}
    text = whole(library)
    assert all(module in text[library.split_of(name)] for name, module in modules.items())


def test_the_standard_library_leaves_out_tests_packages_and_undecodable_files(tmp_path: Path) -> None:
    for name in [
        "b.py",
        "a.py",
        "d.py",
        "e.py",
        "sub/c.py",
        "test/t.py",
        "sub/tests/t.py",
        "site-packages/p.py",
        "note.txt",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "latin.py").write_bytes(b"# \xff\n")
    for split_by in ("stretch", "file"):
        library = StandardLibrary(tmp_path, split_by=split_by)  # type: ignore[arg-type]
        library.fingerprint()
        assert library.skipped == 1
        lines = sorted("".join(whole(library).values()).splitlines())
        assert lines == ["# a.py", "# b.py", "# d.py", "# e.py", "# sub/c.py"]
        for text in whole(library).values():
            assert text.splitlines() == sorted(text.splitlines())


def test_a_python_without_its_library_is_told_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no source files of its standard library .*give the path of a text file"):
        StandardLibrary(tmp_path).fingerprint()


@pytest.fixture
def text_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    datasets.disable_progress_bars()
    return tmp_path


@pytest.mark.parametrize("kind", ["parquet", "json", "text"])
def test_a_dataset_in_the_hubs_formats_is_read_row_by_row(text_hub: Path, kind: str) -> None:
    folder = text_hub / "dataset"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = datasets.Dataset.from_dict({"text": [f"{split} row {i}" for i in range(100)]})
        if kind == "parquet":
            rows.to_parquet(folder / f"{split}.parquet")
        elif kind == "json":
            rows.to_json(folder / f"{split}.jsonl")
        else:
            (folder / f"{split}.txt").write_text("".join(f"{row}\n" for row in rows["text"]))
    corpus = HubCorpus(str(folder))
    first = corpus.fingerprint()
    names = {"train": "train", "val": "validation", "test": "test"}
    assert whole(corpus) == {split: "".join(f"{names[split]} row {i}\n" for i in range(100)) for split in SPLITS}
    assert HubCorpus(str(folder)).fingerprint() == first


def test_rows_keep_their_newlines_and_null_rows_are_left_out(text_hub: Path) -> None:
    folder = text_hub / "dataset"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_dict({"body": ["one\n", "", None, "two"], "label": [1, 2, 3, 4]}).to_parquet(
            folder / f"{split}.parquet"
        )
    assert whole(HubCorpus(str(folder), text_column="body"))["val"] == "one\n\ntwo\n"
    with pytest.raises(InputError, match=r"text_column 'text' is no column of text; the columns of text are: body"):
        HubCorpus(str(folder)).fingerprint()


def test_a_dataset_without_a_split_is_told_which_there_are(text_hub: Path) -> None:
    folder = text_hub / "dataset"
    folder.mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(folder / "train.parquet")
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(folder / "test.parquet")
    with pytest.raises(InputError, match=r"no split for val; .* there are: train, test\."):
        HubCorpus(str(folder)).fingerprint()


def test_an_unknown_dataset_is_named(text_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(text_hub)
    (text_hub / "empty").mkdir()
    with pytest.raises(InputError, match=r"hub:\./empty: the dataset cannot be loaded"):
        HubCorpus("./empty").fingerprint()
