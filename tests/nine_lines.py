"""The callbacks in the nine lines of a user's program, with either Lightning: they log, and they resume to the bit.

By itself, where only the package is installed: ``python nine_lines.py pytorch_lightning FOLDER``.
"""

import csv
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, GradientNormMonitor

LOGGED = (
    "grad_norm/total",
    "grad_norm/clipped",
    "grad_norm/layer",
    "grad_clip/threshold",
    "grad_clip/clipped_fraction",
)


def fit(package: str, folder: Path, *, ckpt_path: Path | None = None, max_epochs: int = 2) -> Any:
    """The nine lines: train the package's own small model, an epoch of which is 64 steps, and give the trainer."""
    pl, demos = import_module(package), import_module(f"{package}.demos.boring_classes")
    torch.manual_seed(0)
    trainer = pl.Trainer(
        callbacks=[GradientNormMonitor(), AdaptiveGradientClipping()],
        logger=pl.loggers.CSVLogger(folder),
        max_epochs=max_epochs,
        limit_val_batches=0,
        log_every_n_steps=16,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit(demos.BoringModel(), ckpt_path=ckpt_path)
    return trainer


def check(package: str, folder: Path) -> None:
    """Assert what was logged, and that a training in two halves ends as the whole one."""
    whole = fit(package, folder)
    rows = list(csv.DictReader(Path(whole.logger.log_dir, "metrics.csv").read_text().splitlines()))
    for name in LOGGED:
        values = [float(row[name]) for row in rows if row.get(name)]
        assert len(values) == 8, f"{name} was logged {len(values)} times, not on each of 8 logging steps"
    fit(package, folder, max_epochs=1).save_checkpoint(folder / "half.ckpt")
    resumed = fit(package, folder, ckpt_path=folder / "half.ckpt")
    assert resumed.global_step == whole.global_step == 128
    assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    [before], [after] = (clipping_of(trainer).state_dict()["optimizers"].values() for trainer in (whole, resumed))
    assert_close(after, before, rtol=0, atol=0)


def clipping_of(trainer: Any) -> AdaptiveGradientClipping:
    [clipping] = [callback for callback in trainer.callbacks if isinstance(callback, AdaptiveGradientClipping)]
    return clipping


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    check(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.write(f"{sys.argv[1]} {import_module(sys.argv[1]).__version__}: the nine lines run, log and resume\n")
