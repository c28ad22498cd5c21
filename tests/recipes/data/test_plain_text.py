"""One rule for marks, ends of lines and words, in whatever text comes by."""

import gzip
import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import options, recipe, tiny, tiny_translation
from tokenizers import pre_tokenizers

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora import files
from rnn_blocks.recipes.data.corpora.corpus import SPLITS, blocks
from rnn_blocks.recipes.data.corpora.files import FileCorpus, read_lines, read_text
from rnn_blocks.recipes.data.corpora.hub import HubCorpus
from rnn_blocks.recipes.data.corpora.plain import WHITESPACE, given_text, is_blank, plain, words
from rnn_blocks.recipes.data.tokenizer import bpe_tokenizer, count_vocabulary, read_vocabulary, word_tokenizer
from rnn_blocks.recipes.language_model.data import TextDataModule
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.translation.corpora.files import ParallelFiles
from rnn_blocks.recipes.translation.corpora.hub import HubPairs
from rnn_blocks.recipes.translation.translate import read_groups

SEPARATORS = {
    "file": "\x1c",
    "group": "\x1d",
    "record": "\x1e",
    "unit": "\x1f",
    "next line": "\x85",
    "no-break space": "\xa0",
    "vertical tab": "\x0b",
    "form feed": "\x0c",
    "carriage return": "\r",
    "tab": "\t",
    "ogham space": "\u1680",
    "mongolian vowel separator": "\u180e",
    "en quad": "\u2000",
    "hair space": "\u200a",
    "zero width space": "\u200b",
    "zero width non-joiner": "\u200c",
    "zero width joiner": "\u200d",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "narrow no-break space": "\u202f",
    "medium mathematical space": "\u205f",
    "word joiner": "\u2060",
    "ideographic space": "\u3000",
    "mark in the middle": "\ufeff",
    "combining acute": "\u0301",
}
NO_WORDS_END_THERE = {"file", "group", "record", "unit", "mongolian vowel separator", "word joiner", "combining acute"}
NO_WORDS_END_THERE |= {"zero width space", "zero width non-joiner", "zero width joiner", "mark in the middle"}

TEXT = st.text(
    alphabet=st.one_of(
        st.sampled_from(["a", "é", "\r", " ", "\n", *SEPARATORS.values()]),
        st.characters(codec="utf-8", exclude_characters="\0"),
    ),
    max_size=60,
)
EACH = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(TEXT)
def test_words_are_those_of_the_tokenizer(text: str) -> None:
    pieces = [word for word, _ in pre_tokenizers.WhitespaceSplit().pre_tokenize_str(text)]
    assert words(text) == pieces
    assert is_blank(text) == (not pieces)


def test_white_space_is_what_the_tokenizer_cuts_at() -> None:
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    cut = pre_tokenizers.WhitespaceSplit()
    spaces = [character for character in every if not cut.pre_tokenize_str(character)]
    assert spaces == [character for character in every if is_blank(character)]
    assert len(spaces) == 25
    assert all(character in spaces for character in WHITESPACE if character != "-")


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_every_word_of_the_training_text_is_known(texts: list[str]) -> None:
    text = plain("\n".join(texts))
    tokenizer = word_tokenizer(count_vocabulary([text]))
    assert tokenizer.encode(text).tokens == words(text.replace("\n", " <eos> "))


@given(st.lists(st.sampled_from(["word", "é", " ", "\n", *SEPARATORS.values()]), max_size=60))
def test_tokens_of_blocks_are_those_of_the_whole_at_any_separator(parts: list[str]) -> None:
    text = "".join(parts)
    vocabulary = count_vocabulary([text])
    for tokenizer in (word_tokenizer(vocabulary), bpe_tokenizer(["a word\n\n  word é\n" * 20], vocab_size=280)):
        if all(len(word) < 20 for word in words(text)) and max(map(len, text.split("word") + text.split("é"))) < 20:
            cut = [i for block in blocks([text], limit=40) for i in tokenizer.encode(block).ids]
            assert cut == tokenizer.encode(text).ids


@EACH
@given(content=TEXT, mark=st.booleans(), size=st.integers(1, 9))
def test_pieces_lines_and_groups_of_a_file_are_one_text(content: str, mark: bool, size: int, tmp_path: Path) -> None:
    path = tmp_path / "text"
    data = ("\ufeff" * mark + content).encode()
    path.write_bytes(data)
    expected = plain(data.decode())
    lines = expected.split("\n")
    lines = lines if lines[-1] else lines[:-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_READ_BYTES", size)
        assert "".join(read_text(path)) == expected
    if expected:
        splits = FileCorpus(path)
        assert "".join("".join(splits.pieces(split)) for split in SPLITS) == expected
    read = list(read_lines(path))
    assert read == lines or (read, lines) == ([""], [])  # a mark alone is an empty line
    assert [line for group in read_groups(io.BytesIO(data), "text", size=2) for line in group] == read


@pytest.mark.parametrize("name", SEPARATORS)
def test_a_separator_cuts_words_alike_in_text_and_vocabulary_files(name: str, tmp_path: Path) -> None:
    mark = SEPARATORS[name]
    text, vocabulary = tmp_path / "text.txt", tmp_path / "words.txt"
    text.write_bytes(("\ufeff" + f"a{mark}b c\r\nb c a{mark}b\r\n" * 30).encode())
    data = TextDataModule(str(text), tokenizer="word", batch_size=1, bptt=2, cache_dir=str(tmp_path / "cache"))
    data.prepare()
    found = data.tokenizer.get_vocab()
    expected = {f"a{mark}b", "b", "c"} if name in NO_WORDS_END_THERE else {"a", "b", "c"}
    assert set(found) == expected | {"<unk>", "<eos>"}
    tokens = data.splits["train"]
    assert found["<unk>"] not in np.fromfile(tokens.path, tokens.dtype)
    vocabulary.write_bytes("\ufeff".encode() + "\r\n".join(["<unk>", "<eos>", *sorted(expected)]).encode())
    assert read_vocabulary(vocabulary) == ["<unk>", "<eos>", *sorted(expected)]
    if name not in NO_WORDS_END_THERE:
        vocabulary.write_text(f"<unk>\n<eos>\na{mark}b\n", newline="")
        with pytest.raises(InputError, match=r"words\.txt: line 3 is .*; a vocabulary has one word a line"):
            read_vocabulary(vocabulary)


def test_marks_and_ends_of_lines_make_no_other_text(tmp_path: Path) -> None:
    text = "one two\n\nthree\u2028four\rfive\n" * 20
    dos = ("\ufeff" + text.replace("\n", "\r\n")).encode()
    for name, data in {"unix": text.encode(), "dos": dos, "dos.gz": gzip.compress(dos)}.items():
        (tmp_path / name).write_bytes(data)
    unix, *others = (FileCorpus(tmp_path / name) for name in ("unix", "dos", "dos.gz"))
    for other in others:
        assert other.fingerprint() == unix.fingerprint()
        assert [list(other.pieces(split)) for split in SPLITS] == [list(unix.pieces(split)) for split in SPLITS]


def test_rows_of_a_hub_dataset_are_read_as_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = {"text": ["\ufeffone\r\ntwo\r\n", "three\rfour"], "en": ["\ufeffone", "two\r\n"], "de": ["eins", "zwei"]}
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    assert "".join(HubCorpus(str(folder)).pieces("val")) == "one\ntwo\nthree\rfour\n"
    assert next(HubPairs(str(folder), None, ("en", "de")).pairs("train")) == ("one", "eins")


NO_TEXT: dict[str, tuple[bytes, str]] = {
    "latin-1": (
        "ein\nzwei Männer\n".encode("latin-1"),
        "line 2 is not text in UTF-8: byte 0xe4 at place 7 of the line",
    ),
    "latin-1 in line 1": ("Männer\n".encode("latin-1"), "line 1 is not text in UTF-8: byte 0xe4 at place 2"),
    "cp1252 quotes": ("one\n\n“two”".encode("cp1252"), "line 3 is not text in UTF-8: byte 0x93 at place 1"),
    "utf-16": ("one\ntwo\n".encode("utf-16"), "byte 0xff at place 1 of the line (it begins as UTF-16 does)"),
    "utf-16 big": ("\ufeffone\n".encode("utf-16-be"), "byte 0xfe at place 1 of the line (it begins as UTF-16 does)"),
    "utf-16 unmarked": (
        "one\n".encode("utf-16-le"),
        "at place 2 of the line (of a binary file, or of UTF-16)",
    ),
    "utf-32": ("one\n".encode("utf-32"), "byte 0xff at place 1 of the line (it begins as UTF-16 does)"),
    "zero": ("one\né\0\n".encode(), "line 2 is not text in UTF-8: byte 0x00 at place 3 of the line"),
    "cut character": (b"one\nab\xe2\x82", "line 2 is not text in UTF-8: byte 0xe2 at place 3 of the line"),
    "half a pair": (b"a\xed\xa0\x80b\n", "line 1 is not text in UTF-8: byte 0xed at place 2 of the line"),
    "too long": (b"one\n\xc0\xaf\n", "line 2 is not text in UTF-8: byte 0xc0 at place 1 of the line"),
    "shift-jis": ("猫\n".encode("shift-jis"), "line 1 is not text in UTF-8: byte 0x94 at place 1 of the line"),
}


@pytest.mark.parametrize("kind", NO_TEXT)
@pytest.mark.parametrize("read_bytes", [1, 3, 1 << 18])
def test_bytes_that_are_no_text_are_told_alike_with_file_line_and_byte(
    kind: str, read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_READ_BYTES", read_bytes)
    content, message = NO_TEXT[kind]
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    (tmp_path / "text.de").write_bytes(content)
    (tmp_path / "text.en").write_text("one\n" * 9)

    def told(read: Any) -> str:
        with pytest.raises(InputError) as error:
            read()
        return str(error.value)

    corpus = told(lambda: FileCorpus(path).fingerprint())
    assert corpus.startswith(f"{path}: line ")
    assert message in corpus
    assert corpus.endswith("; convert the file to UTF-8")
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(content))
    for same in (
        told(lambda: read_vocabulary(path)),
        told(lambda: list(read_lines(path))),
        told(lambda: FileCorpus(packed).fingerprint()).replace("packed.gz", "text.txt"),
        told(lambda: ParallelFiles({"train": tmp_path / "text"}, ("en", "de")).fingerprint()).replace(".de", ".txt"),
        told(lambda: list(read_groups(io.BytesIO(content), str(path)))).replace(
            "the lines before it are translated", "convert the file to UTF-8"
        ),
    ):
        assert same == corpus


@pytest.mark.parametrize("kind", NO_TEXT)
def test_no_command_reads_what_is_no_text(
    kind: str, finished_translation: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = NO_TEXT[kind]
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    (tmp_path / "train.en").write_bytes(content)
    (tmp_path / "train.de").write_bytes(content)
    stem = {f"data.{split}": tmp_path / "train" for split in ("train", "val", "test")}
    commands = {
        "language-model": ["fit", *tiny(path, tmp_path)],
        "translation fit": ["fit", *tiny_translation(tmp_path, tmp_path, **stem)],
        "translation": ["translate", *options(input=path, ckpt_path=finished_translation.path)],
    }
    for name, command in commands.items():
        assert recipe(*command, of=name.split()[0]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_prompts_are_read_as_the_text_was(finished_run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["generate", *options(ckpt_path=finished_run.path, max_tokens=5, seed=1)]
    written = []
    for prompt in ("def a\nb", "\ufeffdef a\r\nb"):
        assert recipe(*run, "--prompt", prompt) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]
    bad = "def \udce9"  # a byte of latin-1, as Python hands it over
    assert recipe(*run, "--prompt", bad) == 2
    assert "error: --prompt: not text in UTF-8: byte 0xe9 at place 5" in capsys.readouterr().err


@given(TEXT)
def test_what_is_given_on_the_command_line_is_plain_text(text: str) -> None:
    assert given_text("--prompt", text) == plain(text)
    with pytest.raises(InputError, match=r"--prompt: not text in UTF-8: byte 0xff at place \d+"):
        given_text("--prompt", f"{text}\udcff")
