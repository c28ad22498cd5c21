"""Handwritten digits: read in parts by recurrent layers, told apart by triplets, and passed through twelve numbers."""

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, mse_loss, normalize, relu
from torch.optim import SGD, Adam, Optimizer

from trainings.later.drawn import cosine
from trainings.pictures import HELD_OUT, digits
from trainings.training import Batch, Supervised


def some_digits(size: int, generator: torch.Generator) -> Batch:
    """So many of those that are not held out."""
    pictures, targets = digits()
    rows = torch.randint(HELD_OUT, len(targets), (size,), generator=generator)
    return pictures[rows], targets[rows]


class CleanDigits(Supervised):
    """Digits with little noise or none."""

    batch_size, noise = 32, 0.0

    def batch(self) -> Batch:
        pictures, targets = some_digits(self.batch_size, self.generator)
        return pictures + self.noise * torch.randn(pictures.shape, generator=self.generator), targets

    def held_out(self) -> list[Batch]:
        pictures, targets = digits()
        return [(pictures[:HELD_OUT], targets[:HELD_OUT])]


class Reader(nn.Module):
    """Names a digit by the last output of a recurrent layer."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.recurrent, self.output = recurrent, nn.Linear(recurrent.hidden_size, 10)

    def forward(self, parts: Tensor) -> Tensor:
        return self.output(self.recurrent(parts)[0][:, -1])


class ReaderByRows(Reader):
    """The same, of pictures ``(batch, 64)``, row by row."""

    def forward(self, pictures: Tensor) -> Tensor:
        return super().forward(pictures.view(-1, 8, 8))


class PermutedDigits(CleanDigits):
    """GRU-48 reads the pixels in a fixed random order, four a step, SGD with momentum and decay, constant rate."""

    short, rates = 700, (0.02, 0.08, 0.32, 1.28)
    thresholds = (0.03, 0.08, 0.2, 0.8, 2.5)
    trivial_loss = 2.35

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.reader = Reader(nn.GRU(4, 48, batch_first=True))
        self.order = torch.randperm(64, generator=torch.Generator().manual_seed(3))

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.reader(batch[0][:, self.order].view(-1, 16, 4)), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9, weight_decay=1e-4)

    def schedule(self, step: int) -> float:
        return 1.0


def trained(make_model: Callable[[], nn.Module], batch_size: int) -> nn.Module:
    """A model after 400 steps of Adam on the digits, without weights to train."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_model()
    optimizer, generator = Adam(model.parameters(), lr=0.003), torch.Generator().manual_seed(0)
    for _ in range(400):
        pictures, targets = some_digits(batch_size, generator)
        optimizer.zero_grad()
        cross_entropy(model(pictures), targets).backward()
        optimizer.step()
    return model.requires_grad_(False)


@cache
def teacher() -> nn.Module:
    """One hidden layer of 96."""
    return trained(lambda: nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)), batch_size=64)


@cache
def trained_reader() -> nn.Module:
    """GRU-48 that reads digits as they are."""
    return trained(lambda: ReaderByRows(nn.GRU(8, 48, batch_first=True)), batch_size=32)


class Distillation(CleanDigits):
    """Elman network of 64 by rows learns a feed-forward one's answers at temperature 4 (Hinton 2015), SGD, cosine."""

    short, rates = 900, (0.03, 0.12, 0.5, 2.0)
    thresholds = (0.1, 0.4, 1.0, 3.0, 10.0)
    trivial_loss, noise = 12.1, 0.05
    temperature = 4.0

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.reader = ReaderByRows(nn.RNN(8, 64, batch_first=True))

    def loss(self, batch: Batch) -> Tensor:
        wanted = (teacher()(batch[0]) / self.temperature).softmax(-1)
        log_chances = (self.reader(batch[0]) / self.temperature).log_softmax(-1)
        return self.temperature**2 * kl_div(log_chances, wanted, reduction="batchmean")

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)

    def schedule(self, step: int) -> float:
        return cosine(step, self.steps)


class TurnedDigits(CleanDigits):
    """GRU-48 that has read digits goes on with turned, noisy ones, SGD with momentum 0.9, linear to 0."""

    short, rates = 400, (0.04, 0.08, 0.16, 0.64)
    thresholds = (0.07, 0.2, 0.7, 2.0, 7.0)
    trivial_loss = 2.35
    batch_size, noise = 16, 0.1

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.reader = copy.deepcopy(trained_reader()).requires_grad_(True)

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.reader(batch[0].view(-1, 8, 8).rot90(1, (1, 2))), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)

    def schedule(self, step: int) -> float:
        return 1 - step / self.steps


class Triplets(CleanDigits):
    """Convolutions with group norm, hardest triplets of a batch (Hermans 2017), SGD with momentum and decay, a drop."""

    short, rates = 350, (0.005, 0.02, 0.08, 0.32)
    thresholds = (0.02, 0.06, 0.2, 0.6, 2.0)
    trivial_loss, margin = 0.3, 0.3
    batch_size = 40

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            *(nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()),
            *(nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.GroupNorm(4, 24), nn.ReLU()),
            *(nn.Conv2d(24, 24, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(96, 16)),
        )

    def held_out(self) -> list[Batch]:
        pictures, targets = (part.split(self.batch_size) for part in super().held_out()[0])
        return list(zip(pictures, targets, strict=True))

    def loss(self, batch: Batch) -> Tensor:
        places, same = normalize(self.net(batch[0]), dim=1), batch[1][:, None] == batch[1]
        distances = (2 - 2 * places @ places.T).clamp(min=1e-6).sqrt()
        furthest_same = distances.masked_fill(~same, -1.0).max(1).values
        nearest_other = distances.masked_fill(same, 9.0).min(1).values
        return relu(furthest_same - nearest_other + self.margin).mean()

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9, weight_decay=5e-4)

    def schedule(self, step: int) -> float:
        return 1.0 if step < 0.7 * self.steps else 0.1


class Autoencoder(CleanDigits):
    """Digits through twelve numbers, tanh layers of 64, mean squared error, SGD with momentum 0.9, constant rate."""

    short, rates = 1000, (0.8, 3.2, 12.8, 51.0)
    thresholds = (0.001, 0.003, 0.01, 0.03, 0.1)
    trivial_loss = 0.074
    batch_size = 64

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        encoder = [nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 12)]
        self.net = nn.Sequential(*encoder, nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 64), nn.Sigmoid())

    def loss(self, batch: Batch) -> Tensor:
        return mse_loss(self.net(batch[0]), batch[0])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)

    def schedule(self, step: int) -> float:
        return 1.0
