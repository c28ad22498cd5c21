"""Recipe runs of a few steps, started in this process or in one of their own, and what they leave behind."""

import csv
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from rnn_blocks.recipes.__main__ import main
from rnn_blocks.recipes.run_folder import RunFolder, runs

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
WORDS = ["def", "return", "self", "value", "index", "(", ")", ":", "for", "in", "if", "not", "name", "=", "None"]


def write_text(path: Path, lines: int = 700) -> Path:
    """Text with something in it to learn, some 30 bytes a line."""
    path.write_text("".join(f"{' '.join(WORDS[(i * k) % 15] for k in range(1, 7))} {i % 97}\n" for i in range(lines)))
    return path


def options(**settings: Any) -> list[str]:
    """Command-line options of settings given by their dotted names."""
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def tiny(text: Path, output_dir: Path, **settings: Any) -> list[str]:
    """The options of a tiny run on a text, with `settings` beside the usual ones or in their place."""
    return options(**(TINY | {"data.source": text, "output_dir": output_dir} | settings))


def recipe(*args: str) -> int:
    """`rnn-blocks language-model ARGS` in this process, which stays as it was; the exit code."""
    precision, environment = torch.get_float32_matmul_precision(), dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Lightning's own calls of jsonargparse and torch
            return main(["language-model", *args])
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_float32_matmul_precision(precision)


def start(*args: str, **environment: str | None) -> "subprocess.Popen[str]":
    """`rnn-blocks language-model ARGS` in a process of its own, with nobody at the keyboard.

    A variable of the environment that is None is not set there.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "rnn_blocks.recipes", "language-model", *args],
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


def only_run(output_dir: Path) -> RunFolder:
    (folder,) = runs(output_dir / "language-model")
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
    kept = {name: value for name, value in checkpoint.items() if name not in ("callbacks", "loops")}
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
