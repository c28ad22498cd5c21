"""Recipe runs of a few steps, started in this process or in one of their own, and what they leave behind."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

from rnn_blocks.recipes.__main__ import main
from rnn_blocks.recipes.run.folder import RunFolder, runs

# An epoch has 39 steps. Log steps (every 8th) and checkpoints (every 13th) fall together at step 104 alone.
TINY = {
    "model.layer.init_args.input_size": 16,
    "model.layer.init_args.hidden_size": 16,
    "model.lr_scheduler.init_args.total_steps": 200,
    "data.vocab_size": 300,
    "data.batch_size": 8,
    "data.bptt": 16,
    "trainer.max_steps": 20,
    "trainer.limit_train_batches": 39,
    "trainer.limit_val_batches": 3,
    "trainer.val_check_interval": 10,
    "trainer.log_every_n_steps": 8,
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
    "checkpoint_every_n_steps": 13,
    "samples.max_tokens": 4,
    "logger": "csv",
}
# An epoch has 12 steps; checkpoints (every 5th) fall into its midst.
TINY_TRANSLATION = {
    "model.encoder": "rnn_blocks.LSTM",
    "model.decoder": "rnn_blocks.LSTM",
    "model.encoder.init_args.input_size": 16,
    "model.encoder.init_args.hidden_size": 16,
    "model.decoder.init_args.input_size": 16,
    "model.decoder.init_args.hidden_size": 32,
    "model.attentional_size": 16,
    "model.lr_scheduler.init_args.max_lr": 0.01,
    "model.lr_scheduler.init_args.total_steps": 200,
    "data.tokenizer": "word",
    "data.batch_tokens": 110,
    "data.max_length": 20,
    "trainer.max_steps": 20,
    "trainer.val_check_interval": 10,
    "trainer.log_every_n_steps": 4,
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
    "checkpoint_every_n_steps": 5,
    "samples.sentences": 3,
    "samples.attention": 1,
    "logger": "csv",
}
# An epoch has 23 steps; checkpoints (every 5th) fall into its midst.
TINY_CLOZE = {
    "model.layer": "{class_path: rnn_blocks.LSTM, init_args: {input_size: 16, hidden_size: 8, bidirectional: true}}",
    "model.lr_scheduler": "null",
    "model.optimizer.init_args.lr": 0.01,
    "data.tokenizer": "word",
    "data.length": 16,
    "data.batch_tokens": 64,
    "trainer.max_steps": 20,
    "trainer.val_check_interval": 10,
    "trainer.log_every_n_steps": 4,
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
    "checkpoint_every_n_steps": 5,
    "samples.texts": '["the ___ sea", "___ sea and ___"]',
    "samples.top_k": 3,
    "logger": "csv",
}
WORDS = ["def", "return", "self", "value", "index", "(", ")", ":", "for", "in", "if", "not", "name", "=", "None"]


def write_text(path: Path, lines: int = 700) -> Path:
    """Text with something in it to learn, some 30 bytes a line."""
    path.write_text("".join(f"{' '.join(WORDS[(i * k) % 15] for k in range(1, 7))} {i % 97}\n" for i in range(lines)))
    return path


def write_pairs(folder: Path, pairs: int = 150) -> Path:
    """The stems ``train``, ``val`` and ``test`` of English digits and German ones the other way round."""
    english, german = ["one", "two", "three", "four", "five", "six"], ["eins", "zwei", "drei", "vier", "fünf", "sechs"]
    draw = random.Random(0)
    for name, count in (("train", pairs), ("val", 12), ("test", 12)):
        digits = [draw.choices(range(6), k=draw.randint(2, 4)) for _ in range(count)]
        for ending, spelled in (("en", english), ("de", german)):
            order = 1 if ending == "en" else -1
            lines = [" ".join(spelled[digit] for digit in row[::order]) + "\n" for row in digits]
            (folder / f"{name}.{ending}").write_text("".join(lines))
    return folder


def options(**settings: Any) -> list[str]:
    """Command-line options of settings given by their dotted names."""
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def tiny(text: Path, output_dir: Path, **settings: Any) -> list[str]:
    """The options of a tiny run on a text, with `settings` beside the usual ones or in their place."""
    return options(**(TINY | {"data.source": text, "output_dir": output_dir} | settings))


def tiny_translation(pairs: Path, output_dir: Path, **settings: Any) -> list[str]:
    """The options of a tiny run on the pairs of a folder, with `settings` beside the usual ones or in their place."""
    files = {f"data.{name}": pairs / name for name in ("train", "val", "test")}
    return options(**(TINY_TRANSLATION | files | {"output_dir": output_dir} | settings))


def recipe(*args: str, of: str = "language-model") -> int:
    """`rnn-blocks OF ARGS` in this process, which stays as it was; the exit code."""
    environment = dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Lightning's own calls of jsonargparse and torch
            return main([of, *args])
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        wandb.finish()  # a run that is left open stands in the way of the next one's login
        os.environ.clear()
        os.environ.update(environment)


def start(*args: str, of: str = "language-model", **environment: str | None) -> "subprocess.Popen[str]":
    """`rnn-blocks OF ARGS` in a process of its own, with nobody at the keyboard.

    A variable of the environment that is None is not set there.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "rnn_blocks.recipes", of, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in {**os.environ, "OMP_NUM_THREADS": "1", **environment}.items() if v is not None},
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a process that must succeed; what it wrote to standard output."""
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors[-4000:]
    return output


def kill_after_a_checkpoint(process: "subprocess.Popen[str]", output_dir: Path) -> None:
    """SIGKILL to a training as soon as its first ``last.ckpt`` is there."""
    while not list(output_dir.glob("*/*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def only_run(output_dir: Path, of: str = "language-model") -> RunFolder:
    (folder,) = runs(output_dir / of)
    return folder


def load(folder: RunFolder, name: str = "last") -> dict[str, Any]:
    return torch.load(folder.checkpoint(name), weights_only=True)


def metrics(folder: RunFolder) -> list[dict[str, str]]:
    """The rows of metrics.csv without empty fields and without the throughput, which no two runs share."""
    with folder.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and not k.startswith("throughput/")} for row in rows]


def column(folder: RunFolder, name: str) -> dict[int, float]:
    return {int(row["step"]): float(row[name]) for row in metrics(folder) if name in row}


def trained(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """All of a checkpoint that decides how a training goes on, nothing that names its place."""
    kept = {name: value for name, value in checkpoint.items() if name not in ("callbacks", "loops", "rnn_blocks")}
    by_place = ("ModelCheckpoint", "LastCheckpoint", "TrackedRun")
    kept["callbacks"] = {k: v for k, v in checkpoint["callbacks"].items() if not k.startswith(by_place)}
    loop = checkpoint["loops"]["fit_loop"]
    kept["loops"] = {k: loop[k] for k in ("state_dict", "epoch_loop.batch_progress", "epoch_loop.scheduler_progress")}
    return kept


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Equal bit for bit, at any depth."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{place}/{index}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, place
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def assert_refused(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the message on standard error, nothing on standard output and no traceback."""
    capsys.readouterr()
    code = recipe(*args[1:]) if args[0] == "language-model" else main(args)
    shown = capsys.readouterr()
    assert code == 2, shown.err
    assert f"error: {message}" in shown.err or ("error: " in shown.err and message in shown.err), shown.err
    assert "Traceback" not in shown.err, shown.err
    assert shown.out == ""
