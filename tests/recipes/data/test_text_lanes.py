import mmap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from rnn_blocks.modules.language_model.text_batch import TextBatch
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data.store import TokenFile
from rnn_blocks.recipes.language_model.chunk_lengths import DrawnLengths
from rnn_blocks.recipes.language_model.lanes import Lanes

# Lightning's advice on resuming without the callback that saved.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:The dirpath has changed")


def numbered(folder: Path, num_tokens: int, bytes_per_token: int = 3) -> TokenFile:
    """A split whose ids are their own places."""
    path = folder / "train.bin"
    np.arange(num_tokens, dtype=np.uint32).tofile(path)
    return TokenFile(path, "uint32", num_tokens, num_tokens * bytes_per_token)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lanes")


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 120))
def test_training_lanes_are_contiguous_and_in_order(text_folder: Path, batch_size: int, bptt: int, more: int) -> None:
    num_tokens = batch_size * bptt + 1 + more
    batches = list(loader := Lanes(numbered(text_folder, num_tokens), batch_size, bptt))
    assert len(batches) == len(loader)
    assert all(batch.inputs.dtype == batch.targets.dtype == torch.int64 for batch in batches)
    assert all(batch.inputs.shape[1] == bptt for batch in batches[:-1])
    assert [batch.fresh for batch in batches] == [True] + [False] * (len(batches) - 1)
    inputs = torch.cat([batch.inputs for batch in batches], dim=1)
    steps = (num_tokens - 1) // batch_size
    assert inputs.flatten().tolist() == list(range(batch_size * steps))
    assert torch.equal(torch.cat([batch.targets for batch in batches], dim=1), inputs + 1)
    assert sum(batch.num_bytes for batch in batches) == pytest.approx(3 * batch_size * steps)


@given(st.integers(2, 150), st.integers(1, 4), st.integers(1, 9), st.integers(1, 3))
def test_evaluation_predicts_each_token_once_over_all_ranks(
    text_folder: Path, num_tokens: int, batch_size: int, bptt: int, world_size: int
) -> None:
    tokens = numbered(text_folder, num_tokens)
    ranks = [
        list(Lanes(tokens, batch_size, bptt, complete=True, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert sorted(targets[targets != -100].tolist()) == list(range(1, num_tokens))
    for batch in batches:
        real = batch.targets != -100
        assert torch.equal(batch.inputs[real] + 1, batch.targets[real])
        assert bool(((batch.inputs >= 0) & (batch.inputs < num_tokens)).all())
        assert batch.num_bytes == pytest.approx(3 * int(real.sum()))
    assert sum(batch.num_bytes for batch in batches) == pytest.approx(3 * (num_tokens - 1))


@pytest.mark.parametrize("complete", [False, True])
def test_two_ranks_read_the_rows_of_one_process_with_the_doubled_batch(text_folder: Path, complete: bool) -> None:
    tokens = numbered(text_folder, 1003)
    both = list(Lanes(tokens, 8, 7, complete=complete))
    ranks = [list(Lanes(tokens, 4, 7, complete=complete, rank=rank, world_size=2)) for rank in (0, 1)]
    for whole, first, second in zip(both, *ranks, strict=True):
        assert torch.equal(whole.inputs, torch.cat([first.inputs, second.inputs]))
        assert torch.equal(whole.targets, torch.cat([first.targets, second.targets]))
        assert whole.num_bytes == pytest.approx(first.num_bytes + second.num_bytes)
        assert whole.fresh == first.fresh == second.fresh


def test_a_split_shorter_than_a_batch_is_told_with_what_is_needed(text_folder: Path) -> None:
    Lanes(numbered(text_folder, 20 * 35 + 1), 20, 35)
    with pytest.raises(
        InputError, match=r"train split has 700 tokens, and one batch needs 701 \(batch_size 20 × bptt 35"
    ):
        Lanes(numbered(text_folder, 700), 20, 35)
    with pytest.raises(InputError, match=r"needs 1401 \(batch_size 20 × 2 ranks × bptt 35 \+ 1\): lower batch_size or"):
        Lanes(numbered(text_folder, 1400), 20, 35, world_size=2)
    with pytest.raises(InputError, match="has 1 tokens, and an evaluation needs at least 2"):
        Lanes(numbered(text_folder, 1), 20, 35, complete=True)


def test_a_state_of_another_shape_is_refused_in_mid_pass_only(text_folder: Path) -> None:
    tokens = numbered(text_folder, 1000)
    loader = Lanes(tokens, 4, 7)
    reader = iter(loader)
    next(reader)
    middle = loader.state_dict()
    for _ in reader:
        pass
    end = loader.state_dict()
    message = r"1000 tokens in 4 lanes .* bptt 7; this run has 1000 tokens in 8 lanes \(.*\) with bptt 7: resume with"
    with pytest.raises(InputError, match=message):
        Lanes(tokens, 4, 7, world_size=2).load_state_dict(middle)
    other = Lanes(tokens, 4, 7, world_size=2)
    other.load_state_dict(end)
    assert next(iter(other)).fresh


def seen(batches: list[TextBatch]) -> list[list[list[int]]]:
    return [batch.inputs.tolist() for batch in batches]


@given(
    st.integers(1, 4), st.integers(1, 30), st.integers(0, 2000), st.integers(0, 9), st.integers(1, 3), st.integers(0, 3)
)
def test_chunks_of_drawn_lengths_cover_each_token_once_on_every_rank_and_in_every_epoch(
    text_folder: Path, batch_size: int, bptt: int, more: int, seed: int, world_size: int, epoch: int
) -> None:
    num_tokens = batch_size * world_size * bptt + 1 + more
    tokens = numbered(text_folder, num_tokens)
    steps = (num_tokens - 1) // (batch_size * world_size)
    options: dict[str, Any] = {"variable": True, "seed": seed, "current_epoch": lambda: epoch}
    ranks = [
        list(Lanes(tokens, batch_size, bptt, rank=rank, world_size=world_size, **options)) for rank in range(world_size)
    ]
    whole = list(loader := Lanes(tokens, batch_size * world_size, bptt, **options))
    assert len(whole) == len(loader)
    lengths = [batch.inputs.shape[1] for batch in whole]
    assert sum(lengths) == steps
    assert max(lengths) <= bptt + 20
    assert sum(length < 5 for length in lengths) <= 1
    assert [batch.fresh for batch in whole] == [True] + [False] * (len(whole) - 1)
    inputs = torch.cat([batch.inputs for batch in whole], dim=1)
    assert inputs.flatten().tolist() == list(range(batch_size * world_size * steps))
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))
        assert torch.equal(batch.targets, batch.inputs + 1)
        assert batch.num_bytes == pytest.approx(sum(part.num_bytes for part in parts))


@given(st.integers(0, 9), st.integers(0, 60), st.booleans())
def test_a_pass_over_drawn_lengths_is_resumed_at_any_position(
    text_folder: Path, seed: int, position: int, second: bool
) -> None:
    tokens = numbered(text_folder, 801)

    def make() -> Lanes:
        return Lanes(tokens, 2, 11, variable=True, seed=seed)

    loader, undisturbed = make(), make()
    epochs = [seen(list(undisturbed)) for _ in range(3)]
    if second:
        assert seen(list(loader)) == epochs[0]
    epoch = int(second)
    position = min(position, len(loader))
    reader = iter(loader)
    for _ in range(position):
        next(reader)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    # of a pass that is not begun, the state is the end of the one before
    rest = epochs[epoch][position:] if position < len(loader) else epochs[epoch + 1]
    assert seen(list(resumed)) == rest
    following = epoch + 1 + (position == len(loader))
    assert following > 2 or seen(list(resumed)) == epochs[following]


def test_lengths_are_drawn_around_bptt_and_ever_anew(text_folder: Path) -> None:
    steps, bptt = 200_000, 70
    lengths = DrawnLengths(steps, bptt, seed=3)
    first, second = lengths.epoch(0), lengths.epoch(1)
    assert sorted(first) == sorted(second) != list(first) != list(second)
    assert list(first) == list(DrawnLengths(steps, bptt, seed=3).epoch(0))
    assert list(first) != list(DrawnLengths(steps, bptt, seed=4).epoch(0))
    halved = first < 52
    assert halved.mean() == pytest.approx(0.05, abs=0.015)
    assert first[halved].mean() == pytest.approx(34.5, abs=1)  # whole numbers, cut off behind the point
    assert first[~halved].mean() == pytest.approx(69.5, abs=0.5)
    assert first[~halved].std() == pytest.approx(5, abs=0.3)
    assert (second == np.sort(second)).mean() < 0.2


def test_a_state_of_other_lengths_is_refused_in_mid_pass(text_folder: Path) -> None:
    tokens = numbered(text_folder, 1000)
    loader = Lanes(tokens, 4, 7, variable=True, seed=5)
    next(iter(loader))
    for other in (Lanes(tokens, 4, 7), Lanes(tokens, 4, 7, variable=True, seed=6)):
        with pytest.raises(InputError, match="bptt 7 drawn with seed 5; this run has 1000 tokens in 4 lanes"):
            other.load_state_dict(loader.state_dict())


def test_a_state_from_before_lengths_could_vary_is_still_read(text_folder: Path) -> None:
    tokens = numbered(text_folder, 1000)
    loader = Lanes(tokens, 4, 7)
    old = {"position": 3, "batches": len(loader), "lanes": 4, "bptt": 7, "tokens": 1000}
    loader.load_state_dict(old)
    assert seen(list(loader)) == seen(list(Lanes(tokens, 4, 7)))[3:]
    with pytest.raises(InputError, match=r"with bptt 7; this run has .* bptt 7 drawn with seed 0"):
        Lanes(tokens, 4, 7, variable=True).load_state_dict(old)


def resident_bytes() -> int:
    # The peak that getrusage knows would be that of the tests before.
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc to read the resident memory from")
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE


def test_a_pass_over_a_big_file_keeps_memory_flat_and_is_fast(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    size = 60 << 20
    with path.open("wb") as file:
        for _ in range(60):
            file.write(bytes(1 << 20))
    before, peak = resident_bytes(), 0
    for index, _ in enumerate(Lanes(TokenFile(path, "uint16", size // 2, size), 20, 700)):
        if index % 20 == 0:
            peak = max(peak, resident_bytes())
    assert peak - before < size / 10

    small = Lanes(TokenFile(path, "uint16", size // 2, size), 20, 35)
    start = time.process_time()
    for _, _ in zip(range(5000), small, strict=False):
        pass
    assert (time.process_time() - start) / 5000 < 2e-4


class Recorder(LightningModule):
    """Notes the batches it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, int, bool]] = []

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, int(batch.inputs[0, 0]), batch.fresh))
        return self.weight * 1.0

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path,
    tokens: TokenFile,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    variable: bool = False,
    **options: Any,
) -> Recorder:
    model = Recorder()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    loader = Lanes(tokens, 2, 5, variable=variable, current_epoch=lambda: trainer.current_epoch)
    trainer.fit(model, loader, Lanes(tokens, 2, 5, complete=True), ckpt_path=ckpt_path, weights_only=True)
    return model


PASS = [(start, start == 0) for start in range(0, 50, 5)]
THREE_EPOCHS = [(epoch, start, fresh) for epoch in range(3) for start, fresh in PASS]


@pytest.mark.parametrize("step", [1, 4, 9, 10, 11, 20, 25])
def test_a_resumed_training_sees_just_the_batches_not_seen_yet(tmp_path: Path, step: int) -> None:
    tokens = numbered(tmp_path, 101)
    saving = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=1, save_top_k=-1)
    assert fit(tmp_path, tokens, saving).seen == THREE_EPOCHS
    (path,) = (tmp_path / "saved").glob(f"step={step}.ckpt")
    assert fit(tmp_path, tokens, ckpt_path=path).seen == THREE_EPOCHS[step:]


@pytest.mark.parametrize(
    ("saving", "seen"),
    [
        ({"save_on_train_epoch_end": True}, 10),  # after the epoch
        ({"save_on_train_epoch_end": False}, 10),  # after the validation inside the epoch
    ],
)
def test_a_training_resumed_at_an_epochs_end_begins_the_next_from_the_start(
    tmp_path: Path, saving: dict[str, bool], seen: int
) -> None:
    tokens = numbered(tmp_path, 101)
    fit(tmp_path, tokens, ModelCheckpoint(tmp_path / "saved", "{epoch}", save_top_k=-1, **saving))
    assert fit(tmp_path, tokens, ckpt_path=tmp_path / "saved" / "epoch=0.ckpt").seen == THREE_EPOCHS[seen:]


def test_a_training_resumed_after_a_validation_in_mid_epoch_goes_on_there(tmp_path: Path) -> None:
    tokens = numbered(tmp_path, 101)
    saving = ModelCheckpoint(tmp_path / "saved", "{step}", save_top_k=-1, save_on_train_epoch_end=False)
    fit(tmp_path, tokens, saving, val_check_interval=3)
    resumed = fit(tmp_path, tokens, ckpt_path=tmp_path / "saved" / "step=6.ckpt", val_check_interval=3)
    assert resumed.seen == THREE_EPOCHS[6:]


def test_a_resumed_training_on_drawn_lengths_sees_just_the_batches_not_seen_yet(tmp_path: Path) -> None:
    tokens = numbered(tmp_path, 101)
    saving = ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(tmp_path, tokens, saving, variable=True).seen
    epochs = [[start for epoch, start, _ in whole if epoch == number] for number in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    batches = len(epochs[0])
    for step in (1, batches - 1, batches, batches + 1, 2 * batches):
        (path,) = (tmp_path / "saved").glob(f"step={step}.ckpt")
        assert fit(tmp_path / str(step), tokens, ckpt_path=path, variable=True).seen == whole[step:]


class Kill(Callback):
    """Ends the training as a kill does: nothing runs afterwards."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyError("killed")


def test_a_training_resumed_twice_still_sees_every_batch_once(tmp_path: Path) -> None:
    tokens = numbered(tmp_path, 101)
    last = tmp_path / "saved" / "last.ckpt"

    def saving() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_last=True, save_top_k=0)

    for step in (7, 16):
        with pytest.raises(KeyError, match="killed"):
            fit(tmp_path, tokens, saving(), Kill(step), ckpt_path=last if last.exists() else None)
    assert fit(tmp_path, tokens, saving(), ckpt_path=last).seen == THREE_EPOCHS[16:]
