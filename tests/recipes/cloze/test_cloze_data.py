"""Text as sequences with blanks: what is blanked out, when, and for whom."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn_blocks import ClozeBatch
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.cloze.batches import draw_blanks
from rnn_blocks.recipes.cloze.data import ClozeDataModule
from rnn_blocks.recipes.cloze.sequences import lines, windows
from rnn_blocks.recipes.data.store import TokenFile

LINES = [f"{a} sea and {b} sky" for a in ("the", "an open", "one") for b in ("the", "a blue", "no")]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "sea.txt"
    path.write_text("".join(f"{LINES[i * i % 9]}\n" + "\n" * (i % 5 == 0) for i in range(120)))
    return path


def words(path: Path, **options: Any) -> ClozeDataModule:
    settings: dict[str, Any] = {"tokenizer": "word", "batch_tokens": 64, "length": 16}
    return ClozeDataModule(str(path), cache_dir=str(path.parent / "cache"), **(settings | options))


def epoch(loader: Any) -> list[ClozeBatch]:
    return list(loader)


def restored(batch: ClozeBatch) -> list[tuple[int, ...]]:
    """The sequences as they were before they were blanked out."""
    ids = torch.where(batch.targets == -100, batch.inputs, batch.targets)
    return [tuple(row[:length].tolist()) for row, length in zip(ids, batch.lengths, strict=True)]


def places_of_blanks(batches: list[ClozeBatch]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of each sequence its tokens and where its blanks are, in an order that does not depend on the batches."""
    found = []
    for batch in batches:
        blanks = [tuple(row.nonzero()[:, 0].tolist()) for row in batch.targets != -100]
        found += list(zip(restored(batch), blanks, strict=True))
    return sorted(found)


def test_an_epoch_holds_every_line_once_with_its_end_and_without_lines_of_nothing_else(text_file: Path) -> None:
    data = words(text_file)
    sequences = [ids for batch in epoch(data.train_dataloader()) for ids in restored(batch)]
    found = Counter(data.tokenizer.decode(list(ids)) for ids in sequences)
    train = data.splits["train"].num_tokens
    stream = data.tokenizer.decode(np.fromfile(data.splits["train"].path, "uint16", count=train).tolist())
    assert found == Counter(f"{line}\n" for line in stream.split("\n") if line)
    assert data.unit == "line"


def test_at_a_blank_stands_the_mask_and_in_the_targets_what_stood_there_before(text_file: Path) -> None:
    data = words(text_file, mask_rate=0.3)
    end = data.tokenizer.token_to_id("<eos>")
    assert data.mask_id == data.vocabulary_size - 1 == data.tokenizer.get_vocab_size()
    for batch in epoch(data.train_dataloader()):
        blank = batch.targets != -100
        assert torch.equal(blank, batch.inputs == data.mask_id)
        assert blank.any(1).all(), "every sequence has a blank"
        assert not (batch.targets == end).any(), "the end of a line is no riddle"
        within = torch.arange(batch.inputs.shape[1]) < batch.lengths[:, None]
        assert not (blank & ~within).any()
        assert batch.inputs.numel() <= 64


def test_windows_cover_the_stream_and_any_token_can_be_blanked_out(text_file: Path) -> None:
    data = words(text_file, unit="window", length=7, mask_rate=0.5)
    batches = epoch(data.train_dataloader())
    stream = np.fromfile(data.splits["train"].path, "uint16").tolist()
    cut = [tuple(stream[start : start + 7]) for start in range(0, len(stream), 7)]
    assert sorted(ids for batch in batches for ids in restored(batch)) == sorted(cut)
    assert any((batch.targets == data.tokenizer.token_to_id("<eos>")).any() for batch in batches)


def test_blanks_differ_from_epoch_to_epoch_and_are_the_same_again_for_the_same_seed(text_file: Path) -> None:
    loader = words(text_file).train_dataloader()
    epochs = [places_of_blanks(epoch(loader)) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert [ids for ids, _ in epochs[0]] == [ids for ids, _ in epochs[1]]
    again = words(text_file).train_dataloader()
    assert [places_of_blanks(epoch(again)) for _ in range(3)] == epochs
    assert places_of_blanks(epoch(words(text_file, seed=1).train_dataloader())) != epochs[0]


def test_blanks_of_validation_and_test_are_the_same_each_time_and_however_they_are_batched(text_file: Path) -> None:
    data = words(text_file, mask_rate=0.3)
    for name in ("val_dataloader", "test_dataloader"):
        loader = getattr(data, name)()
        first = places_of_blanks(epoch(loader))
        assert first
        assert places_of_blanks(epoch(loader)) == first
        for options in ({"eval_batch_tokens": 16}, {"eval_batch_tokens": 1000}, {"batch_tokens": 100}):
            other = words(text_file, mask_rate=0.3, **options)
            assert places_of_blanks(epoch(getattr(other, name)())) == first


def test_a_training_resumed_in_mid_epoch_goes_on_with_the_batches_and_blanks_not_seen_yet(text_file: Path) -> None:
    def flat(batches: list[ClozeBatch]) -> list[list[Any]]:
        return [[part.tolist() for part in batch] for batch in batches]

    whole = words(text_file).train_dataloader()
    epochs = [epoch(whole) for _ in range(3)]
    cut = words(text_file).train_dataloader()
    epoch(cut)
    reader = iter(cut)
    seen = [next(reader) for _ in range(4)]
    resumed = words(text_file).train_dataloader()
    resumed.load_state_dict(cut.state_dict())
    rest = epoch(resumed)
    assert flat(seen + rest) == flat(epochs[1])
    assert flat(epoch(resumed)) == flat(epochs[2])
    other = words(text_file, mask_rate=0.4).train_dataloader()
    with pytest.raises(InputError, match=r"mask_rate 0\.15, seed 0; this run has .* mask_rate 0\.4, seed 0: resume"):
        other.load_state_dict(cut.state_dict())


def test_ranks_share_the_sequences_and_see_the_blanks_that_one_process_would_see(text_file: Path) -> None:
    class Ranks:
        current_epoch = 0
        limit_train_batches = None

        def __init__(self, rank: int, replicas: int) -> None:
            self.distributed_sampler_kwargs = {"rank": rank, "num_replicas": replicas}

    def blanks_of(rank: int, replicas: int, loader: str) -> list[ClozeBatch]:
        data = words(text_file)
        data.trainer = Ranks(rank, replicas)  # type: ignore[assignment]
        return epoch(getattr(data, loader)())

    for loader in ("train_dataloader", "val_dataloader"):
        alone = places_of_blanks(blanks_of(0, 1, loader))
        shares = [blanks_of(rank, 2, loader) for rank in range(2)]
        assert len(shares[0]) == len(shares[1])
        assert places_of_blanks(shares[0] + shares[1]) == alone


@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.integers(2, 9),
    st.sets(st.integers(0, 1), min_size=1),
)
@settings(max_examples=25, deadline=None)
def test_lines_are_the_stream_cut_behind_their_ends_and_at_the_length(
    ids: list[int], length: int, ends: set[int]
) -> None:
    expected, line = [], []
    for place, token in enumerate(ids):
        line.append(place)
        if token in ends or place == len(ids) - 1:
            expected += [line[i : i + length] for i in range(0, len(line), length)]
            line = []
    expected = [part for part in expected if len(part) > 1 or ids[part[0]] not in ends]
    path = Path("tokens.bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "fromfile", lambda path, dtype, count, offset: np.array(ids[offset // 2 :][:count], dtype))
        found = lines(TokenFile(path, "uint16", len(ids), 0), length, ends)
    assert [list(range(s, s + n)) for s, n in zip(found.starts, found.lengths, strict=True)] == expected


def test_blanks_come_at_the_rate_asked_for_and_independently_of_their_neighbours() -> None:
    eligible = np.ones(50, dtype=bool)
    drawn = np.stack([draw_blanks(eligible, 0.15, (0, 0), place) for place in range(0, 100_000, 50)])
    assert abs(drawn.mean() - 0.15) < 0.005  # four standard deviations: 0.0045
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.015
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.015
    assert drawn.any(1).all()


def test_windows_of_a_stream_are_as_many_as_fit_and_a_shorter_one() -> None:
    found = windows(11, 5)
    assert (found.starts.tolist(), found.lengths.tolist()) == ([0, 5, 10], [5, 5, 1])


def test_lines_of_byte_level_text_end_with_the_token_that_holds_their_newline(text_file: Path) -> None:
    data = words(text_file, tokenizer="bpe", vocab_size=300)
    found = [data.tokenizer.decode(list(ids)) for batch in epoch(data.val_dataloader()) for ids in restored(batch)]
    assert found
    assert all("\n" not in text[:-1] for text in found)
    assert any(text.endswith("\n") for text in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "page"}, r"unit 'page': choose one of line, window"),
        ({"mask_rate": 0.0}, r"mask_rate 0: give a part of the tokens, above 0 and below 1"),
        ({"mask_rate": 1.0}, r"mask_rate 1: give a part"),
        ({"length": 1}, r"length 1: give 2 or more, a blank and something beside it"),
        ({"batch_tokens": 10}, r"batch_tokens 10: give 16 or more, so that a sequence fits"),
        ({"max_sentences": 0}, r"max_sentences 0: give 1 or more"),
        ({"seed": -1}, r"seed -1: give 0 or more"),
        ({"source": "rymes"}, r"source 'rymes': no such file; give a text file's path, stdlib, rhymes, or hub:NAME"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        ClozeDataModule(**({"source": str(tmp_path / "text"), "length": 16, "cache_dir": str(tmp_path)} | options))


def test_text_of_nothing_but_empty_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n" * 100)
    with pytest.raises(InputError, match=r"the train split of .*empty\.txt has 90 tokens, and none of them can be"):
        words(tmp_path / "empty.txt").prepare()


def test_more_ranks_than_sequences_are_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a b\n" * 40)
    data = words(tmp_path / "short.txt")
    data.trainer = type("Ranks", (), {"distributed_sampler_kwargs": {"rank": 0, "num_replicas": 4}})()
    with pytest.raises(InputError, match=r"the val split has 2 sequences .* and 4 ranks share them"):
        data.val_dataloader()


def test_the_rhymes_are_trained_on_and_measured_on_whole(tmp_path: Path) -> None:
    data = ClozeDataModule("rhymes", cache_dir=str(tmp_path))
    assert data.splits["train"].num_bytes == data.splits["val"].num_bytes == data.splits["test"].num_bytes
    text = data.tokenizer.decode(np.fromfile(data.splits["train"].path, "uint16").tolist())
    assert text.startswith("Twinkle, twinkle, little star,\nHow I wonder what you are!\n")
