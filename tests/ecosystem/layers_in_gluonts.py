"""Layers in GluonTS: `DeepAREstimator` with another recurrent network in the place of its `torch.nn.LSTM`."""

import json
import math
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pandas as pd
import torch
from gluonts.dataset.common import ListDataset
from gluonts.torch.model.deepar.estimator import DeepAREstimator
from gluonts.torch.model.deepar.lightning_module import DeepARLightningModule
from gluonts.torch.model.predictor import PyTorchPredictor

import rnn_blocks
from rnn_blocks import TorchLayout

HOURS = 4


class Own(DeepARLightningModule):
    """With torch's LSTM, the second of whose biases is left out.

    It does nothing but add to the first. Where both learn, their sum takes steps twice as long as one bias does, and a
    training is no longer that of the same network with one.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, parameter in self.model.rnn.named_parameters():
            if name.startswith("bias_hh"):
                parameter.requires_grad_(False).zero_()


class Same(Own):
    """With our LSTM of the same weights."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.model.rnn = TorchLayout(rnn_blocks.LSTM.from_torch(self.model.rnn))


class LayerNorm(DeepARLightningModule):
    """With a layer that torch does not have."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        own = self.model.rnn
        self.model.rnn = TorchLayout(
            rnn_blocks.LayerNormLSTM(own.input_size, own.hidden_size, num_layers=own.num_layers, dropout=own.dropout)
        )


class Estimator(DeepAREstimator):
    """DeepAR of one of these modules."""

    module: type[DeepARLightningModule]

    def create_lightning_module(self) -> DeepARLightningModule:
        torch.manual_seed(0)
        module = self.module(**super().create_lightning_module().__init_args__)
        torch.manual_seed(0)  # making a module drew numbers
        np.random.seed(0)  # noqa: NPY002 (which GluonTS samples windows by)
        return module


class Losses(lightning.pytorch.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.steps.append(outputs["loss"].item())


@dataclass(frozen=True)
class Trained:
    """What a training gave: its losses, its predictor, and samples of the hours to come, (series, samples, hours)."""

    losses: list[float]
    trainer: lightning.pytorch.Trainer
    predictor: PyTorchPredictor
    samples: np.ndarray


def waves() -> ListDataset:
    """Six noisy waves of hours."""
    noise = np.random.default_rng(0).normal(size=(6, 200))
    time = np.arange(200)
    start = pd.Period("2026-01-01", freq="h")
    return ListDataset([{"start": start, "target": 5 + np.sin(time / 4 + k) + 0.2 * noise[k]} for k in range(6)], "h")


def samples_of(predictor: PyTorchPredictor) -> np.ndarray:
    """Samples of the hours to come, from the same random numbers each time."""
    torch.manual_seed(1)
    return np.stack([forecast.samples for forecast in predictor.predict(waves())])


def train(module: type[DeepARLightningModule], folder: Path, *, dropout: float = 0.0, epochs: int = 4) -> Trained:
    """Some epochs of a tiny DeepAR with the recurrent network of ``module``."""
    losses = Losses()
    estimator = Estimator(
        freq="h",
        prediction_length=HOURS,
        context_length=12,
        hidden_size=8,
        num_layers=2,
        dropout_rate=dropout,
        lags_seq=[1, 2, 24],
        batch_size=8,
        num_batches_per_epoch=10,
        num_parallel_samples=20,
        lr=0.01,
        trainer_kwargs={
            "max_epochs": epochs,
            "accelerator": "cpu",
            "callbacks": [losses],
            "default_root_dir": str(folder),
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    )
    estimator.module = module
    output = estimator.train_model(waves())
    return Trained(losses.steps, output.trainer, output.predictor, samples_of(output.predictor))


def check_same(folder: Path) -> dict[str, float]:
    """The view of our LSTM trains and predicts as torch's LSTM of the same weights; returns how far they are apart."""
    own, same = train(Own, folder / "own"), train(Same, folder / "same")
    assert isinstance(same.trainer.lightning_module.model.rnn, TorchLayout)
    loss = float(np.abs(np.subtract(own.losses, same.losses)).max())
    samples = float(np.abs(own.samples - same.samples).max())
    assert len(own.losses) == 40
    assert loss < 1e-4, f"losses differ by {loss}"
    assert samples < 1e-2, f"samples differ by {samples}"
    return {"largest_difference_of_losses": loss, "largest_difference_of_samples": samples}


def check_layer_norm(folder: Path) -> dict[str, float]:
    """A layer that torch does not have learns, predicts, and comes back from a checkpoint and a saved predictor."""
    trained = train(LayerNorm, folder / "layer-norm", dropout=0.1)
    first, last = (float(np.mean(part)) for part in (trained.losses[:10], trained.losses[-10:]))
    assert last < first - 0.1, f"the loss went from {first} to {last}"
    assert trained.samples.shape == (6, 20, HOURS)
    assert np.isfinite(trained.samples).all()

    checkpoint = folder / "last.ckpt"
    trained.trainer.save_checkpoint(checkpoint)
    module = trained.trainer.lightning_module
    loaded = LayerNorm.load_from_checkpoint(checkpoint, **module.__init_args__)
    states = module.state_dict(), loaded.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert isinstance(loaded.model.rnn, TorchLayout)

    (folder / "predictor").mkdir()
    trained.predictor.serialize(folder / "predictor")
    again = samples_of(PyTorchPredictor.deserialize(folder / "predictor", device="cpu"))
    assert np.array_equal(trained.samples, again)
    return {"first_loss": first, "last_loss": last}


def main() -> None:
    """Check all, and print the figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = {**check_same(Path(folder)), **check_layer_norm(Path(folder))}
    assert all(map(math.isfinite, figures.values()))
    packages = {name: version(name) for name in ("gluonts", "lightning", "torch")}
    print(json.dumps({"layers_in": "gluonts", **packages, **figures}))


if __name__ == "__main__":
    main()
