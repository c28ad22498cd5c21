"""The callbacks in Darts: `RNNModel`, trained by `pytorch_lightning`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning
from checks import Finding, Package, Training, main, state_of, trainer_options
from darts import TimeSeries
from darts.models import RNNModel
from logged import only, read_tensorboard
from page import run_example
from probe import ProbeHooks


def wave() -> TimeSeries:
    """A noisy wave."""
    noise = np.random.default_rng(0).normal(size=120)
    return TimeSeries.from_values((np.sin(np.arange(120) / 3) + 0.2 * noise).astype(np.float32))


class Probe(ProbeHooks, pytorch_lightning.Callback):
    pass


class Darts(Package):
    distribution = "darts"
    model = "RNNModel (LSTM)"
    logger = "TensorBoardLogger, its own"
    lightning = pytorch_lightning
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
        options = trainer_options(folder, callbacks, epochs, clip)
        model = self._saved(folder, callbacks) if resume else self._new(folder, options)
        model.fit(wave(), epochs=epochs, dataloader_kwargs={"shuffle": not exact})
        logged = read_tensorboard(only(folder / "wave" / "logs", "events.*"))
        return Training(model.trainer, state_of(model.model), logged)

    def _new(self, folder: Path, options: dict[str, Any]) -> RNNModel:
        return RNNModel(
            model="LSTM",
            input_chunk_length=12,
            training_length=16,
            hidden_dim=8,
            n_rnn_layers=2,
            dropout=0.1,
            batch_size=32,
            optimizer_kwargs={"lr": 1e-2},
            random_state=1,
            model_name="wave",
            work_dir=str(folder),
            log_tensorboard=True,
            save_checkpoints=True,
            pl_trainer_kwargs=options,
        )

    def _saved(self, folder: Path, callbacks: Sequence[Any]) -> RNNModel:
        # The callbacks come back with the model, in which Darts has pickled them: `trusted`, as they are not of Darts.
        model = RNNModel.load_from_checkpoint("wave", work_dir=str(folder), best=False, trusted=True)
        kinds = [type(callback) for callback in model.trainer_params["callbacks"]]
        assert all(type(callback) in kinds for callback in callbacks), kinds
        (folder / "wave" / "logs").rename(folder / "wave" / "logs-before")
        return model

    def more_checks(self, train: Callable[..., Training]) -> dict[str, Callable[[], Finding]]:
        return {"example": lambda: run_example("Darts", series=wave())}


if __name__ == "__main__":
    main(Darts())
