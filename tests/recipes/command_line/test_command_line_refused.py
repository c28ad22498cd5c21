"""`rnn-blocks`: settings, texts and checkpoints that cannot be used are refused in one line, before a run begins."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from tiny_runs import WORDS, assert_refused, options, recipe, tiny, write_text

from rnn_blocks.recipes.run.folder import RunFolder, new_run_folder, runs

BAD_SETTINGS = {
    "model.layer.init_args.hidden_size": (-1, "hidden_size must be at least 1, got -1"),
    "model.lr_scheduler.init_args.max_lr": (-0.01, "--model.lr_scheduler.init_args.max_lr -0.01: give more than 0, or"),
    "model.layer.init_args.input_size": (24, "tie_weights needs a layer that gives as many features as it takes"),
    "model.dropout": (1.5, "dropout must be at least 0 and below 1, got 1.5"),
    "trainer.val_check_interval": (0, "--trainer.val_check_interval must be above 0 (batches, or a share"),
    "trainer.check_val_every_n_epoch": (0, "--trainer.check_val_every_n_epoch must be above 0 (epochs), got 0"),
    "data.batch_size": (0, "batch_size 0: give 1 or more"),
    "data.vocab_size": (10, "vocab_size 10: byte-level BPE needs at least 256"),
    "checkpoint_every_n_steps": (0, "--checkpoint_every_n_steps must be at least 1, got 0"),
    "data.train": ("train.txt", "train, val and test go together; missing: val, test"),
    "trainer.max_steps": (
        201,
        "the learning-rate schedule ends at step 200; give --model.lr_scheduler.init",
    ),
    "model.optimizer.init_args.lr": (
        0.02,
        "--model.optimizer.init_args.lr 0.02: OneCycleLR sets the learning rate, which it takes up to 0.01; give",
    ),
    "model.optimizer.init_args.weight_decay": (
        -1,
        "--model.optimizer torch.optim.Adam: Invalid weight_decay value: -1",
    ),
    "model.lr_scheduler.init_args.pct_start": (
        10,
        "--model.lr_scheduler torch.optim.lr_scheduler.OneCycleLR: Expected",
    ),
    "seed_everything": (-1, "--seed_everything -1: give a number from 0 to 4294967295"),
    "trainer.accumulate_grad_batches": (0, "--trainer.accumulate_grad_batches must be at least 1, got 0"),
    "name": ("wide/deep", "--name wide/deep: it becomes part of a folder's name, and cannot hold a '/'"),
    "samples.max_tokens": (0, "--samples.max_tokens must be at least 1, got 0"),
    "samples.temperature": (-1, "--samples.temperature must be 0 (the most probable token) or above, got -1"),
    "trainer.enable_checkpointing": ("false", "--trainer.enable_checkpointing false: a run keeps last.ckpt"),
    "data.tokenizer": ("char", "tokenizer char takes every character; leave vocab_size out"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_setting_out_of_its_range_is_refused_with_its_name_and_leaves_no_run(
    name: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value, message = BAD_SETTINGS[name]
    assert_refused(["language-model", "fit", *tiny(text, tmp_path, **{name: value})], message, capsys)
    assert runs(tmp_path / "language-model") == []


BAD_TEXTS = {
    "missing": (None, "text.txt: no such file"),
    "empty": (b"", "text.txt: the file is empty"),
    "binary": (b"plain, then \xff\xfe" * 999, "text.txt: line 1 is not text in UTF-8: byte 0xff at place 13"),
    "cut gzip": (b"\x1f\x8b\x08\x00 not gzip at all", "text.txt"),
    "short": (b"a few words\n" * 5, "one batch needs 129 (batch_size 8 × bptt 16 + 1): lower batch_size or bptt"),
}


@pytest.mark.parametrize("kind", BAD_TEXTS)
def test_a_text_that_cannot_be_used_is_refused_with_its_place_and_leaves_no_run(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD_TEXTS[kind]
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert_refused(["language-model", "fit", *tiny(path, tmp_path)], message, capsys)
    assert runs(tmp_path / "language-model") == []


def test_a_vocabulary_without_unk_is_refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("\n".join(WORDS))
    settings = {"data.tokenizer": "word", "data.vocab_size": "null", "data.vocabulary": vocabulary}
    args = ["language-model", "fit", *tiny(text, tmp_path, **settings)]
    assert_refused(args, "words.txt: the vocabulary has no <unk>", capsys)


@pytest.mark.parametrize("below", [".", "deeper/down"])
def test_an_output_folder_that_is_a_file_is_refused_and_another_one_named(
    below: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("mine")
    args = ["language-model", "fit", *tiny(text, tmp_path / "taken" / below)]
    assert_refused(args, "cannot write here (Not a directory); give another folder by --output_dir", capsys)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_disk_without_room_for_the_checkpoints_is_told_before_the_training(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")(100, 0, 2**19)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_refused(["language-model", "fit", *tiny(text, tmp_path)], "MiB are free, the checkpoints of this", capsys)
    assert runs(tmp_path / "language-model") == []


def test_without_any_run_last_and_best_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--output_dir", str(tmp_path)]
    nothing = f"there is no run in {tmp_path / 'language-model'} yet"
    assert_refused(["language-model", "fit", "--ckpt_path", "last", *where], nothing, capsys)
    assert_refused(["language-model", "test", *where], nothing, capsys)
    assert_refused(["language-model", "generate", "--prompt", "def", *where], nothing, capsys)
    new_run_folder(tmp_path / "language-model")
    assert_refused(["language-model", "test", *where], "has a checkpoints/best.ckpt yet", capsys)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "generate"])
def test_a_checkpoint_that_is_missing_or_cut_off_is_refused_by_every_command(
    command: str, finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = finished_run.checkpoint("best").read_bytes(), tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    prompt = ["--prompt", "def"] if command == "generate" else []
    args = ["language-model", command, *prompt, "--output_dir", str(tmp_path), "--ckpt_path"]
    assert_refused([*args, "no.ckpt"], "no.ckpt: no such file; valid are a checkpoint, a run's folder", capsys)
    assert_refused([*args, str(cut)], f"{cut}: not a checkpoint, or cut off ({len(whole) // 2:,} bytes)", capsys)
    assert_refused([*args, str(tmp_path)], "this folder holds no checkpoints/best.ckpt or checkpoints/last", capsys)
    assert os.listdir(tmp_path) == ["cut.ckpt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.layer.init_args.num_layers": 2}, "a checkpoint of another model: it lacks 'layer.layers.1."),
        ({"data.vocab_size": 310}, "'embedding.weight' is (300, 16) there and (310, 16) in this configuration"),
        ({"data.source": "other.txt"}, "the checkpoint was trained on other text"),
    ],
)
def test_a_checkpoint_of_another_model_or_text_is_refused_and_leaves_no_run(
    settings: dict[str, object],
    message: str,
    finished_run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("other.txt")).write_text(write_text(Path("other.txt")).read_text().replace("97", "79") + "x = 1\n")
    args = ["fit", "--ckpt_path", str(finished_run.checkpoint("best")), *options(output_dir=tmp_path, **settings)]
    assert_refused(["language-model", *args], message, capsys)
    assert runs(tmp_path / "language-model") == []


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    args = ["language-model", "generate", "--prompt", "def", "--ckpt_path", str(path)]
    assert_refused(args, "holds no tokenizer: not a checkpoint of the language-model recipe, but a state", capsys)
    torch.save([1, 2], path)
    assert_refused(args, "not a checkpoint: it holds a list", capsys)


def test_lightnings_own_logger_option_is_refused_with_the_one_to_use(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = '{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "x"}}'
    args = ["language-model", "fit", *tiny(text, tmp_path, **{"trainer.logger": logger})]
    assert_refused(args, "--trainer.logger: choose by --logger wandb|tensorboard|csv", capsys)


def test_a_device_that_is_not_there_is_refused_in_one_line(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    args = ["language-model", "fit", *tiny(text, tmp_path, **{"trainer.accelerator": "gpu"})]
    assert_refused(args, "No supported gpu backend found!", capsys)
    assert runs(tmp_path / "language-model") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ""}, "--prompt: the tokenizer makes no token of it"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_k": 0}, "--top_k must be at least 1, got 0"),
        ({"seed": 10**30}, "--seed must be below 2**64, got 1000000000000000000000000000000"),
        ({"temperature": -1}, "temperature must be 0 (the most probable token) or above, got -1.0"),
        ({"max_tokens": 0}, "--max_tokens must be at least 1, got 0"),
    ],
)
def test_a_sampling_option_out_of_its_range_is_refused_before_anything_is_written(
    settings: dict[str, object], message: str, finished_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"prompt": "def", "ckpt_path": finished_run.path} | settings
    assert_refused(["language-model", "generate", *options(**given)], message, capsys)


def test_a_schedule_that_no_number_of_steps_begins_is_told_by_its_options(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"lr_scheduler.init_args.total_steps": 10, "lr_scheduler.init_args.pct_start": 0.1}
    settings = {"trainer.max_steps": 10} | {f"model.{name}": value for name, value in shape.items()}
    message = (
        "--model.lr_scheduler.init_args.total_steps 10: the first phase, a share of 0.1 (pct_start), is of one step"
    )
    assert_refused(["language-model", "fit", *tiny(text, tmp_path, **settings)], message, capsys)


@pytest.mark.parametrize("config", ["ptb-small", "ptb-10m", "deep-transition"])
def test_a_configuration_for_a_text_of_ones_own_asks_for_it(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["language-model", "fit", "--config", config, "--logger", "csv", "--output_dir", str(tmp_path)]
    message = "--data.source files: give --data.train, --data.val and --data.test, or another source (it is in"
    assert_refused(args, f"{message} {config})", capsys)


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_value_that_a_class_refuses_is_told_by_its_option_and_the_file_it_is_in(
    command: str, finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {eval_bptt: 0}\n")
    last = ["--ckpt_path", str(finished_run.checkpoint("last")), "--output_dir", str(tmp_path)]
    for given, where in ((["--config", str(mine)], f" (it is in {mine})"), (["--data.eval_bptt", "0"], "")):
        assert recipe(command, *last, *given) == 2
        assert f"error: --data.eval_bptt 0: give 1 or more{where}\n" in capsys.readouterr().err
