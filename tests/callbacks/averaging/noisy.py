"""A training that jumps about, so that averaging has something to do, and what looks at it."""

from collections.abc import Iterator
from pathlib import Path

import torch
from lightnings import (
    Callback,
    LightningModule,
    ModelCheckpoint,
    Trainer,
)
from small_trainings import make_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

STEPS_A_VALIDATION, EPOCHS = 4, 6


class Noisy(LightningModule):
    """A regression by SGD with a rate so high that it jumps about; its output layer is tied to its input layer."""

    def __init__(self, lr: float = 0.3, dtype: torch.dtype = torch.float64, momentum: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.tied = nn.Linear(3, 3, dtype=dtype), nn.Linear(3, 3, dtype=dtype)
        self.tied.weight = self.inner.weight
        self.norm = nn.BatchNorm1d(3, dtype=dtype)
        self.lr, self.momentum = lr, momentum
        self.validated: list[dict[str, Tensor]] = []

    def loss(self, batch: Tensor) -> Tensor:
        outputs = self.norm(self.tied(self.inner(batch).tanh()))
        return (outputs - batch.flip(-1).sin()).square().sum(-1).mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch))
        self.validated.append(parameters_of(self))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)


class WeightsAlone(ModelCheckpoint):
    """One that has a state of its own."""


class SaveAt(Callback):
    """Saves a checkpoint after some steps and the validation there, and one when the averages are in the module."""

    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step in self.steps and trainer.global_step % STEPS_A_VALIDATION:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_train_end(self, trainer: Trainer, *_: object) -> None:
        trainer.save_checkpoint(self.folder / "end.ckpt")


class Losses(Callback):
    """What each validation gave."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values.append(float(trainer.callback_metrics["val/loss"]))


class Weights(Callback):
    """The weights with which each step ended."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append(parameters_of(pl_module))


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def batches(count: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> list[Tensor]:
    return list(torch.randn(count, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype))


class Rows:
    """A loader that goes on in mid-epoch where a checkpoint was written."""

    def __init__(self, rows: list[Tensor]) -> None:
        self.rows, self.start, self.place = rows, 0, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Tensor]:
        start, self.start = self.start, 0
        for place in range(start, len(self.rows)):
            self.place = place + 1
            yield self.rows[place]

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place % len(self.rows)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["place"]


def loader(rows: list[Tensor]) -> DataLoader:
    return DataLoader(rows, batch_size=None)


def fit(
    module: LightningModule,
    *callbacks: Callback,
    dtype: torch.dtype = torch.float64,
    ckpt_path: Path | None = None,
    accumulate: int = 1,
    **options: object,
) -> Trainer:
    """Six epochs of eight steps, with a validation every four."""
    settings = {"max_epochs": EPOCHS, "val_check_interval": STEPS_A_VALIDATION * accumulate, "num_sanity_val_steps": 1}
    trainer = make_trainer(*callbacks, accumulate_grad_batches=accumulate, **(settings | options))
    rows = batches(2 * STEPS_A_VALIDATION * accumulate, dtype)
    trainer.fit(module, Rows(rows), loader(batches(1, dtype, seed=2)), ckpt_path=ckpt_path)
    return trainer
