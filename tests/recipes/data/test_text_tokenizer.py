import os
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import SPLITS
from rnn_blocks.recipes.data.settings import TokenizerSettings
from rnn_blocks.recipes.data.tokenizer import (
    bpe_tokenizer,
    char_tokenizer,
    count_vocabulary,
    read_vocabulary,
    word_tokenizer,
)
from rnn_blocks.recipes.language_model.data import TextDataModule

SAMPLE = "def wörter(self):\n    return [w for w in self.text.split() if w]\n\n\n# “quoted” <unk> <eos>\r\n"
ANY_TEXT = st.text(alphabet=st.characters(codec="utf-8"))


@cache
def bpe() -> Tokenizer:
    return bpe_tokenizer([SAMPLE] * 5, vocab_size=300)


@given(ANY_TEXT)
def test_bpe_gives_every_text_back(text: str) -> None:
    assert bpe().decode(bpe().encode(text).ids) == text


@given(st.text(alphabet=sorted(set(SAMPLE))))
def test_char_gives_every_text_of_known_characters_back(text: str) -> None:
    tokenizer = char_tokenizer([SAMPLE])
    encoding = tokenizer.encode(text)
    assert len(encoding.ids) == len(text)
    assert tokenizer.decode(encoding.ids) == text


WORDS = ["<unk>", "cat", "it's", "<eos>", "Straße", "=", "##s", "<eos", "eos>"]


@given(st.lists(st.sampled_from([word for word in WORDS if word != "<eos>"] + ["\n", "\n\n"])))
def test_word_gives_lines_of_known_words_back(parts: list[str]) -> None:
    tokenizer = word_tokenizer(WORDS)
    text = re.sub(r" ?\n ?", "\n", " ".join(parts))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_json_holds_the_whole_tokenizer() -> None:
    for tokenizer in (bpe(), char_tokenizer([SAMPLE]), word_tokenizer(WORDS)):
        again = Tokenizer.from_str(tokenizer.to_str())
        ids = tokenizer.encode(SAMPLE).ids
        assert again.encode(SAMPLE).ids == ids
        assert again.decode(ids) == tokenizer.decode(ids)


def test_bpe_learns_the_same_each_time_and_has_the_size_asked_for() -> None:
    assert bpe_tokenizer([SAMPLE] * 5, vocab_size=300).to_str() == bpe().to_str()
    assert bpe().get_vocab_size() == 300
    assert len(bpe().encode(SAMPLE).ids) < len(SAMPLE) / 1.3


def test_bpe_reads_no_more_than_its_share_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnn_blocks.recipes.data.tokenizer.BPE_TRAINING_BYTES", 3 * len(SAMPLE.encode()))
    taken = []

    def text():  # type: ignore[no-untyped-def]
        for i in range(100):
            taken.append(i)
            yield SAMPLE

    bpe_tokenizer(text(), vocab_size=260)
    assert taken == [0, 1, 2]


def test_word_counts_are_ordered_by_frequency_and_then_by_word() -> None:
    text = ["b a <eos> c\n", "c b <unk> d\n", "c\n"]
    assert count_vocabulary(text) == ["<unk>", "<eos>", "c", "b", "a", "d"]
    assert count_vocabulary(text, min_count=2) == ["<unk>", "<eos>", "c", "b"]
    assert count_vocabulary(text, vocab_size=3) == ["<unk>", "<eos>", "c"]


def test_counting_stays_bounded_and_keeps_the_frequent_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnn_blocks.recipes.data.tokenizer._DISTINCT_WORDS", 50)
    text = [f"the cat number{i} number{i + 1}x sat" for i in range(500)]
    words = count_vocabulary(text)
    assert words[2:5] == ["cat", "sat", "the"]
    assert len(words) <= 52


def test_a_vocabulary_file_gives_the_ids(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("the\n<unk>\n<eos>\ncat\n")
    assert read_vocabulary(path) == ["the", "<unk>", "<eos>", "cat"]
    assert word_tokenizer(read_vocabulary(path)).encode("the dog\n").ids == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the\n<eos>\n", r"words\.txt: the vocabulary has no <unk>, which stands for every word outside"),
        ("the\n<unk>\n", r"words\.txt: the vocabulary has no <eos>, which stands for the end of a line"),
        ("<unk>\n<eos>\nthe cat\n", r"words\.txt: line 3 is 'the cat'; a vocabulary has one word a line"),
        ("<unk>\n\n<eos>\n", r"words\.txt: line 2 is ''; a vocabulary has one word a line"),
        ("<unk>\n<eos>\nthe\nthe\n", r"words\.txt: line 4: 'the' is already in line 3"),
    ],
)
def test_a_vocabulary_that_cannot_serve_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_vocabulary(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "bpe", "vocab_size": 255}, "vocab_size 255: byte-level BPE needs at least 256"),
        ({"kind": "words"}, "tokenizer 'words': choose one of bpe, word, char"),
        ({"kind": "word", "vocab_size": 2}, "vocab_size 2: give at least 3"),
        ({"kind": "char", "vocab_size": 99}, "vocab_size 99: tokenizer char takes every character"),
        ({"kind": "bpe", "vocabulary": Path("w")}, "vocabulary w: only tokenizer word reads one, and this is bpe"),
        ({"kind": "word", "vocabulary": Path("w"), "vocab_size": 9}, "vocab_size 9: vocabulary w has its own size"),
        ({"kind": "word", "min_count": 0}, "min_count 0: give 1 or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenizerSettings(**settings)  # type: ignore[arg-type]
    if settings.get("vocab_size") == 255:
        with pytest.raises(InputError, match=message):
            bpe_tokenizer(["text"], 255)


def ptb() -> Path:
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    folder = Path(os.environ.get("RNN_BLOCKS_DATA", beside)) / "ptb"
    if not folder.is_dir():
        pytest.skip(f"no Penn Treebank in {folder}; set RNN_BLOCKS_DATA to the folder that holds ptb/")
    return folder


def test_penn_treebank_has_its_published_counts(tmp_path: Path) -> None:
    folder = ptb()
    train, val, test = (str(folder / f"ptb.{split}.txt.gz") for split in ("train", "valid", "test"))
    data = TextDataModule(train=train, val=val, test=test, tokenizer="word", cache_dir=str(tmp_path))
    data.prepare()
    assert [data.splits[split].num_tokens for split in SPLITS] == [929_589, 73_760, 82_430]
    assert data.vocabulary_size == 10_000
