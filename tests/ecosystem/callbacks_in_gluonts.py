"""The callbacks in GluonTS: `DeepAREstimator`, trained by `lightning.pytorch`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pandas as pd
import torch
from checks import Finding, Package, Training, main, trainer_options
from gluonts.dataset.common import ListDataset
from gluonts.torch import DeepAREstimator
from gluonts.transform import ExpectedNumInstanceSampler, ValidationSplitSampler
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from logged import only, read_csv
from page import run_example
from probe import ProbeHooks

from rnn_blocks.callbacks import AdaptiveGradientClipping

LENGTH = 4


def waves() -> ListDataset:
    """Eight noisy waves of hours."""
    noise = np.random.default_rng(0).normal(size=(8, 240))
    time = np.arange(240)
    start = pd.Period("2026-01-01", freq="h")
    series = [{"start": start, "target": 5 + np.sin(time / 4 + k) + 0.2 * noise[k]} for k in range(8)]
    return ListDataset(series, freq="h")


class Probe(ProbeHooks, lightning.pytorch.Callback):
    pass


class GluonTS(Package):
    distribution = "gluonts"
    model = "DeepAREstimator (LSTM)"
    logger = "the trainer's own, CSVLogger"
    lightning = lightning.pytorch
    probe = Probe

    def fit(
        self,
        folder: Path,
        callbacks: Sequence[Any],
        *,
        epochs: int,
        clip: float | None = None,
        exact: bool = False,
        resume: bool = False,
    ) -> Training:
        checkpoint = only(folder / "checkpoints", "whole.ckpt") if resume else None
        # The estimator's own checkpoint holds weights alone, its result the best epoch's: to go on, one adds another.
        last = ModelCheckpoint(folder / "checkpoints", filename="whole", enable_version_counter=False)
        sampler = ValidationSplitSampler if exact else ExpectedNumInstanceSampler
        estimator = DeepAREstimator(
            freq="h",
            prediction_length=LENGTH,
            context_length=12,
            hidden_size=8,
            lags_seq=[1, 2, 24],
            batch_size=8,
            num_batches_per_epoch=6,
            lr=0.01,
            train_sampler=sampler(min_future=LENGTH) if exact else sampler(num_instances=1.0, min_future=LENGTH),
            trainer_kwargs=trainer_options(folder, [last, *callbacks], epochs, clip),  # without it, clips to 10
        )
        path = None if checkpoint is None else str(checkpoint)
        trainer = estimator.train_model(waves(), ckpt_path=path).trainer
        weights = torch.load(last.best_model_path, weights_only=False)["state_dict"]
        return Training(trainer, weights, read_csv(Path(trainer.logger.log_dir) / "metrics.csv"))

    def more_checks(self, train: Callable[..., Training]) -> dict[str, Callable[[], Finding]]:
        return {
            "example": lambda: run_example("GluonTS", dataset=waves()),
            "refusal": lambda: refuses_the_default_threshold(train),
        }


def refuses_the_default_threshold(train: Callable[..., Training]) -> Finding:
    """Who forgets `gradient_clip_val=None` is told of the 10 that GluonTS sets, and what to write."""
    try:
        train("default-threshold", [AdaptiveGradientClipping()], clip=10.0)
    except MisconfigurationException as error:
        told = "Fixed(10.0)" in str(error) and "gradient_clip_val" in str(error)
        return Finding("refusal", told, "gradient_clip_val=10.0 is refused", "" if told else str(error))
    return Finding("refusal", ok=False, note="a training that clips twice was not refused")


if __name__ == "__main__":
    main(GluonTS())
