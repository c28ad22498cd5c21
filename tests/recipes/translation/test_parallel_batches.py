from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from parallel_text import DE, EN, small_data
from torch import Tensor, nn

from rnn_blocks import ParallelBatch
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.plan import Budget, TrainingPlan, evaluation_plan, padding_fraction
from rnn_blocks.recipes.translation.pairs.batches import EvaluationBatches, TrainingBatches, batch_of
from rnn_blocks.recipes.translation.pairs.data import ParallelDataModule

# Lightning's advice on resuming without the callback that saved.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:The dirpath has changed")

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=80)


def sides(lengths: list[tuple[int, int]]) -> tuple[Any, Any]:
    source, target = np.array(lengths, dtype=np.int32).T
    return source, target


@given(LENGTHS, st.integers(30, 200), st.one_of(st.none(), st.integers(1, 9)), st.integers(1, 4), st.integers(0, 3))
def test_every_pair_comes_once_an_epoch_within_the_budget_in_equal_shares(
    lengths: list[tuple[int, int]], tokens: int, sentences: int | None, ranks: int, epoch: int
) -> None:
    source, target = sides(lengths)
    budget = Budget(tokens, sentences)
    if len(lengths) < ranks:
        with pytest.raises(InputError, match=rf"there are {len(lengths)} pairs, and {ranks} ranks share them"):
            TrainingPlan(source, target, budget, world_size=ranks)
        return
    plan = TrainingPlan(source, target, budget, seed=7, world_size=ranks)
    for batches in (plan.epoch(epoch), evaluation_plan(source, target, budget, world_size=ranks)):
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        assert len(batches) % ranks == 0
        if len(lengths) % ranks == 0:  # else a few pairs may have to go together for all ranks to have as many batches
            assert all(len(b) * max(source[b].max(), target[b].max()) <= tokens for b in batches)
            assert all(len(batch) <= (sentences or tokens) for batch in batches)
    assert len(plan.epoch(epoch)) == plan.num_batches


@given(LENGTHS, st.integers(30, 200))
def test_evaluation_reads_short_sources_first(lengths: list[tuple[int, int]], tokens: int) -> None:
    source, target = sides(lengths)
    order = np.concatenate(evaluation_plan(source, target, Budget(tokens)))
    assert source[order].tolist() == sorted(source.tolist())


def test_epochs_differ_in_batches_and_order_and_follow_from_seed_and_number() -> None:
    random = np.random.default_rng(0)
    source = random.integers(5, 20, 2000).astype(np.int32)
    target = source + random.integers(-3, 4, 2000).astype(np.int32)

    def epoch(seed: int, number: int) -> list[tuple[int, ...]]:
        return [tuple(batch.tolist()) for batch in TrainingPlan(source, target, Budget(1000), seed=seed).epoch(number)]

    assert epoch(1, 0) == epoch(1, 0)
    assert len({len(epoch(1, number)) for number in range(5)}) == 1
    for other in (epoch(1, 1), epoch(2, 0)):
        together = {frozenset(batch) for batch in epoch(1, 0)}
        assert len(together & {frozenset(batch) for batch in other}) <= 2  # the shortest and the longest
    lengths = [int(target[batch[0]]) for batch in epoch(1, 0)]
    assert lengths != sorted(lengths)


def test_like_lengths_go_together_and_little_is_padding() -> None:
    random = np.random.default_rng(0)
    source = random.poisson(13, 20_000).astype(np.int32) + 2
    target = np.maximum(1, source + random.integers(-4, 5, 20_000)).astype(np.int32)
    batches = TrainingPlan(source, target, Budget(4096)).epoch(0)
    by_hand = np.mean([[i < n for i in range(max(target[b]))] for b in batches[:1] for n in target[b]])
    assert padding_fraction(batches[:1], target) == pytest.approx(1 - by_hand)
    assert padding_fraction(batches, target) < 0.02
    assert padding_fraction(batches, source) < 0.15
    assert padding_fraction([np.arange(20_000)[i : i + 200] for i in range(0, 20_000, 200)], target) > 0.3


def test_a_batch_is_padded_and_shifted_as_the_loss_needs_it() -> None:
    batch = batch_of([[5, 6, 7], [8]], [[9], [10, 11]], ["a", "b c"], indices=np.array([4, 2]))
    assert batch.source.tolist() == [[5, 6, 7, 2], [8, 2, 0, 0]]
    assert batch.source_lengths.tolist() == [4, 2]
    assert batch.target_inputs.tolist() == [[1, 9, 0], [1, 10, 11]]
    assert batch.target_outputs.tolist() == [[9, 2, -100], [10, 11, 2]]
    assert batch.references == ["a", "b c"]
    assert batch.indices is not None
    assert batch.indices.tolist() == [4, 2]
    tensors = [batch.source, batch.source_lengths, batch.target_inputs, batch.target_outputs, batch.indices]
    assert all(tensor.dtype == torch.int64 for tensor in tensors)


def test_batches_hold_the_lines_that_their_indices_name(tmp_path: Path) -> None:
    data = small_data(tmp_path, copies=8)
    for loader, copies in ((data.train_dataloader(), 8), (data.val_dataloader(), 1), (data.test_dataloader(), 1)):
        seen: list[int] = []
        for batch in loader:
            assert batch.indices is not None
            seen += (places := batch.indices.tolist())
            assert data.detokenize(batch.target_outputs.tolist()) == [DE[place % 5] for place in places]
            sources = [row[:n] for row, n in zip(batch.source.tolist(), batch.source_lengths.tolist(), strict=True)]
            assert sources == data.encode_source([EN[place % 5] for place in places])
            if copies == 1:
                assert batch.references == [DE[place] for place in places]
            else:
                assert batch.references is None
        assert sorted(seen) == list(range(5 * copies))


def test_ranks_share_all_pairs_in_as_many_batches_each(tmp_path: Path) -> None:
    pairs, budget = small_data(tmp_path, copies=9).splits["train"], Budget(40)
    ranks = [TrainingBatches(pairs, None, budget, seed=3, rank=rank, world_size=3) for rank in range(3)]
    assert len({len(loader) for loader in ranks}) == 1
    seen = [[batch.indices.tolist() for batch in loader] for loader in ranks]
    assert [len(batches) for batches in seen] == [len(ranks[0])] * 3
    assert sorted(place for batches in seen for batch in batches for place in batch) == list(range(45))
    held = [EvaluationBatches(pairs, budget, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(place for loader in held for batch in loader for place in batch.indices.tolist()) == list(range(45))


def batches(loader: TrainingBatches) -> list[list[int]]:
    return [batch.indices.tolist() for batch in loader]


def test_an_unfinished_pass_is_begun_again_and_a_finished_one_is_followed_by_the_next_epoch(tmp_path: Path) -> None:
    data = small_data(tmp_path)
    loader = data.train_dataloader()
    first = batches(data.train_dataloader())
    next(iter(loader))
    iter(loader)
    assert batches(loader) == first
    second = batches(loader)
    assert second != first
    assert batches(loader) not in (first, second)


def test_a_state_of_another_shape_is_refused_in_mid_epoch_only(tmp_path: Path) -> None:
    pairs = small_data(tmp_path).splits["train"]
    loader = TrainingBatches(pairs, None, Budget(40))
    reader = iter(loader)
    next(reader)
    middle = loader.state_dict()
    list(reader)
    end = loader.state_dict()
    for other in (
        TrainingBatches(pairs, None, Budget(40), world_size=2),
        TrainingBatches(pairs, None, Budget(41)),
        TrainingBatches(pairs, None, Budget(40, 3)),
        TrainingBatches(pairs, np.arange(39), Budget(40)),
        TrainingBatches(pairs, None, Budget(40), seed=1),
    ):
        with pytest.raises(
            InputError, match=r"in the middle of an epoch over 40 pairs on 1 ranks with batch_tokens 40, .* resume"
        ):
            other.load_state_dict(middle)
        other.load_state_dict(end)
        assert other.state_dict()["epoch"] == 1
        assert len(batches(other)) == len(other)


class Recorder(LightningModule):
    """Notes the batches it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[list[int]]]] = []

    def training_step(self, batch: ParallelBatch, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch.target_outputs.tolist()))
        return self.weight * 1.0

    def validation_step(self, batch: ParallelBatch, batch_idx: int) -> None:
        assert batch.references is not None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, data: ParallelDataModule, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any
) -> list[tuple[int, list[list[int]]]]:
    model = Recorder()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        **options,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return model.seen


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 5}, {"val_check_interval": 3}])
def test_a_resumed_training_sees_just_the_batches_not_seen_yet(tmp_path: Path, options: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"tokenizer": "bpe", "vocab_size": 280, "bpe_dropout": 0.3, "batch_tokens": 60}
    saving = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(tmp_path, small_data(tmp_path, 5, **settings), saving, **options)
    an_epoch = len(whole) // 3
    assert an_epoch >= 5
    assert [epoch for epoch, _ in whole] == [epoch for epoch in range(3) for _ in range(an_epoch)]
    texts = [[batch for epoch, batch in whole if epoch == number] for number in range(3)]
    assert texts[0] != texts[1] != texts[2]
    for step in (1, an_epoch - 1, an_epoch, an_epoch + 2, 2 * an_epoch):
        (path,) = (tmp_path / "saved").glob(f"step={step}.ckpt")
        resumed = fit(tmp_path, small_data(tmp_path, 5, **settings), ckpt_path=path, **options)
        assert resumed == whole[step:], step


def test_a_training_resumed_after_an_epochs_end_begins_the_next_from_the_start(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = fit(tmp_path, small_data(tmp_path), saving)
    resumed = fit(tmp_path, small_data(tmp_path), ckpt_path=tmp_path / "saved" / "epoch=0.ckpt")
    assert resumed == whole[len(whole) // 3 :]
