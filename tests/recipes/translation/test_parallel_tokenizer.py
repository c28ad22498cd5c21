import json
import random
import re
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.plain import decode_line
from rnn_blocks.recipes.translation.pairs.codec import TextCodec
from rnn_blocks.recipes.translation.pairs.dropout import BpeDropout
from rnn_blocks.recipes.translation.pairs.settings import ParallelTokenizerSettings
from rnn_blocks.recipes.translation.pairs.tokenizer import (
    SPECIALS,
    bpe_tokenizer,
    char_tokenizer,
    decode,
    normalise,
    unigram_tokenizer,
    word_tokenizer,
)

LINES = ["a man, sitting.", "a man's dog isn't sitting", "Zwei Männer sitzen.", "twenty-one dogs: 21"] * 5
LINE = st.text(
    alphabet=st.one_of(
        st.sampled_from("ab ,.<>-'\t\u3000"),
        st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S", "Zs"]),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return bpe_tokenizer(LINES, vocab_size=320)


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return unigram_tokenizer(LINES, vocab_size=320)


@given(LINE)
def test_bpe_and_unigram_give_every_line_back_but_for_runs_of_whitespace(
    bpe: Tokenizer, unigram: Tokenizer, line: str
) -> None:
    expected = re.sub(r"\s+", " ", line).strip()
    for tokenizer in (bpe, unigram):
        assert decode(tokenizer, tokenizer.encode(line).ids) == expected == normalise(tokenizer, line)


@pytest.mark.parametrize(
    "line", ["a man, sitting.", "„Über“ — t-shirt’s", "한국어 हिन्दी 🙂", "▁a Ġb", "(a) b/c", "a ,b"]
)
def test_text_with_punctuation_and_unseen_characters_comes_back_exactly(
    bpe: Tokenizer, unigram: Tokenizer, line: str
) -> None:
    for tokenizer in (bpe, unigram, char_tokenizer([line]), word_tokenizer([line])):
        assert decode(tokenizer, tokenizer.encode(line).ids) == line


def test_the_special_ids_are_fixed_and_no_text_is_encoded_as_one() -> None:
    spelled = "<pad> <bos> <eos> <unk> a<eos>b"
    for tokenizer in (
        bpe_tokenizer([spelled] * 9, 400),
        unigram_tokenizer([spelled] * 9, 300),
        word_tokenizer([spelled]),
        char_tokenizer([spelled]),
    ):
        assert [tokenizer.id_to_token(i) for i in range(4)] == SPECIALS
        ids = tokenizer.encode(spelled).ids
        assert min(ids) > 3
        assert decode(tokenizer, ids) == spelled


def test_words_start_with_their_space_and_punctuation_stands_apart(bpe: Tokenizer) -> None:
    codec = TextCodec(bpe.to_str())
    (ids,) = codec.encode_source(["a man, sitting."])
    labels = codec.source_tokens(ids)
    assert labels[0] == "▁a"
    assert labels[-2:] == [".", "<eos>"]
    assert "".join(labels[:-1]) == "▁a▁man,▁sitting."
    assert "," in labels
    words = word_tokenizer(LINES)
    assert words.encode("a man, sitting.").tokens == [" a", " man", ",", " sitting", "."]
    assert word_tokenizer(["หนึ่งร้อย สี่"]).encode("สี่").tokens == [" สี่"]  # vowel marks stay in their word


def test_lowercased_text_is_given_back_lowercased() -> None:
    for tokenizer in (bpe_tokenizer(LINES, 300, lowercase=True), char_tokenizer(["abc"], lowercase=True)):
        assert decode(tokenizer, tokenizer.encode("A cab").ids[:1]) == "a"
        assert normalise(tokenizer, " A  Cab") == "a cab"


def test_a_vocabulary_of_words_keeps_the_most_frequent() -> None:
    tokenizer = word_tokenizer(["b a", "b c", "b a"], vocab_size=6)
    assert tokenizer.encode("a b c").tokens == [" a", " b", "<unk>"]
    assert decode(tokenizer, tokenizer.encode("a c b").ids) == "a<unk> b"


def test_decoding_ends_at_the_end_and_leaves_padding_out(bpe: Tokenizer) -> None:
    ids = bpe.encode("a man").ids
    assert decode(bpe, [1, *ids, 2, *ids]) == decode(bpe, [*ids, 0, 0]) == "a man"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sentencepiece"}, "tokenizer 'sentencepiece': choose one of bpe, unigram, word, char"),
        ({"kind": "unigram", "vocab_size": 259}, "vocab_size 259: tokenizer unigram needs at least 260"),
        ({"kind": "word", "vocab_size": 4}, "vocab_size 4: give at least 5"),
        ({"kind": "char", "vocab_size": 99}, "vocab_size 99: tokenizer char takes every character"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, str | int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ParallelTokenizerSettings(**settings)  # type: ignore[arg-type]


def test_a_codec_comes_back_from_its_state_and_says_when_there_is_none(bpe: Tokenizer) -> None:
    for codec in (TextCodec(bpe.to_str()), TextCodec(bpe.to_str(), word_tokenizer(["ein Mann"]).to_str())):
        again = TextCodec.from_state({"source": "corpus", **codec.state()})
        assert again.joint == codec.joint
        assert (again.source_vocab_size, again.target_vocab_size) == (codec.source_vocab_size, codec.target_vocab_size)
        assert again.encode_source(["a man", ""]) == [[*bpe.encode("a man").ids, 2], [2]]
    assert again.detokenize([[4, 5, 2]]) == [decode(again.target_tokenizer, [4, 5])]
    for state in (None, {}, {"source_tokenizer": None}):
        with pytest.raises(InputError, match="the checkpoint holds no tokenizer"):
            TextCodec.from_state(state)


def dropped_out(tokens: list[str], ranks: dict[tuple[str, str], int], rate: float, draw: random.Random) -> list[str]:
    """Algorithm 1 of Provilkov et al. 2020, as it is written."""
    while True:
        possible = [
            (ranks[pair], place)
            for place, pair in enumerate(pairwise(tokens))
            if pair in ranks and draw.random() >= rate
        ]
        if not possible:
            return tokens
        _, place = min(possible)
        tokens = [*tokens[:place], tokens[place] + tokens[place + 1], *tokens[place + 2 :]]


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_bpe_dropout_cuts_as_often_as_the_papers_algorithm(rate: float) -> None:
    tokenizer = bpe_tokenizer(["lowest lower low slow " * 5], vocab_size=275)
    ranks = {(a, b): i for i, (a, b) in enumerate(json.loads(tokenizer.to_str())["model"]["merges"])}
    draws, oracle, word = 6000, random.Random(1), "Ġlowest"
    expected = Counter(tuple(dropped_out(list(word), ranks, rate, oracle)) for _ in range(draws))
    cut = BpeDropout(tokenizer, rate)(["lowest"] * draws, seed="s")
    found = Counter(tuple(tokenizer.id_to_token(i) for i in ids.tolist()) for ids in cut)
    assert len(expected) > 5
    for tokens in expected | found:
        # Five standard deviations of the difference of two counts.
        assert abs(expected[tokens] - found[tokens]) <= 5 * (2 * max(expected[tokens], found[tokens])) ** 0.5 + 5


@given(LINE, st.sampled_from([0.0, 0.1, 0.7, 1.0]), st.text(max_size=3))
def test_bpe_dropout_gives_other_pieces_of_the_same_text_and_the_same_for_a_seed(
    bpe: Tokenizer, line: str, rate: float, seed: str
) -> None:
    dropout = BpeDropout(bpe, rate)
    (ids,) = dropout([line], seed)
    assert decode(bpe, ids.tolist()) == normalise(bpe, line)
    assert ids.tolist() == BpeDropout(bpe, rate)([line], seed)[0].tolist()
    if rate == 0.0:
        assert ids.tolist() == bpe.encode(line).ids
    if rate == 1.0:
        assert len(ids) == len((" " + normalise(bpe, line)).encode()) * bool(normalise(bpe, line))


_BYTES = bpe_tokenizer(["a"], 4 + 256)


@given(st.lists(st.integers(0, _BYTES.get_vocab_size() - 1), max_size=30))
def test_whatever_ids_are_written_are_one_line_without_control_characters(ids: list[int]) -> None:
    text = decode(_BYTES, ids)
    assert not {one for one in text if unicodedata.category(one) == "Cc"} | set(text) & set("\u2028\u2029")
    assert decode_line("text", 1, f"{text}\n".encode()) == text.removeprefix("\ufeff")
