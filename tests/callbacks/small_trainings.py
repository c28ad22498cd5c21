"""Small trainings whose gradients are known, and the loop that a Trainer's result is compared with."""

from collections.abc import Callable, Sequence

import torch
from lightnings import Callback, LightningModule, Logger, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Remember(Logger):
    """Keeps what is logged, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "remember"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, params: object) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def column(self, name: str) -> dict[int, float]:
        return {step: row[name] for step, row in self.rows if name in row}


class Around(torch.optim.Optimizer):
    """A wrapper as Lookahead is one: an optimizer with the groups of another, which makes its updates."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def step(self, closure: Callable | None = None) -> object:
        return self.optimizer.step(closure)


class GradientIsBatch(LightningModule):
    """The gradient of its weight is the batch: norms are fed through a real Trainer as they are wanted."""

    def __init__(self, size: int = 4, make_optimizer: Callable = lambda p: torch.optim.Adam(p, lr=1e-3)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.make_optimizer = make_optimizer

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


class Regression(LightningModule):
    """A recurrent regression of which any part can be chosen: its net, its optimizer."""

    def __init__(self, make_optimizer: Callable, net: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = net or nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.make_optimizer = make_optimizer

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return (self.net(inputs).float() - targets).square().mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer([p for p in self.parameters() if p.requires_grad])


def regression_batches(count: int, scale: float = 3.0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 5, 3, generator=generator) * scale
    return list(zip(inputs, inputs.sum(-1, keepdim=True).sin() * scale, strict=True))


def clip_by_hand(parameters: Sequence[Tensor], threshold: float) -> float:
    """Pascanu's Algorithm 1, one parameter after another."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = sum(float((g.to_dense() if g.is_sparse else g).double().square().sum()) for g in gradients) ** 0.5
    if norm > threshold:
        for gradient in gradients:
            gradient.mul_(threshold / norm)
    return norm


def make_trainer(*callbacks: Callback, logger: Logger | bool = False, **options: object) -> Trainer:
    defaults = {"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False}
    return Trainer(
        callbacks=list(callbacks),
        logger=logger,
        accelerator="cpu",
        devices=options.pop("devices", 1),
        enable_progress_bar=False,
        enable_model_summary=False,
        **(defaults | options),
    )


def fit_module(module: LightningModule, batches: Sequence, *callbacks: Callback, **options: object) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(module, DataLoader(list(batches), batch_size=None), ckpt_path=ckpt_path)
    return trainer


def norms_as_batches(norms: Sequence[float], size: int = 4) -> list[Tensor]:
    return [torch.full((size,), float(norm) / size**0.5) for norm in norms]
