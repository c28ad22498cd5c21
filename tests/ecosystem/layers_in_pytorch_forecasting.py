"""Layers in pytorch-forecasting: its recurrent models with another recurrent network in the place of their LSTM."""

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
from pytorch_forecasting import LSTM, DeepAR, RecurrentNetwork, TimeSeriesDataSet
from torch import Tensor

import rnn_blocks
from rnn_blocks import TorchLayout

Model = RecurrentNetwork | DeepAR


class Flexible(TorchLayout):
    """As pytorch-forecasting calls its own: with lengths, zeros among them, which need not be sorted."""

    repeat_interleave = LSTM.repeat_interleave  # of the states (h, c), for the samples of DeepAR

    def forward(self, x: Any, hx: Any = None, lengths: Tensor | None = None, enforce_sorted: bool = True) -> Any:
        return super().forward(x, hx, lengths=lengths)


class Own(RecurrentNetwork):
    """With torch's LSTM, the second of whose biases is left out.

    It does nothing but add to the first. Where both learn, their sum takes steps twice as long as one bias does, and a
    training is no longer that of the same network with one.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, parameter in self.rnn.named_parameters():
            if name.startswith("bias_hh"):
                parameter.requires_grad_(False).zero_()


class Same(Own):
    """With our LSTM of the same weights."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rnn = Flexible(rnn_blocks.LSTM.from_torch(self.rnn))


def layer_norm_like(own: LSTM) -> Flexible:
    """A layer that torch does not have, of the sizes of the model's own."""
    return Flexible(
        rnn_blocks.LayerNormLSTM(own.input_size, own.hidden_size, num_layers=own.num_layers, dropout=own.dropout)
    )


class LayerNormNetwork(RecurrentNetwork):
    """The plain network with layer normalisation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rnn = layer_norm_like(self.rnn)


class LayerNormDeepAR(DeepAR):
    """DeepAR with layer normalisation, which samples what it then reads."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rnn = layer_norm_like(self.rnn)


class Losses(lightning.pytorch.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.steps.append(outputs["loss"].item())


@dataclass(frozen=True)
class Trained:
    """What a training gave: its losses, its trainer, and predictions, (windows, steps)."""

    losses: list[float]
    trainer: lightning.pytorch.Trainer
    predictions: Tensor


def sales() -> TimeSeriesDataSet:
    """Four noisy waves, of which windows start with as little as one step to read: none, once targets are shifted."""
    time = np.arange(40)
    noise = np.random.default_rng(0).normal(size=(4, 40))
    shops = [
        pd.DataFrame({"time": time, "shop": str(k), "sold": 5 + np.sin(time / 3 + k) + 0.2 * noise[k]})
        for k in range(4)
    ]
    return TimeSeriesDataSet(
        pd.concat(shops, ignore_index=True),
        time_idx="time",
        target="sold",
        group_ids=["shop"],
        min_encoder_length=1,
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["sold"],
    )


def predictions_of(model: Model, data: TimeSeriesDataSet) -> Tensor:
    """Of every window of the data, in order, from the same random numbers each time."""
    torch.manual_seed(1)
    loader = data.to_dataloader(train=False, batch_size=64, num_workers=0)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    predictions: Tensor = model.predict(loader, trainer_kwargs=quiet)
    return predictions


def train(kind: type[Model], folder: Path, *, dropout: float = 0.0, epochs: int = 4) -> Trained:
    """Some epochs of a tiny network of ``kind``."""
    data, losses = sales(), Losses()
    torch.manual_seed(0)
    model = kind.from_dataset(data, hidden_size=8, rnn_layers=2, dropout=dropout, learning_rate=0.01)
    torch.manual_seed(0)  # making a model drew numbers
    trainer = lightning.pytorch.Trainer(
        max_epochs=epochs,
        limit_train_batches=10,
        accelerator="cpu",
        callbacks=[losses],
        default_root_dir=folder,
        logger=False,
        gradient_clip_val=1.0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    loader = data.to_dataloader(train=True, batch_size=8, num_workers=0)
    lengths = [batch["encoder_lengths"].min().item() for batch, _ in loader]
    assert min(lengths) == 1, "no window starts with nothing to read"
    torch.manual_seed(0)
    trainer.fit(model, loader)
    return Trained(losses.steps, trainer, predictions_of(model, data))


def check_same(folder: Path) -> dict[str, float]:
    """The view of our LSTM trains and predicts as torch's LSTM of the same weights; returns how far they are apart."""
    own, same = train(Own, folder / "own"), train(Same, folder / "same")
    assert isinstance(same.trainer.lightning_module.rnn, Flexible)
    loss = float(np.abs(np.subtract(own.losses, same.losses)).max())
    predictions = float((own.predictions - same.predictions).abs().max())
    assert len(own.losses) == 40
    assert loss < 1e-4, f"losses differ by {loss}"
    assert predictions < 1e-3, f"predictions differ by {predictions}"
    return {"largest_difference_of_losses": loss, "largest_difference_of_predictions": predictions}


def check_layer_norm(kind: type[Model], folder: Path) -> dict[str, float]:
    """A layer that torch does not have learns, predicts, and comes back from a checkpoint."""
    trained = train(kind, folder / kind.__name__, dropout=0.1)
    first, last = (float(np.mean(part)) for part in (trained.losses[:10], trained.losses[-10:]))
    assert last < first - 0.1, f"the loss went from {first} to {last}"
    assert torch.isfinite(trained.predictions).all()

    checkpoint = folder / "last.ckpt"
    trained.trainer.save_checkpoint(checkpoint)
    loaded = kind.load_from_checkpoint(checkpoint, weights_only=False)
    assert isinstance(loaded.rnn, Flexible)
    assert torch.equal(predictions_of(loaded, sales()), trained.predictions)
    return {f"first_loss_of_{kind.__name__}": first, f"last_loss_of_{kind.__name__}": last}


def main() -> None:
    """Check all, and print the figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = check_same(Path(folder))
        for kind in (LayerNormNetwork, LayerNormDeepAR):
            figures |= check_layer_norm(kind, Path(folder))
    assert all(map(math.isfinite, figures.values()))
    packages = {name: version(name) for name in ("pytorch-forecasting", "lightning", "torch")}
    print(json.dumps({"layers_in": "pytorch-forecasting", **packages, **figures}))


if __name__ == "__main__":
    main()
