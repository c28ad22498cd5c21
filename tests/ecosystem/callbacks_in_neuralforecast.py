"""The callbacks in NeuralForecast: its `LSTM`, trained by `pytorch_lightning`."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
from checks import Finding, Package, Training, main, state_of, trainer_options
from logged import only, read_tensorboard
from neuralforecast import NeuralForecast
from neuralforecast.models import LSTM
from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset
from page import run_example
from probe import ProbeHooks, same
from pytorch_lightning.callbacks import ModelCheckpoint

from rnn_blocks.callbacks import AdaptiveGradientClipping, GradientNormMonitor

SERIES = 4


def waves() -> pd.DataFrame:
    """Four noisy waves of days, one below the other."""
    noise = np.random.default_rng(0).normal(size=(SERIES, 80))
    time = np.arange(80)
    days = pd.date_range("2026-01-01", periods=80)
    waves = [5 + np.sin(time / 3 + k) + 0.2 * noise[k] for k in range(SERIES)]
    return pd.concat([pd.DataFrame({"unique_id": str(k), "ds": days, "y": waves[k]}) for k in range(SERIES)])


class Probe(ProbeHooks, pytorch_lightning.Callback):
    pass


class KeepTrainer(pytorch_lightning.Callback):
    """Keeps hold of the trainer, which NeuralForecast makes for each fit and lets go."""

    trainer: pytorch_lightning.Trainer

    def on_fit_start(self, trainer: pytorch_lightning.Trainer, pl_module: pytorch_lightning.LightningModule) -> None:
        KeepTrainer.trainer = trainer


def lstm(folder: Path, callbacks: Sequence[Any], steps: int, clip: float | None) -> LSTM:
    """A small one; all that is not the model's goes on to the Trainer."""
    options = trainer_options(folder, [*callbacks, KeepTrainer()], steps, clip)
    del options["max_epochs"]  # which NeuralForecast refuses, for `max_steps`
    return LSTM(
        h=4,
        input_size=12,
        encoder_hidden_size=8,
        encoder_dropout=0.1,
        decoder_hidden_size=8,
        learning_rate=0.01,
        max_steps=steps,
        batch_size=SERIES,
        windows_batch_size=16,
        **options,
    )


class NeuralForecasts(Package):
    distribution = "neuralforecast"
    model = "LSTM"
    logger = "the trainer's own, TensorBoardLogger"
    lightning = pytorch_lightning
    probe = Probe
    epochs = 16  # of one batch each

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
        if exact:
            return self._fit_by_hand(folder, callbacks, epochs, only(folder, "whole.ckpt") if resume else None)
        forecast = NeuralForecast([lstm(folder, callbacks, epochs, clip)], freq="D")
        forecast.fit(waves())
        assert np.isfinite(forecast.predict()["LSTM"]).all()  # by a trainer with the same callbacks
        return self._done(forecast.models[0])

    def _fit_by_hand(self, folder: Path, callbacks: Sequence[Any], steps: int, checkpoint: Path | None) -> Training:
        """NeuralForecast goes on from saved weights alone; whoever wants more gives its model to a Trainer."""
        saving = ModelCheckpoint(folder / "checkpoints", filename="whole", enable_version_counter=False)
        model = lstm(folder, [*callbacks, saving], steps, None)
        data, *_ = TimeSeriesDataset.from_df(waves())
        module = TimeSeriesDataModule(data, batch_size=SERIES, shuffle_train=False)
        trainer = pytorch_lightning.Trainer(**(model.trainer_kwargs | {"enable_checkpointing": True}))
        trainer.fit(model, datamodule=module, ckpt_path=checkpoint, weights_only=False)
        return self._done(model)

    def _done(self, model: LSTM) -> Training:
        trainer = KeepTrainer.trainer
        return Training(trainer, state_of(model), read_tensorboard(only(Path(trainer.logger.log_dir), "events.*")))

    def more_checks(self, train: Callable[..., Training]) -> dict[str, Callable[[], Finding]]:
        return {
            "example": lambda: run_example("NeuralForecast", frame=waves()),
            "save": saved_and_loaded,
        }


def saved_and_loaded() -> Finding:
    """By NeuralForecast's own way: saved with used callbacks in the model, loaded, callbacks put back, fitted on."""
    steps = 6

    def callbacks() -> list[Any]:
        return [GradientNormMonitor(), AdaptiveGradientClipping()]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forecast = NeuralForecast([lstm(folder, callbacks(), steps, None)], freq="D")
        forecast.fit(waves())
        before = state_of(forecast.models[0])
        forecast.save(str(folder / "saved"), overwrite=True, save_dataset=False)
        loaded = NeuralForecast.load(str(folder / "saved"))
        equal = same(before, state_of(loaded.models[0]))
        loaded.models[0].trainer_kwargs["callbacks"] = [*callbacks(), KeepTrainer()]
        loaded.fit(waves())
        trainer = KeepTrainer.trainer
        logged = read_tensorboard(only(Path(trainer.logger.log_dir), "events.*"))
    norms = len(logged.get("grad_norm/clipped", {}))
    ok = equal and norms == trainer.global_step == steps
    note = f"weights equal: {equal}; {norms} norms in {trainer.global_step} steps"
    return Finding("save", ok, "weights come back, callbacks work in the next fit", "" if ok else note)


if __name__ == "__main__":
    main(NeuralForecasts())
