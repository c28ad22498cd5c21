"""Pictures: handwritten digits in many ways, and one image by hashed grids."""

from collections.abc import Iterator
from functools import cache
from typing import ClassVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainings.training import Batch, Supervised

HELD_OUT = 400


@cache
def digits() -> Batch:
    """Pictures ``(1797, 64)`` between 0 and 1 and their digits, in a fixed random order."""
    pictures, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    return (torch.tensor(pictures, dtype=torch.float32) / 16)[order], torch.tensor(targets)[order]


def one_layer() -> nn.Sequential:
    """One hidden layer of 128."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def two_layers() -> nn.Sequential:
    """Two hidden layers of 128."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


class Digits(Supervised):
    """One hidden layer of 128 on handwritten digits, weights of N(0, 0.01), plain SGD."""

    short, rates = 300, (0.1, 0.5, 2.5, 12.0)
    thresholds = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    trivial_loss, chosen_on = 2.35, True
    batch_size = 64
    model: nn.Module

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.model = self.make_model()

    def make_model(self) -> nn.Module:
        model = one_layer()
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.01)
        return model

    def batch(self) -> Batch:
        pictures, targets = digits()
        rows = torch.randint(HELD_OUT, len(targets), (self.batch_size,), generator=self.generator)
        noise = 0.3 * torch.randn(self.batch_size, 64, generator=self.generator)
        return pictures[rows] + noise, targets[rows]

    def held_out(self) -> list[Batch]:
        pictures, targets = digits()
        noise = 0.3 * torch.randn(HELD_OUT, 64, generator=torch.Generator().manual_seed(-1))
        return [(pictures[:HELD_OUT] + noise, targets[:HELD_OUT])]

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.model(batch[0]), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


class SoftmaxRegression(Digits):
    """Softmax regression from weights of zero, SGD with momentum 0.9."""

    rates = (0.1, 1.0, 10.0, 100.0)

    def make_model(self) -> nn.Module:
        model = nn.Linear(64, 10)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)


def convolutions(norm: bool) -> nn.Sequential:
    """Four convolutions, with batch norm or without any."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for inputs, outputs, stride in ((1, 16, 1), (16, 16, 2), (16, 32, 1), (32, 32, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), *([nn.BatchNorm2d(outputs)] if norm else [])]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))


class ConvolutionsMomentum(Digits):
    """Four convolutions without normalisation, batches of 256, SGD with momentum 0.9, cosine with a warm-up."""

    short, rates = 140, (0.01, 0.05, 0.2, 0.8)
    batch_size = 256

    def make_model(self) -> nn.Module:
        return convolutions(norm=False)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)

    def schedule(self, step: int) -> float:
        warm = self.steps // 10
        if step < warm:
            return (step + 1) / warm
        return 0.5 + 0.5 * float(torch.cos(torch.tensor(torch.pi * (step - warm) / (self.steps - warm))))


class ConvolutionsBatchNorm(ConvolutionsMomentum):
    """The same with batch norm, weight decay and one cycle."""

    rates = (0.03, 0.1, 0.4, 1.6)

    def make_model(self) -> nn.Module:
        return convolutions(norm=True)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def schedule(self, step: int) -> float:
        top = 0.3 * self.steps
        return 0.04 + 0.96 * step / top if step < top else 1 - (step - top) / (self.steps - top)


@cache
def trained_elsewhere() -> dict[str, Tensor]:
    """Weights of two hidden layers of 128 that were trained on the digits upside down."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = two_layers()
    optimizer, (pictures, targets) = Adam(model.parameters(), lr=0.003), digits()
    for step in range(300):
        rows = torch.arange(64 * step, 64 * step + 64) % (len(targets) - HELD_OUT) + HELD_OUT
        optimizer.zero_grad()
        cross_entropy(model(pictures[rows].flip(1)), targets[rows]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


class Adapter(Digits):
    """Adapters of rank 4 (A random, B zero) on a network that was trained elsewhere, SGD with momentum 0.9."""

    short, rates = 300, (0.004, 0.02, 0.1, 0.5)

    def make_model(self) -> nn.Module:
        model = two_layers()
        model.load_state_dict(trained_elsewhere())
        model.requires_grad_(False)
        return nn.Sequential(*[Adapted(layer) if isinstance(layer, nn.Linear) else layer for layer in model])

    def make_optimizer(self) -> Optimizer:
        return SGD([weight for weight in self.parameters() if weight.requires_grad], lr=self.rate, momentum=0.9)


class Adapted(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(layer.in_features, 4, bias=False), nn.Linear(4, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) + 4 * self.up(self.down(inputs))


class FineTuning(Digits):
    """The head of a network that was trained elsewhere, then its body as well, as a group of its own, AdamW."""

    rates, chosen_on = (0.0005, 0.002, 0.01, 0.05), False

    def make_model(self) -> nn.Module:
        model = two_layers()
        model.load_state_dict(trained_elsewhere())
        model[:-1].requires_grad_(False)
        model[-1].reset_parameters()
        return model

    def make_optimizer(self) -> Optimizer:
        self._drawn = 0
        head, body = self.model[-1].parameters(), self.model[:-1].parameters()
        return AdamW([{"params": list(head)}, {"params": list(body), "lr": self.rate / 3}], lr=self.rate)

    def batch(self) -> Batch:
        self._drawn += 1
        if self._drawn == self.steps // 3:
            self.model.requires_grad_(True)
        return super().batch()


class CorruptBatch(Digits):
    """One hidden layer of 128, one batch 300 times too large in the middle, SGD with momentum 0.9."""

    rates, factor = (0.01, 0.05, 0.2, 0.8), 300.0

    def make_model(self) -> nn.Module:
        self._drawn = 0
        return one_layer()

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)

    def batch(self) -> Batch:
        pictures, targets = super().batch()
        self._drawn += 1
        return (pictures * self.factor if self._drawn == int(0.45 * self.steps) else pictures), targets


class BatchOfNaN(CorruptBatch):
    """The same with a batch of NaN instead, Adam."""

    rates, factor, chosen_on = (0.0005, 0.002, 0.01, 0.05), torch.nan, False

    def make_optimizer(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.rate)


class LossScale(Digits):
    """One hidden layer of 128, the loss times 10 from two fifths on for good, plain SGD."""

    rates = (0.01, 0.05, 0.2, 0.8)

    def make_model(self) -> nn.Module:
        return one_layer()

    def objectives(self, step: int) -> Iterator[tuple[int, Tensor]]:
        for index, loss in super().objectives(step):
            yield index, 10 * loss if step > 0.4 * self.steps else loss


class HashGrid(Supervised):
    """One image by hashed grids of U(±1e-4) and a small network, Adam with betas 0.9, 0.99 and epsilon 1e-15."""

    short, rates = 250, (0.002, 0.01, 0.05, 0.25)
    thresholds = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    trivial_loss = 0.35
    entries: ClassVar[int] = 2048

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.sizes = [int(4 * 1.6**level) for level in range(8)]
        self.grids = nn.Parameter(torch.empty(len(self.sizes), self.entries, 2).uniform_(-1e-4, 1e-4))
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))

    def encode(self, places: Tensor) -> Tensor:
        features = []
        for grid, size in zip(self.grids, self.sizes, strict=True):
            scaled = places * size
            low = scaled.floor().long()
            part = scaled - low
            found = 0.0
            for dx in (0, 1):
                for dy in (0, 1):
                    weight = (part[:, 0] if dx else 1 - part[:, 0]) * (part[:, 1] if dy else 1 - part[:, 1])
                    index = ((low[:, 0] + dx) ^ ((low[:, 1] + dy) * 2_654_435_761)) % self.entries
                    found = found + weight[:, None] * grid[index]
            features.append(found)
        return torch.cat(features, dim=1)

    @staticmethod
    def image(places: Tensor) -> Tensor:
        x, y = places[:, 0], places[:, 1]
        rings = torch.sin(40 * ((x - 0.4) ** 2 + (y - 0.6) ** 2).sqrt())
        stripes = torch.sign(torch.sin(25 * (x + 2 * y)))
        spots = ((8 * x).floor() + (8 * y).floor()) % 2
        return torch.stack([rings, stripes * rings, 2 * spots - 1], dim=1)

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        places = torch.rand(size, 2, generator=generator)
        return places, self.image(places)

    def batch(self) -> Batch:
        return self.draw(self.generator, 1024)

    def held_out(self) -> list[Batch]:
        return [self.draw(torch.Generator().manual_seed(-1), 8192)]

    def loss(self, batch: Batch) -> Tensor:
        return mse_loss(self.net(self.encode(batch[0])), batch[1])

    def make_optimizer(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.rate, betas=(0.9, 0.99), eps=1e-15)
