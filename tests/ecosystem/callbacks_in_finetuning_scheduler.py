"""The callbacks beside `FinetuningScheduler`, which thaws an LSTM in three phases (`lightning.pytorch`)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch
import torch
from checks import Finding, Package, Training, main, state_of, trainer_options
from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint
from logged import only, read_csv
from probe import ProbeHooks
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rnn_blocks.callbacks import AdaptiveGradientClipping, GradientNormMonitor

SCHEDULE = {
    0: {"params": [r"head.*"], "max_transition_epoch": 2},
    1: {"params": [r"lstm.*_l1"], "max_transition_epoch": 4, "lr": 3e-3},
    2: {"params": [r"lstm.*_l0", r"embedding.*"], "max_transition_epoch": 6, "lr": 1e-3},
}


class Tagger(lightning.pytorch.LightningModule):
    """Says of a sequence whether its tokens sum to an even number."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        output, _ = self.lstm(self.embedding(tokens))  # (batch, time, 8)
        return self.head(output[:, -1]).squeeze(-1)  # (batch,)

    def _loss(self, batch: list[Tensor]) -> Tensor:
        tokens, even = batch
        return nn.functional.binary_cross_entropy_with_logits(self(tokens), even)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def sequences() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 10, (64, 6), generator=generator)
    return TensorDataset(tokens, (tokens.sum(1) % 2 == 0).float())


class Probe(ProbeHooks, lightning.pytorch.Callback):
    pass


class FinetuningSchedulers(Package):
    distribution = "finetuning-scheduler"
    model = "two-layer LSTM, thawed in three phases"
    logger = "CSVLogger"
    lightning = lightning.pytorch
    probe = Probe
    epochs = 6

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
        checkpoint = only(folder / "checkpoints", "last.ckpt") if resume else None
        data = sequences()
        model = Tagger()
        scheduler = FinetuningScheduler(ft_schedule=dict(SCHEDULE), epoch_transitions_only=True, restore_best=not exact)
        saving = FTSCheckpoint(folder / "checkpoints", monitor="val_loss", save_last=True)
        options = trainer_options(folder, [scheduler, saving, *callbacks], epochs, clip)
        trainer = lightning.pytorch.Trainer(logger=lightning.pytorch.loggers.CSVLogger(folder), **options)
        loaders = DataLoader(data, batch_size=16, shuffle=not exact), DataLoader(data, batch_size=64)
        trainer.fit(model, *loaders, ckpt_path=checkpoint)
        done = trainer.current_epoch
        assert scheduler.curr_depth == sum(done > SCHEDULE[phase]["max_transition_epoch"] for phase in (0, 1)), done
        return Training(trainer, state_of(model), read_csv(Path(trainer.logger.log_dir) / "metrics.csv"))

    def more_checks(self, train: Callable[..., Training]) -> dict[str, Callable[[], Finding]]:
        return {"phases": lambda: groups_of_later_phases_have_histories(train)}


def groups_of_later_phases_have_histories(train: Callable[..., Training]) -> Finding:
    """With ``scope="group"`` what a phase thaws is clipped by norms of its own, counted from that phase on."""
    training = train("phases", [GradientNormMonitor(), AdaptiveGradientClipping(scope="group")])
    steps = training.trainer.global_step
    history = training.callback(AdaptiveGradientClipping).state_dict()["optimizers"]["0"]["history"]
    counts = history["log_norms"].isfinite().sum(0).tolist()  # (window, groups)
    logged = {name: len(training.logged[f"grad_norm/{name}"]) for name in ("head", "lstm", "embedding")}
    expected = [steps, steps * 2 // 3, steps // 3]
    ok = counts == expected and list(logged.values()) == expected
    return Finding("phases", ok, f"norms in the three groups' histories: {counts}", "" if ok else f"logged: {logged}")


if __name__ == "__main__":
    main(FinetuningSchedulers())
