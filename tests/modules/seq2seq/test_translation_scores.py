"""BLEU, chrF and exact matches against sacreBLEU's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import BLEU, CHRF

from rnn_blocks import TranslationScores
from rnn_blocks.modules.seq2seq.chrf import CharacterFScore

TEXT = """the cat sat on a mat , Ein Hund läuft über die Straße . don't U.S. 3.14 1,000 x-y 이백 "q" & &amp; … É ß"""
WORDS = TEXT.split()
SENTENCES = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
CORPORA = st.lists(st.tuples(SENTENCES, SENTENCES, st.booleans()), min_size=1, max_size=8)


def by_sacrebleu(translations, references, lowercase):
    bleu = BLEU(smooth_method="none", lowercase=lowercase).corpus_score(translations, [references])
    return {"bleu": bleu.score, "chrf": CHRF(lowercase=lowercase).corpus_score(translations, [references]).score}


def near(sentence):
    """Nearly the same sentence."""
    return " ".join(word for place, word in enumerate(sentence.split()) if place != 4)


@given(CORPORA, st.booleans(), st.integers(1, 8))
def test_scores_are_those_of_sacrebleu_however_they_came_in(corpus, lowercase, size):
    translations = [near(theirs) if close else ours for ours, theirs, close in corpus]
    references = [theirs for _, theirs, _ in corpus]
    scores = TranslationScores(lowercase)
    for start in range(0, len(corpus), size):
        scores.update(translations[start : start + size], references[start : start + size])
    found = {name: value.item() for name, value in scores.compute().items()}
    exact = [ours == theirs for ours, theirs in zip(translations, references, strict=True)]
    assert found.pop("exact_match") == pytest.approx(100 * sum(exact) / len(exact))
    assert found == pytest.approx(by_sacrebleu(translations, references, lowercase), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("translations", "references"),
    [
        (["", "the cat sat on the mat"], ["all of this is missing", "the cat sat on a mat"]),  # nothing written
        (["zzz", "the cat sat on the mat"], ["all of this is missed", "the cat sat on a mat"]),  # nothing right
        (["a cat"], ["a cat"]),  # too short for words in fours and characters in sixes
        (["the cat sat"], [""]),
        ([""], [""]),
    ],
)
def test_scores_are_those_of_sacrebleu_at_the_edges(translations, references):
    scores = TranslationScores()
    scores.update(translations, references)
    found = {name: value.item() for name, value in scores.compute().items()}
    found.pop("exact_match")
    assert found == pytest.approx(by_sacrebleu(translations, references, False), rel=1e-4, abs=1e-4)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=4), st.booleans())
def test_chrf_is_sacrebleus_on_any_text(pairs, lowercase):
    translations, references = zip(*pairs, strict=True)
    chrf = CharacterFScore(lowercase)
    chrf.update(translations, references)
    expected = CHRF(lowercase=lowercase).corpus_score(list(translations), [list(references)]).score
    assert 100 * chrf.compute().item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("lowercase", [False, True])
def test_signatures_are_in_sacrebleus_words(lowercase):
    scores, lines = TranslationScores(lowercase), (["a b"], [["a b"]])
    for metric, signature in (
        (BLEU(smooth_method="none", lowercase=lowercase), scores.signature),
        (CHRF(lowercase=lowercase), scores.chrf_signature),
    ):
        metric.corpus_score(*lines)
        assert str(metric.get_signature()).split("|version")[0] == signature.split("|torchmetrics")[0]


def test_what_was_reset_is_forgotten():
    scores = TranslationScores()
    assert not scores.updated
    scores.update(["wrong"], ["the cat sat on the mat"])
    assert scores.updated
    scores.reset()
    assert not scores.updated
    scores.update(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert {name: value.item() for name, value in scores.compute().items()} == pytest.approx(
        {"bleu": 100, "chrf": 100, "exact_match": 100}
    )


@pytest.mark.parametrize(
    ("references", "says"), [(["einundzwanzig", "a b c"], False), (["eins", "a man, sits"], True), ([""], False)]
)
def test_bleu_says_something_where_a_reference_has_four_words(references, says):
    scores = TranslationScores()
    for reference in references:
        scores.update(["the cat sat on the mat"], [reference])
    assert scores.bleu_says_something is says
    scores.reset()
    scores.update(["one two three four"], ["one"])
    assert not scores.bleu_says_something


def test_as_many_references_as_translations_are_needed():
    with pytest.raises(ValueError, match="2 translations were given with 1 references"):
        TranslationScores().update(["a", "b"], ["a"])


def test_scores_are_reckoned_where_the_model_is(device):
    scores = TranslationScores().to(device)
    scores.update(["the cat sat on a mat"], ["the cat sat on the mat"])
    assert {value.device.type for value in scores.compute().values()} == {device.type}
    assert all(isinstance(value, torch.Tensor) for value in scores.compute().values())
