"""Regressions and classifiers of few features: without noise, unscaled, with a variance, with rare positives."""

from abc import abstractmethod
from functools import cache

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, relu
from torch.optim import SGD, Adam, Optimizer

from trainings.later.drawn import Drawn
from trainings.training import Batch, Supervised

HELD_OUT = 120


class Teacher(Drawn):
    """Two layers of 64 learn a smooth function of two projections online (Saad and Solla 1995), plain SGD."""

    short, rates = 2000, (0.03, 0.1, 0.3, 1.0)
    thresholds = (0.02, 0.06, 0.2, 0.6, 2.0)
    trivial_loss, chosen_on = 0.6, True
    batch_size = 64

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.net = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.projections = torch.randn(6, 2, generator=torch.Generator().manual_seed(3)) / 6**0.5

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        points = torch.randn(size, 6, generator=generator)
        a, b = (points @ self.projections).chunk(2, dim=1)
        return points, torch.tanh(a) + 0.5 * a * b

    def loss(self, batch: Batch) -> Tensor:
        return mse_loss(self.net(batch[0]), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


class TeacherMomentum(Teacher):
    """The same, SGD with momentum 0.9."""

    rates = (0.01, 0.04, 0.16, 0.64)
    thresholds = (0.01, 0.035, 0.12, 0.4, 1.4)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)


class LeastSquares(Drawn):
    """Noise-free linear regression, whose loss falls to 1e-7 and below, plain SGD (interpolation, Ma et al. 2018)."""

    short, rates = 600, (0.04, 0.16, 0.5, 2.0)
    thresholds = (0.003, 0.03, 0.3, 1.0, 3.0)
    trivial_loss = 15.0
    batch_size = 64

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.output = nn.Linear(20, 1)
        self.truth = torch.randn(20, 1, generator=torch.Generator().manual_seed(3))
        self.deviations = torch.linspace(1, 0.2, 20)

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        points = self.deviations * torch.randn(size, 20, generator=generator)
        return points, points @ self.truth + 1

    def loss(self, batch: Batch) -> Tensor:
        return mse_loss(self.output(batch[0]), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


@cache
def diabetes() -> Batch:
    """Of 442 patients ten features, standardised, and a measure of what became of them, 152 on average."""
    return standardised(*load_diabetes(return_X_y=True))


@cache
def breast_cancer() -> Batch:
    """Of 569 tumours thirty features, standardised, and whether they are benign."""
    return standardised(*load_breast_cancer(return_X_y=True))


def standardised(table: object, targets: object) -> Batch:
    """The features each to mean 0 and deviation 1, the targets as they are, in a fixed random order."""
    features, values = (torch.tensor(numbers, dtype=torch.float32) for numbers in (table, targets))
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return ((features - features.mean(0)) / features.std(0))[order], values[order]


class Tabular(Supervised):
    """Batches of 32 rows of a table."""

    @staticmethod
    @abstractmethod
    def table() -> Batch:
        """Features and targets, those to test on first."""

    def batch(self) -> Batch:
        features, targets = self.table()
        rows = torch.randint(HELD_OUT, len(targets), (32,), generator=self.generator)
        return features[rows], targets[rows]

    def held_out(self) -> list[Batch]:
        features, targets = self.table()
        return [(features[:HELD_OUT], targets[:HELD_OUT])]


class Diabetes(Tabular):
    """One hidden layer of 32 on targets left in the hundreds (as scikit-learn's examples), SGD with momentum 0.9."""

    short, rates = 500, (1e-5, 5e-5, 2.5e-4, 1.25e-3)
    thresholds = (70.0, 220.0, 700.0, 2200.0, 7000.0)
    trivial_loss = 29000.0
    table = staticmethod(diabetes)

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))

    def loss(self, batch: Batch) -> Tensor:
        return mse_loss(self.net(batch[0])[:, 0], batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)


class LogisticRegression(Tabular):
    """Logistic regression of tumours from weights of 0, a penalty of 0.02 in the loss, plain SGD (as Bottou 2010)."""

    short, rates = 500, (0.1, 0.5, 2.5, 12.0)
    thresholds = (0.02, 0.06, 0.2, 0.6, 2.0)
    trivial_loss, chosen_on = 0.8, True
    table = staticmethod(breast_cancer)

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.output = nn.Linear(30, 1)
        nn.init.zeros_(self.output.weight)

    def loss(self, batch: Batch) -> Tensor:
        penalty = 0.02 * self.output.weight.square().sum()
        return binary_cross_entropy_with_logits(self.output(batch[0])[:, 0], batch[1]) + penalty

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


def gaussian_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log-likelihood but for a constant, of means and log-variances side by side."""
    mean, log_variance = outputs.chunk(2, dim=1)
    return 0.5 * (log_variance + (targets - mean).square() * (-log_variance).exp()).mean()


class MeanAndVariance(Drawn):
    """Mean and log-variance by two layers of 64, loss below 0 (Nix and Weigend 1994), SGD with momentum 0.9."""

    short, rates = 800, (0.0003, 0.001, 0.004, 0.016)
    thresholds = (0.1, 0.4, 1.5, 6.0, 24.0)
    trivial_loss = 0.6
    batch_size = 64

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        points = 4 * torch.rand(size, 1, generator=generator) - 2
        noise = (0.03 + 0.08 * points.abs()) * torch.randn(size, 1, generator=generator)
        return points, torch.sin(2 * points) + noise

    def loss(self, batch: Batch) -> Tensor:
        return gaussian_loss(self.net(batch[0]), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)


class Hinge(Drawn):
    """A linear classifier by hinge loss, 0 on many batches of 8 (Pegasos without its penalty), plain SGD."""

    short, rates = 900, (0.05, 0.25, 1.25, 6.0)
    thresholds = (0.07, 0.22, 0.7, 2.2, 7.0)
    trivial_loss, chosen_on = 1.05, True
    batch_size, test_size = 8, 2000

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.output = nn.Linear(20, 1)
        self.truth = torch.randn(20, generator=torch.Generator().manual_seed(1))

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        """A tenth of the points three times as far out."""
        points = torch.randn(size, 20, generator=generator)
        points = points * (1 + 2 * (torch.rand(size, 1, generator=generator) < 0.1))
        return points, torch.sign(points @ self.truth + 0.3 * torch.randn(size, generator=generator))

    def loss(self, batch: Batch) -> Tensor:
        return relu(1 - batch[1] * self.output(batch[0])[:, 0]).mean()

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


class Rare(Drawn):
    """One hidden layer of 64, 5 % positives, not weighted (the baseline of focal loss), SGD with momentum 0.9."""

    short, rates = 800, (0.02, 0.1, 0.5, 2.5)
    thresholds = (0.02, 0.07, 0.2, 0.7, 2.0)
    trivial_loss, chosen_on = 0.7, True
    test_size = 4000

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
        self.projections = torch.randn(20, 2, generator=torch.Generator().manual_seed(4)) / 20**0.5

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        points = torch.randn(size, 20, generator=generator)
        a, b = (points @ self.projections).unbind(dim=1)
        return points, (a * b + 0.5 * a > 1.9 + 0.1 * torch.randn(size, generator=generator)).float()

    def loss(self, batch: Batch) -> Tensor:
        return binary_cross_entropy_with_logits(self.net(batch[0])[:, 0], batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)


class RareAdam(Rare):
    """The same, Adam."""

    rates, chosen_on = (0.002, 0.01, 0.05, 0.25), False
    thresholds = (0.07, 0.2, 0.7)

    def make_optimizer(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.rate)
