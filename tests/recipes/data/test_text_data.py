import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from rnn_blocks.modules.language_model.text_batch import TextBatch
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.data import corpus_module
from rnn_blocks.recipes.data.corpora.corpus import SPLITS
from rnn_blocks.recipes.data.corpora.stdlib import StandardLibrary
from rnn_blocks.recipes.language_model.data import TextDataModule

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:The dirpath has changed")


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "sea.txt"
    path.write_text("".join(f"the open sea {i % 9}\n" for i in range(3000)))
    return path


def words(path: Path, cache: Path, **options: Any) -> TextDataModule:
    return TextDataModule(str(path), tokenizer="word", batch_size=4, bptt=10, cache_dir=str(cache), **options)


def attached(data: TextDataModule, **trainer: Any) -> TextDataModule:
    settings = {"limit_train_batches": 1.0, "current_epoch": 0, "state": SimpleNamespace(fn=TrainerFn.FITTING)}
    data.trainer = SimpleNamespace(**settings, **trainer)  # type: ignore[assignment]
    return data


def test_the_module_gives_the_three_splits_as_batches(text_file: Path, tmp_path: Path) -> None:
    data = words(text_file, tmp_path, eval_batch_size=2, eval_bptt=7)
    assert data.vocabulary_size == 2 + 3 + 9
    train, val, test = (
        next(iter(loader)) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    )
    assert train.inputs.shape == (4, 10)
    assert val.inputs.shape == test.inputs.shape == (2, 7)
    assert data.tokenizer.decode(train.inputs[0].tolist()).startswith("the open sea 0\nthe open sea 1\n")
    assert [data.splits[split].num_tokens for split in SPLITS] == [13_500, 750, 750]


def test_variable_bptt_draws_the_lengths_of_training_alone_by_seed_and_epoch(text_file: Path, tmp_path: Path) -> None:
    def lengths(epoch: int, seed: int) -> list[int]:
        data = attached(words(text_file, tmp_path, variable_bptt=True, seed=seed), distributed_sampler_kwargs=None)
        data.trainer.current_epoch = epoch  # type: ignore[misc, union-attr]
        assert [batch.inputs.shape[1] for batch in data.val_dataloader()][:-1] == [10] * 18
        return [batch.inputs.shape[1] for batch in data.train_dataloader()]

    first = lengths(0, 0)
    assert sum(first) == (13_500 - 1) // 4
    assert first == lengths(0, 0)
    assert first != lengths(1, 0)
    assert first != lengths(0, 1)
    with pytest.raises(InputError, match="seed -1: give 0 or more"):
        words(text_file, tmp_path, seed=-1)


def test_evaluation_counts_every_byte_but_those_of_the_first_token(text_file: Path, tmp_path: Path) -> None:
    data = words(text_file, tmp_path)
    split = data.splits["test"]
    counted = sum(batch.num_bytes for batch in data.test_dataloader())
    assert counted == pytest.approx(split.num_bytes * (split.num_tokens - 1) / split.num_tokens)


def test_the_default_corpus_is_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    for i in range(200):
        (folder / f"module_{i}.py").write_text(f"def function_{i}(argument):\n    return argument + {i}\n" * 5)
    monkeypatch.setitem(corpus_module._BY_NAME, "stdlib", partial(StandardLibrary, folder))
    data = TextDataModule(vocab_size=300, batch_size=4, bptt=10, cache_dir=str(tmp_path))
    data.prepare()
    assert data.vocabulary_size == 300
    text = "def function_3(argument):\n    return argument"
    assert data.tokenizer.decode(data.tokenizer.encode(text).ids) == text
    assert sum(file.num_bytes for file in data.splits.values()) == sum(p.stat().st_size for p in folder.iterdir())


def test_a_checkpoint_of_the_former_splits_is_told_and_is_tested_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    for i in range(200):
        (folder / f"module_{i}.py").write_text(f"def function_{i}(argument):\n    return argument + {i}\n" * 5)
    monkeypatch.setitem(corpus_module._BY_NAME, "stdlib", partial(StandardLibrary, folder))
    by_file = partial(StandardLibrary, folder, split_by="file")
    monkeypatch.setitem(corpus_module._BY_NAME, "stdlib-by-file", by_file)

    def state(source: str) -> TextDataModule:
        return TextDataModule(source, vocab_size=300, batch_size=4, bptt=10, cache_dir=str(tmp_path))

    former = state("stdlib-by-file").state_dict()
    state("stdlib-by-file").load_state_dict(former)
    as_it_was = former | {"source": "stdlib"}  # what checkpoints of then hold
    state("stdlib-by-file").load_state_dict(as_it_was)
    with pytest.raises(InputError, match=r"split before, by files: give --data\.source stdlib-by-file"):
        state("stdlib").load_state_dict(as_it_was)
    state("stdlib").load_state_dict(state("stdlib").state_dict())


def test_two_ranks_share_the_lanes_by_their_place_in_the_trainer(text_file: Path, tmp_path: Path) -> None:
    def first_batch(rank: int, replicas: int, batch_size: int) -> TextBatch:
        data = TextDataModule(str(text_file), tokenizer="word", batch_size=batch_size, bptt=10, cache_dir=str(tmp_path))
        attached(data, distributed_sampler_kwargs={"rank": rank, "num_replicas": replicas})
        return next(iter(data.train_dataloader()))

    both = torch.cat([first_batch(0, 2, 3).inputs, first_batch(1, 2, 3).inputs])
    assert torch.equal(both, first_batch(0, 1, 6).inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"source": "nowhere.txt"},
            r"source 'nowhere\.txt': no such file; give a text file's path, stdlib, rhymes, or hub:NAME",
        ),
        ({"train": "a", "val": "b"}, "train, val and test go together; missing: test"),
        ({"source": "x.txt", "train": "a", "val": "b", "test": "c"}, r"source 'x\.txt': train, val and test take its"),
        ({"source": "files"}, "source files: give --data.train, --data.val and --data.test, or another source"),
        ({"hub_config": "en"}, "hub_config 'en': source 'stdlib' is no dataset of the Hub"),
        ({"batch_size": 0}, "batch_size 0: give 1 or more"),
        ({"eval_bptt": -1}, "eval_bptt -1: give 1 or more"),
        ({"vocab_size": 99}, "vocab_size 99: byte-level BPE needs at least 256"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextDataModule(**arguments)


def test_a_missing_split_is_told_before_the_others_are_tokenized(text_file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    data = TextDataModule(train=str(text_file), val=str(text_file), test=str(tmp_path / "no.txt"), cache_dir=str(cache))
    with pytest.raises(InputError, match=r"no\.txt: no such file"):
        data.prepare()
    assert not list(cache.rglob("*.bin"))


def test_a_split_too_short_for_the_ranks_is_told(text_file: Path, tmp_path: Path) -> None:
    short = TextDataModule(str(text_file), tokenizer="word", batch_size=400, bptt=35, cache_dir=str(tmp_path))
    with pytest.raises(
        InputError, match=r"train split has 13500 tokens, and one batch needs 14001 .* lower batch_size"
    ):
        short.prepare()
    fits = TextDataModule(str(text_file), tokenizer="word", batch_size=200, bptt=35, cache_dir=str(tmp_path))
    fits.prepare()
    attached(fits, distributed_sampler_kwargs={"rank": 0, "num_replicas": 2})
    with pytest.raises(InputError, match="200 × 2 ranks × bptt 35"):
        fits.train_dataloader()


def test_a_checkpoint_of_another_tokenizer_is_refused(text_file: Path, tmp_path: Path) -> None:
    state = words(text_file, tmp_path).state_dict()
    other = words(text_file, tmp_path, vocab_size=5)
    with pytest.raises(
        InputError, match=r"checkpoint's tokenizer \(14 types, from .*sea\.txt\) is not this run's \(5 ty"
    ):
        other.load_state_dict(state)


def test_a_checkpoint_of_other_text_is_refused_in_training_and_tested_on_it(text_file: Path, tmp_path: Path) -> None:
    vocabulary = tmp_path / "words"
    vocabulary.write_text("<unk>\n<eos>\nthe\nopen\nsea\n")
    other = tmp_path / "other.txt"
    other.write_text("the closed sea\n" * 500)
    state = words(text_file, tmp_path, vocabulary=str(vocabulary)).state_dict()
    words(text_file, tmp_path, vocabulary=str(vocabulary)).load_state_dict(state)
    data = words(other, tmp_path, vocabulary=str(vocabulary))
    with pytest.raises(InputError, match=r"trained on other text \(.*sea\.txt, .*than this run reads \(.*other\.txt"):
        data.load_state_dict(state)
    attached(data).trainer.state.fn = TrainerFn.TESTING  # type: ignore[union-attr]
    data.load_state_dict(state)


class Recorder(LightningModule):
    """Notes the batches it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        self.seen.append(batch.inputs.flatten().tolist())
        return self.weight * 1.0

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        assert int((batch.targets != -100).sum()) > 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("limit", [1.0, 0.1, 20])
@pytest.mark.parametrize("step", [7, 20, 33])
def test_a_resumed_training_sees_just_the_batches_not_seen_yet(
    text_file: Path, tmp_path: Path, limit: float, step: int
) -> None:
    def fit(ckpt_path: str | None) -> list[list[int]]:
        model = Recorder()
        trainer = Trainer(
            max_epochs=2,
            max_steps=80,
            limit_train_batches=limit,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=ckpt_path is None,
            callbacks=[]
            if ckpt_path
            else [ModelCheckpoint(tmp_path / "saved", "{step}", every_n_train_steps=1, save_top_k=-1)],
        )
        trainer.fit(model, datamodule=words(text_file, tmp_path / "cache"), ckpt_path=ckpt_path, weights_only=True)
        return model.seen

    (tmp_path / "cache").mkdir()
    seen = fit(None)
    limits = {1.0: 80, 0.1: 66, 20: 40}
    assert len(seen) == limits[limit]
    assert fit(str(tmp_path / "saved" / f"step={step}.ckpt")) == seen[step:]


def test_the_arguments_are_options_of_a_command_line_with_their_help(tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(TextDataModule, "data")
    options = parser.parse_args(["--data.tokenizer=word", "--data.vocab_size=9", f"--data.cache_dir={tmp_path}"])
    assert options.data.vocab_size == 9
    assert "Lanes read side by side in training" in parser.format_help()


@pytest.mark.slow
def test_two_processes_see_the_rows_of_one_with_the_doubled_batch(text_file: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text("""if True:
        import json, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from test_text_data import Recorder
        from lightning.pytorch import Trainer
        from rnn_blocks.recipes.language_model.data import TextDataModule
        folder, devices = Path(sys.argv[2]), int(sys.argv[3])
        data = TextDataModule(str(folder / "sea.txt"), tokenizer="word", batch_size=6 // devices, bptt=10,
                              cache_dir=str(folder / f"cache{devices}"))
        trainer = Trainer(accelerator="cpu", strategy="ddp" if devices > 1 else "auto", devices=devices, max_steps=15,
                          logger=False, enable_checkpointing=False, enable_progress_bar=False)
        model = Recorder()
        trainer.fit(model, datamodule=data)
        (folder / f"seen-{devices}-{trainer.global_rank}").write_text(json.dumps(model.seen))
    """)
    for devices in (1, 2):
        here = str(Path(__file__).parent)
        subprocess.run(
            [sys.executable, str(script), here, str(tmp_path), str(devices)], check=True, capture_output=True
        )
    whole, first, second = (json.loads((tmp_path / f"seen-{name}").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert whole == [[*a, *b] for a, b in zip(first, second, strict=True)]
