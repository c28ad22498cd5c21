"""Networks that are not recurrent: of a differential equation, of pulses to find, and of a table with dropout."""

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv1d, mse_loss
from torch.optim import SGD, Optimizer

from trainings.later.drawn import Drawn
from trainings.training import Batch, Supervised, Training


class Oscillator(Training):
    """Tanh network of u'' + 4u = 0 by its residual and start (Raissi 2019), SGD with momentum 0.9, constant rate."""

    short, rates = 1000, (0.0002, 0.0008, 0.003, 0.012)
    thresholds = (0.5, 2.0, 5.0, 15.0, 50.0)
    trivial_loss = 0.48
    end = 3.0

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def make_optimizers(self) -> list[Optimizer]:
        return [SGD(self.parameters(), lr=self.rate, momentum=0.9)]

    def objectives(self, step: int) -> Iterator[tuple[int, Tensor]]:
        times = self.end * torch.rand(32, 1, generator=self.generator)
        times = torch.cat([torch.zeros(1, 1), times]).requires_grad_()
        values = self.net(times)
        [speeds] = torch.autograd.grad(values.sum(), times, create_graph=True)
        [accelerations] = torch.autograd.grad(speeds.sum(), times, create_graph=True)
        residual = (accelerations[1:] + 4 * values[1:]).square().mean()
        yield 0, residual + 10 * ((values[0, 0] - 1).square() + speeds[0, 0].square())

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Squared distance to the solution."""
        times = torch.linspace(0, self.end, 200)[:, None]
        return float(mse_loss(self.net(times), torch.cos(2 * times)))

    def schedule(self, step: int) -> float:
        return 1.0


class Pulses(Drawn):
    """Convolutions find rare pulses by focal loss (RetinaNet), SGD with momentum and decay, warm-up, two drops."""

    short, rates = 500, (0.01, 0.04, 0.16, 0.64)
    thresholds = (0.03, 0.1, 0.3, 1.0, 3.0)
    trivial_loss = 0.43
    batch_size, test_size = 4, 256

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        layers: list[nn.Module] = []
        for inputs in (1, 16, 16):
            layers += [nn.Conv1d(inputs, 16, 5, padding=2), nn.ReLU()]
        output = nn.Conv1d(16, 1, 5, padding=2)
        nn.init.constant_(output.bias, -math.log(99))  # 1 % of places
        nn.init.normal_(output.weight, std=0.01)
        self.net = nn.Sequential(*layers, output)

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        """Signals ``(size, 1, 96)`` with pulses, single high values and noise, and where the pulses are."""
        is_pulse, is_high = (torch.rand(size, 96, generator=generator) < share for share in (0.03, 0.05))
        shape = torch.tensor([[[-0.5, 1.2, 2.0, 1.2, -0.5]]])
        signals = conv1d(is_pulse[:, None].float(), shape, padding=2) + 2.2 * is_high[:, None]
        return signals + 0.5 * torch.randn(size, 1, 96, generator=generator), is_pulse.float()

    def loss(self, batch: Batch) -> Tensor:
        """Summed over places, for each pulse."""
        logits, targets = self.net(batch[0])[:, 0], batch[1]
        chances = torch.where(targets > 0, logits.sigmoid(), (-logits).sigmoid())  # of the truth
        weights = torch.where(targets > 0, 0.25, 0.75) * (1 - chances).square()
        losses = weights * binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return losses.sum() / targets.sum().clamp(min=1)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9, weight_decay=1e-4)

    def schedule(self, step: int) -> float:
        if step < 40:
            return (step + 1) / 40
        return 1.0 if step < 0.7 * self.steps else 0.1 if step < 0.9 * self.steps else 0.01


@cache
def friedman(size: int, seed: int) -> Batch:
    """Ten features between -1 and 1, of which five matter, and noisy targets, standardised (Friedman 1991)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(size, 10, generator=generator)
    a, b, c, d, e = features[:, :5].unbind(1)
    targets = 10 * torch.sin(math.pi * a * b) + 20 * (c - 0.5).square() + 10 * d + 5 * e
    noise = 2 * torch.randn(size, generator=generator)
    return 2 * features - 1, (targets + noise - 14.4) / 5.2


class Friedman(Supervised):
    """Two layers of 64 with dropout 0.2 on a table, batches of 8, plain SGD, constant rate."""

    short, rates = 1500, (0.01, 0.04, 0.16, 0.64)
    thresholds = (0.1, 0.4, 1.0, 3.0, 10.0)
    trivial_loss = 1.06

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        layers: list[nn.Module] = []
        for inputs in (10, 64):
            layers += [nn.Linear(inputs, 64), nn.ReLU(), nn.Dropout(0.2)]
        self.net = nn.Sequential(*layers, nn.Linear(64, 1))

    def batch(self) -> Batch:
        features, targets = friedman(4_000, seed=1)
        rows = torch.randint(len(targets), (8,), generator=self.generator)
        return features[rows], targets[rows]

    def held_out(self) -> list[Batch]:
        return [friedman(2_000, seed=2)]

    def loss(self, batch: Batch) -> Tensor:
        return mse_loss(self.net(batch[0])[:, 0], batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)

    def schedule(self, step: int) -> float:
        return 1.0
