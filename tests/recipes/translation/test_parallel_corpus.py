import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from num2words import CONVERTER_CLASSES, num2words
from parallel_text import DE, EN, write, write_pairs

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.corpora.corpus import SPLITS
from rnn_blocks.recipes.translation.corpora.corpus import ParallelCorpus
from rnn_blocks.recipes.translation.corpora.files import ParallelFiles
from rnn_blocks.recipes.translation.corpora.hub import HubPairs
from rnn_blocks.recipes.translation.corpora.numbers import NumberSizes, SpelledNumbers

PAIRS = list(zip(EN, DE, strict=True))
PAGE = Path(__file__).parents[3] / "docs" / "recipes" / "translation.md"


def of(stem: Path | str) -> ParallelFiles:
    return ParallelFiles({"train": Path(stem)}, ("en", "de"))


def train(corpus: ParallelCorpus) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in corpus.pairs("train")]  # type: ignore[misc]


def test_the_same_pairs_come_from_aligned_files_and_columns_plain_or_gzip(tmp_path: Path) -> None:
    write_pairs(tmp_path / "plain", EN, DE)
    write(tmp_path / "packed.en.gz", EN)
    write(tmp_path / "packed.de", [f"{line}\r" for line in DE])  # with the ends of lines of another system
    columns = [f"{source}\t{target}" for source, target in PAIRS]
    write(tmp_path / "pairs.tsv", columns)
    write(tmp_path / "pairs.tsv.gz", columns)
    corpora = [of(tmp_path / name) for name in ("plain", "packed", "pairs.tsv", "pairs.tsv.gz")]
    for corpus in corpora:
        assert corpus.num_pairs("train") is None
        corpus.fingerprint()
        assert train(corpus) == PAIRS
        assert corpus.num_pairs("train") == len(PAIRS)
    prints = [corpus.fingerprint() for corpus in corpora]
    assert prints[0] == prints[1] != prints[2] == prints[3]
    assert corpora[0].place("train", 2, "target") == f"{tmp_path / 'plain.de'}: line 3"
    assert corpora[2].place("train", 2, "target") == f"{tmp_path / 'pairs.tsv'}: line 3, column 2"


def test_the_last_line_needs_no_newline_and_only_newlines_end_lines(tmp_path: Path) -> None:
    (tmp_path / "text.en").write_text("one\u2028two\x0cthree\nfour")
    (tmp_path / "text.de").write_text("eins\nvier\n")
    assert train(of(tmp_path / "text")) == [("one\u2028two\x0cthree", "eins"), ("four", "vier")]


def test_files_of_unequal_length_are_told_with_both_counts(tmp_path: Path) -> None:
    stem = write_pairs(tmp_path / "train", EN, DE[:-2])
    message = rf"{re.escape(stem)}\.en has 5 lines and {re.escape(stem)}\.de has 3: each line needs its translation"
    with pytest.raises(InputError, match=message):
        of(stem).fingerprint()


def test_bytes_that_are_no_text_are_told_by_file_and_line(tmp_path: Path) -> None:
    stem = write_pairs(tmp_path / "train", EN, DE)
    (tmp_path / "train.de").write_bytes("ein\nzwei M\xe4nner\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"train\.de: line 2 is not text in UTF-8: byte 0xe4 at place 7 of the line"):
        of(stem).fingerprint()
    (tmp_path / "train.de").write_bytes(b"ein\n\0\n")
    with pytest.raises(InputError, match=r"train\.de: line 2 is not text in UTF-8: byte 0x00 at place 1"):
        of(stem).fingerprint()


@pytest.mark.parametrize(("line", "columns"), [("a man", "1 column;"), ("a\tb\tc", "3 columns;")])
def test_a_line_without_two_columns_is_told_by_file_and_line(tmp_path: Path, line: str, columns: str) -> None:
    write(tmp_path / "pairs.tsv", ["a\tb", line])
    with pytest.raises(InputError, match=rf"pairs\.tsv: line 2 has {columns} give two, the source and its translation"):
        of(tmp_path / "pairs.tsv").fingerprint()


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(("given", "other"), [("en", "de"), ("de", "en")])
def test_one_side_given_for_both_is_told_by_what_they_begin_with(
    tmp_path: Path, given: str, other: str, end: str
) -> None:
    for language in (given, other):
        write(tmp_path / f"train.{language}{end}", ["a"])
    one, beside = tmp_path / f"train.{given}{end}", tmp_path / f"train.{other}{end}"
    with pytest.raises(InputError, match=f"for {one} and {beside} give what both begin with, {tmp_path / 'train'}$"):
        of(one)
    beside.unlink()
    of(one)  # a file of two columns that happens to be called so


def test_what_was_looked_for_is_named_where_a_file_is_missing(tmp_path: Path) -> None:
    stem = tmp_path / "train"
    looked_for = ", ".join(f"{stem}{end}" for end in ("", ".en", ".en.gz", ".de", ".de.gz"))
    with pytest.raises(InputError, match=rf"train '.*train': no such text\. Looked for .*: {re.escape(looked_for)}$"):
        of(stem)
    write(tmp_path / "train.en", EN)
    with pytest.raises(InputError, match=r"no such text; only .*train\.en is there\. Looked for"):
        of(stem)


def test_an_empty_or_damaged_file_is_named(tmp_path: Path) -> None:
    stem = write_pairs(tmp_path / "train", EN, [])
    with pytest.raises(InputError, match=r"train\.de: the file is empty"):
        of(stem).fingerprint()
    (tmp_path / "train.de").write_bytes(b"\x1f\x8bno gzip at all")
    with pytest.raises(InputError, match=r"train\.de: the gzip file is damaged"):
        of(stem).fingerprint()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "dataset"
    folder.mkdir()
    return folder


def save(folder: Path, rows: dict[str, list[Any]], splits: tuple[str, ...] = ("train", "validation")) -> None:
    for split in splits:
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize("kind", ["translation", "columns"])
def test_a_hub_dataset_gives_its_translations_with_or_without_a_test_split(hub: Path, kind: str) -> None:
    rows: dict[str, list[Any]] = {"translation": [{"en": en, "de": de, "fr": ""} for en, de in PAIRS]}
    if kind == "columns":
        rows = {"en": EN, "de": DE, "id": list(range(5))}
    save(hub, rows)
    corpus = HubPairs(str(hub), None, ("de", "en"))
    first = corpus.fingerprint()
    assert corpus.splits == ("train", "val")
    assert train(corpus) == [(de, en) for en, de in PAIRS]
    assert corpus.num_pairs("val") == 5
    assert corpus.place("val", 4, "source").endswith("validation, row 4, de")
    assert HubPairs(str(hub), None, ("de", "en")).fingerprint() == first
    assert HubPairs(str(hub), None, ("en", "de")).fingerprint() != first
    save(hub, rows, ("test",))
    assert HubPairs(str(hub), None, ("de", "en")).splits == SPLITS


def test_a_hub_dataset_without_the_column_or_language_is_told_which_there_are(hub: Path) -> None:
    save(hub, {"translation": [{"en": "a", "de": None}], "id": [1]})
    assert train(HubPairs(str(hub), None, ("en", "de"))) == [("a", "")]
    with pytest.raises(InputError, match=r"column 'translation' has no fr; it has: (en, de|de, en)$"):
        HubPairs(str(hub), None, ("en", "fr")).fingerprint()
    with pytest.raises(InputError, match=r"no column 'text' of translations, .* the columns are: translation, id"):
        HubPairs(str(hub), None, ("en", "de"), "text").fingerprint()
    (hub / "validation.parquet").unlink()
    with pytest.raises(InputError, match=r"no split for val; the recipe needs train and validation, and there are: tr"):
        HubPairs(str(hub), None, ("en", "de")).fingerprint()


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 14), st.integers(1, 300), st.integers(1, 20), st.integers(1, 20), st.integers(1, 9))
def test_numbers_are_distinct_disjoint_and_every_digit_is_trained_on(
    digits: int, train: int, val: int, test: int, first: int
) -> None:
    greatest = first * 10**digits + 37
    numbers = NumberSizes(train + 10, val, test, greatest).numbers()
    assert {split: len(found) for split, found in numbers.items()} == {"train": train + 10, "val": val, "test": test}
    everything = [number for split in SPLITS for number in numbers[split]]
    assert len(set(everything)) == len(everything)
    assert 0 <= min(everything) <= max(everything) <= greatest
    assert max(numbers["val"] + numbers["test"]) >= 10 <= min(numbers["val"] + numbers["test"])
    assert numbers == NumberSizes(train + 10, val, test, greatest).numbers()


def test_lengths_of_numbers_are_equally_frequent_as_far_as_there_are_so_many() -> None:
    numbers = NumberSizes().numbers()
    lengths = [sum(len(str(n)) == digits for n in numbers["train"]) for digits in range(1, 7)]
    assert lengths[0] == 10
    assert lengths[1] >= 81
    assert lengths[2] >= 810
    assert max(lengths[4:]) - min(lengths[4:]) <= 1
    assert set(range(10)) <= set(numbers["train"])
    held_out = numbers["val"] + numbers["test"]
    assert all(sum(len(str(n)) == digits for n in held_out) > 300 for digits in (4, 5, 6))


@pytest.mark.parametrize("languages", [("en", "de"), ("fr", "ko"), ("de", "en")])
def test_numbers_are_spelled_in_any_two_languages(languages: tuple[str, str]) -> None:
    corpus = SpelledNumbers(languages, NumberSizes(train=50, val=9, test=9, greatest=9999))
    for split in SPLITS:
        pairs = list(corpus.pairs(split))
        numbers = [int(re.findall(r": (\d+) in", corpus.place(split, i, "target"))[0]) for i in range(len(pairs))]
        assert (
            [tuple(num2words(n, lang=lang) for lang in languages) for n in numbers]
            == pairs
            == list(corpus.pairs(split))
        )
        assert len(pairs) == corpus.num_pairs(split)
    assert corpus.fingerprint() != SpelledNumbers(languages[::-1], NumberSizes(50, 9, 9, 9999)).fingerprint()


def test_a_language_that_num2words_lacks_is_told_with_those_it_has() -> None:
    for languages in (("en", "xx"), ("xx", "en")):
        with pytest.raises(
            InputError, match=r"language 'xx': num2words has no such language; it has: .*de, .*ko, "
        ) as e:
            SpelledNumbers(languages, NumberSizes())
        assert all(language in str(e.value) for language in CONVERTER_CLASSES)


def test_a_number_that_cannot_be_spelled_is_told_before_the_long_work() -> None:
    with pytest.raises(InputError, match=r"num2words cannot spell \d+ in language 'am' .* smaller numbers_max"):
        SpelledNumbers(("en", "am"), NumberSizes()).fingerprint()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"greatest": 5}, "numbers_max 5: give 9 to 10\\^15"),
        ({"greatest": 10**16}, "numbers_max 10000000000000000: give 9 to 10\\^15"),
        ({"val": 0}, "numbers_val 0: give 1 or more"),
        (
            {"greatest": 999},
            r"numbers_max 999: too few to hold out 1000 \+ 1000; raise it, or ask for 99 "
            "at most by numbers_val and numbers_test",
        ),
        (
            {"greatest": 9999, "val": 9, "test": 9},
            "numbers_max 9999: too few to train on 30000; raise it, or ask for 9982 at most by numbers_train",
        ),
    ],
)
def test_more_numbers_than_there_are_is_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NumberSizes(**sizes)


def test_the_greatest_number_of_the_page_leaves_enough_to_train_on() -> None:
    [greatest] = re.findall(r"--data\.numbers_max (\d+)", PAGE.read_text())
    numbers = NumberSizes(greatest=int(greatest)).numbers()
    assert {split: len(found) for split, found in numbers.items()} == {"train": 30_000, "val": 1_000, "test": 1_000}
