import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn
from parallel_text import DE, EN, small_data, write, write_pairs

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.translation.corpora.numbers import SpelledNumbers
from rnn_blocks.recipes.translation.pairs.codec import TextCodec
from rnn_blocks.recipes.translation.pairs.data import ParallelDataModule
from rnn_blocks.recipes.translation.pairs.store import PairFile


def numbers(folder: Path, **options: Any) -> ParallelDataModule:
    sizes = {"numbers_train": 60, "numbers_val": 8, "numbers_test": 8, "numbers_max": 9999}
    return ParallelDataModule(**(sizes | {"cache_dir": str(folder)} | options))


def attached(data: ParallelDataModule, **trainer: Any) -> ParallelDataModule:
    settings = {"limit_train_batches": 1.0, "current_epoch": 0, "state": SimpleNamespace(fn=TrainerFn.FITTING)}
    data.trainer = SimpleNamespace(**settings, **trainer)  # type: ignore[assignment]
    return data


def made(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("counts.json"))


def stored_lines(pairs: PairFile, side: str) -> list[str]:
    with getattr(pairs, f"{side}_text").open() as rows:
        return [rows.text(i) for i in range(pairs.source.num_rows)]


@pytest.mark.parametrize("tokenizer", ["bpe", "unigram", "word", "char"])
@pytest.mark.parametrize("joint", [True, False])
def test_each_tokenizer_serves_both_sides_together_or_each_its_own(tmp_path: Path, tokenizer: str, joint: bool) -> None:
    size = {"vocab_size": 280} if tokenizer in ("bpe", "unigram") else {}
    data = small_data(tmp_path, tokenizer=tokenizer, joint=joint, batch_tokens=200, max_length=90, **size)
    assert data.joint == data.codec.joint == joint
    assert (data.source_tokenizer.to_str() == data.target_tokenizer.to_str()) == joint
    batch = next(iter(data.val_dataloader()))
    assert data.detokenize(batch.target_outputs.tolist()) == batch.references
    assert int(batch.source.max()) < data.source_vocab_size
    assert int(batch.target_outputs.max()) < data.target_vocab_size
    (ids,) = data.encode_source(["two dogs, sitting."])
    assert data.source_tokens(ids)[-1] == "<eos>"
    if joint:
        assert data.source_tokenizer.encode("ein Mann").ids == data.target_tokenizer.encode("ein Mann").ids
    if tokenizer == "word":
        assert data.source_vocab_size == (27 if joint else 16)


def test_the_default_corpus_is_numbers_in_english_and_german_with_few_types(tmp_path: Path) -> None:
    data = numbers(tmp_path)
    assert data.source_vocab_size <= 400
    assert {split: pairs.source.num_rows for split, pairs in data.splits.items()} == {"train": 60, "val": 8, "test": 8}
    held_out = {line for split in ("val", "test") for line in stored_lines(data.splits[split], "source")}
    assert len(held_out) == 16
    assert not held_out & set(stored_lines(data.splits["train"], "source"))
    assert "null" in stored_lines(data.splits["train"], "target")
    assert numbers(tmp_path, target_lang="ko").splits["test"] != data.splits["test"]


def test_pairs_are_spelled_and_tokenized_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = numbers(tmp_path)
    first.prepare()

    def never(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(SpelledNumbers, "pairs", never)
    again = numbers(tmp_path, seed=5, batch_tokens=999, max_ratio=4.0)
    assert again.splits == first.splits
    with pytest.raises(AssertionError, match="read again"):
        numbers(tmp_path, target_lang="fr").prepare()


def test_other_text_or_settings_are_tokenized_anew_and_damaged_files_too(tmp_path: Path) -> None:
    small_data(tmp_path).prepare()
    small_data(tmp_path, batch_tokens=99).prepare()
    assert len(made(tmp_path)) == 1
    small_data(tmp_path, lowercase=True).prepare()
    small_data(tmp_path, joint=False).prepare()
    small_data(tmp_path, copies=9).prepare()
    assert len(made(tmp_path)) == 4
    ids = small_data(tmp_path).splits["val"].target.path
    whole = ids.read_bytes()
    ids.write_bytes(whole[:-1])
    assert small_data(tmp_path).splits["val"].target.path.read_bytes() == whole


def test_lowercased_data_has_lowercased_references(tmp_path: Path) -> None:
    (batch, *_) = small_data(tmp_path, lowercase=True).val_dataloader()
    assert batch.references is not None
    assert set(batch.references) <= {line.lower() for line in DE}
    assert "hunde" in batch.references


def test_training_pairs_that_are_empty_too_long_or_uneven_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = [*EN, "", " \t ", "dogs", "dogs " * 21, "a", "a man " * 5]
    target = [*DE, "eins", "", "", "Hunde", "b " * 21, "Hunde"]
    stem = write_pairs(tmp_path / "other", source, target)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        data = small_data(tmp_path, train=stem, max_ratio=3.0)
        data.prepare()
        data.setup("fit")
    sentence = (
        "dropped 6 of 11 pairs: 2 empty source, 1 empty target, 2 longer than 20 tokens,"
        " 1 with a side more than 3 times as long as the other"
    )
    assert [record.getMessage() for record in caplog.records] == [sentence]
    assert list(data.dropped.values()) == [2, 1, 2, 1]
    seen = [line for batch in data.train_dataloader() for line in data.detokenize(batch.target_outputs.tolist())]
    assert sorted(seen) == sorted(DE)
    held = small_data(tmp_path, train=stem, val=write_pairs(tmp_path / "long", ["dogs " * 60], ["Hunde " * 60]))
    (batch,) = held.val_dataloader()
    assert batch.source.shape == (1, 61)  # evaluation keeps all, over the budget if need be


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_an_empty_line_of_val_or_test_is_refused_by_file_and_line(tmp_path: Path, split: str, side: str) -> None:
    source, target = list(EN), list(DE)
    (source if side == "source" else target)[3] = "  "
    stem = write_pairs(tmp_path / "gap", source, target)
    name = "gap.en" if side == "source" else "gap.de"
    with pytest.raises(InputError, match=rf"{name}: line 4: the {side} is empty; every line of {split} is scored"):
        small_data(tmp_path, **{split: stem}).prepare()
    assert not made(tmp_path)


def test_a_split_may_be_columns_and_test_may_be_absent(tmp_path: Path) -> None:
    pairs = write(tmp_path / "val.tsv", [f"{en}\t{de}" for en, de in zip(EN, DE, strict=True)])
    data = small_data(tmp_path, val=str(pairs), test=None)
    assert sum(len(batch.source) for batch in data.val_dataloader()) == 5
    with pytest.raises(InputError, match="there is no test text; give it as test"):
        data.test_dataloader()


def test_no_pair_left_is_told_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no training pair is left: dropped 10 of 10 pairs: 10 longer than 1 tok"):
        small_data(tmp_path, train=write_pairs(tmp_path / "t", ["a b"] * 10, ["c d"] * 10), max_length=1).prepare()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "nowhere"}, "source 'nowhere': give numbers or hub:NAME; files are given as train, val and test"),
        ({"source": "files"}, "source files: give --data.train, --data.val and --data.test, or another source"),
        ({"train": "a"}, "train and val go together; missing: val"),
        ({"test": "a"}, "train and val go together; missing: train, val"),
        ({"source": "hub:x", "train": "a", "val": "b"}, "source 'hub:x': train, val and test take its place"),
        ({"hub_config": "en"}, "hub_config 'en': the corpus is no dataset of the Hub"),
        ({"batch_tokens": 0}, "batch_tokens 0: give 1 or more"),
        ({"max_ratio": 0.5}, "max_ratio 0.5: give 1 or more"),
        ({"batch_tokens": 100}, "batch_tokens 100: a sentence of max_length 100 tokens and <eos> does not fit"),
        ({"bpe_dropout": 1.5}, "bpe_dropout 1.5: give a probability"),
        ({"bpe_dropout": 0.1, "tokenizer": "char"}, "bpe_dropout 0.1: only tokenizer bpe has merges to leave out"),
        ({"vocab_size": 99}, "vocab_size 99: tokenizer bpe needs at least 260"),
        ({"target_lang": "xx"}, "language 'xx': num2words has no such language; it has: am, ar, "),
        (
            {"train": "/no/a", "val": "/no/b"},
            r"train '/no/a': no such text\. Looked for .* /no/a, /no/a\.en",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ParallelDataModule(**arguments)


def test_a_cache_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.raises(InputError, match=r"cache folder .*cache: cannot be written .* set RNN_BLOCKS_CACHE"):
        small_data(tmp_path).prepare()


def test_the_padding_of_an_epoch_is_told(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    padding = [(batch.target_outputs == -100) for batch in data.train_dataloader()]
    expected = sum(int(mask.sum()) for mask in padding) / sum(mask.numel() for mask in padding)
    assert data.padding_fraction == pytest.approx(expected)


def test_ranks_get_their_shares_by_their_place_in_the_trainer(tmp_path: Path) -> None:
    seen: list[int] = []
    for rank in range(2):
        data = attached(small_data(tmp_path), distributed_sampler_kwargs={"rank": rank, "num_replicas": 2})
        for loader in (data.train_dataloader(), data.val_dataloader()):
            seen += [place for batch in loader for place in batch.indices.tolist()]
    assert sorted(seen) == sorted([*range(40), *range(5)])


def test_a_checkpoint_holds_the_tokenizers_and_is_compared_on_load(tmp_path: Path) -> None:
    data = small_data(tmp_path, joint=False)
    state = data.state_dict()
    assert TextCodec.from_state(state).encode_source(EN) == data.encode_source(EN)
    small_data(tmp_path, joint=False).load_state_dict(state)
    with pytest.raises(InputError, match=r"the checkpoint's tokenizers \(16 and 17 types, from .* \(27 joint types"):
        small_data(tmp_path).load_state_dict(state)
    with pytest.raises(InputError, match="the checkpoint holds no tokenizer"):
        data.load_state_dict({"source": "?", "data": "?"})
    more = small_data(tmp_path, copies=9, joint=False)  # the same words, the same tokenizers
    with pytest.raises(InputError, match=r"the checkpoint was trained on other text .* than this run reads"):
        more.load_state_dict(state)
    attached(more).trainer.state.fn = TrainerFn.TESTING  # type: ignore[union-attr]
    more.load_state_dict(state)
