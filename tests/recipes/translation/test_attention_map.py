"""Pictures of where a translation looked, whatever its tokens are."""

import warnings
from io import BytesIO

import pytest
import torch
from matplotlib.font_manager import findfont
from PIL import Image

from rnn_blocks.recipes.translation.attention_map import (
    attention_text,
    cells_of,
    draw_attention,
    font_families,
    letters_of,
)
from rnn_blocks.recipes.translation.pairs.tokenizer import bpe_tokenizer, token_text


@pytest.mark.parametrize("token", ["$$", "$5$", "$\\foo$", "{", "\\", "_^"])
def test_a_token_is_drawn_as_it_is_and_not_as_a_formula(token):
    figure = draw_attention(torch.eye(2), [token, "a"], ["b", token])
    file = BytesIO()
    figure.savefig(file, format="png")
    assert Image.open(file).width > 100
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [token, "a"]
    assert not any(label.get_parse_math() for label in [*axes.get_xticklabels(), *axes.get_yticklabels()])


def test_what_cannot_be_shown_is_told_as_an_escape():
    tokenizer = bpe_tokenizer(["ü"], 4 + 256)
    labels = [token_text(tokenizer, token) for token in range(tokenizer.get_vocab_size())]
    assert all(label.isprintable() for label in labels)
    assert {r"\x0b", r"\x1b", r"\x7f", r"\n", "▁", "a", "<eos>"} <= set(labels)
    shown = [label for label in labels if "\\" in label]
    square = torch.eye(len(shown))
    draw_attention(square, shown, shown).savefig(BytesIO(), format="png")  # a missing glyph would warn
    assert len(attention_text(square, shown, shown).splitlines()) == len(shown) + 1


def test_letters_that_the_usual_font_lacks_are_drawn_with_an_installed_one_that_has_them():
    usual, other = (letters_of(findfont(name)) for name in ("DejaVu Sans", "STIXGeneral"))  # both come with matplotlib
    letter = next(chr(code) for code in sorted(other - usual) if chr(code).isprintable())
    families = font_families(["ein", letter])
    assert families[0] == "DejaVu Sans"
    assert len(families) == 2
    figure = draw_attention(torch.eye(2), ["a", letter], ["ein", "Mann"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a missing glyph
        figure.savefig(BytesIO(), format="png")


def test_a_letter_that_no_font_has_is_no_error():
    assert font_families(["\U000e1234"]) == ["DejaVu Sans"]
    assert letters_of("no/such/font.ttf") == frozenset()


def test_rows_of_text_stand_below_each_other_whatever_letters_their_labels_have():
    labels = ["한글", "b", "😀", "e\N{COMBINING ACUTE ACCENT}"]
    _, *rows = attention_text(torch.eye(4), labels, labels).splitlines()
    assert len({cells_of(row[: row.index(label) + len(label)]) for row, label in zip(rows, labels, strict=True)}) == 1
