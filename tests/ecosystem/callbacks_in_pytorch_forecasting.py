"""The callbacks in pytorch-forecasting: `RecurrentNetwork`, trained by `lightning.pytorch`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pandas as pd
from checks import Finding, Package, Training, main, state_of, trainer_options
from logged import only, read_csv
from page import run_example
from probe import ProbeHooks
from pytorch_forecasting import MAE, RecurrentNetwork, TimeSeriesDataSet


def sales() -> TimeSeriesDataSet:
    """Four noisy waves."""
    time = np.arange(60)
    noise = np.random.default_rng(0).normal(size=(4, 60))
    sold = [5 + np.sin(time / 3 + k) + 0.2 * noise[k] for k in range(4)]
    waves = [pd.DataFrame({"time": time, "shop": str(k), "sold": sold[k]}) for k in range(4)]
    return TimeSeriesDataSet(
        pd.concat(waves, ignore_index=True),
        time_idx="time",
        target="sold",
        group_ids=["shop"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["sold"],
    )


def for_the_example() -> dict[str, Any]:
    data = sales()
    model = RecurrentNetwork.from_dataset(data, hidden_size=8, loss=MAE())
    return {"model": model, "loader": data.to_dataloader(train=True, batch_size=32, num_workers=0)}


class Probe(ProbeHooks, lightning.pytorch.Callback):
    pass


class PytorchForecasting(Package):
    distribution = "pytorch-forecasting"
    model = "RecurrentNetwork (LSTM)"
    logger = "CSVLogger"
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
        checkpoint = only(folder, "*.ckpt") if resume else None
        data = sales()
        loader = data.to_dataloader(train=True, batch_size=32, num_workers=0, shuffle=not exact)
        model = RecurrentNetwork.from_dataset(data, hidden_size=8, dropout=0.1, loss=MAE(), learning_rate=0.01)
        options = trainer_options(folder, callbacks, epochs, clip)
        trainer = lightning.pytorch.Trainer(logger=lightning.pytorch.loggers.CSVLogger(folder), **options)
        # The package's checkpoints hold the data set's normalizers, so that torch's `weights_only` cannot load them.
        trainer.fit(model, loader, ckpt_path=checkpoint, weights_only=False)
        return Training(trainer, state_of(model), read_csv(Path(trainer.logger.log_dir) / "metrics.csv"))

    def more_checks(self, train: Callable[..., Training]) -> dict[str, Callable[[], Finding]]:
        return {"example": lambda: run_example("pytorch-forecasting", **for_the_example())}


if __name__ == "__main__":
    main(PytorchForecasting())
