"""Losses that are no regression's: pairs to tell apart, a density, a value that is its own target; and a ResNet."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize, one_hot, relu, smooth_l1_loss
from torch.optim import SGD, Optimizer, RMSprop

from trainings.later.drawn import Drawn, cosine
from trainings.training import Batch, Training


class Contrast(Drawn):
    """Two views of a point among 128 (SimCLR's loss), SGD with momentum, weight decay and cosine (MoCo v2's)."""

    short, rates = 400, (0.02, 0.1, 0.5, 2.5)
    thresholds = (0.05, 0.17, 0.6, 2.0, 7.0)
    trivial_loss, chosen_on = 4.95, True
    batch_size = 64

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.net = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 24))
        self.mixing = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        points = torch.randn(size, 8, generator=generator) @ self.mixing
        return self.view(points, generator), self.view(points, generator)

    @staticmethod
    def view(points: Tensor, generator: torch.Generator) -> Tensor:
        """With noise, a fifth of the features 0."""
        noisy = points + 0.7 * torch.randn(points.shape, generator=generator)
        return noisy * (torch.rand(points.shape, generator=generator) > 0.2)

    def held_out(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(-1)
        return [self.draw(generator, self.batch_size) for _ in range(8)]

    def loss(self, batch: Batch) -> Tensor:
        places = normalize(torch.cat([self.net(view) for view in batch]), dim=1)
        views = len(places)
        logits = places @ places.T / 0.1 - 1e9 * torch.eye(views)
        return cross_entropy(logits, (torch.arange(views) + views // 2) % views)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9, weight_decay=1e-4)

    def schedule(self, step: int) -> float:
        return cosine(step, self.steps)


class Flow(Drawn):
    """Six affine couplings on two moons (RealNVP), the identity at first (as Glow), SGD with momentum 0.9."""

    short, rates = 400, (0.005, 0.02, 0.1, 0.4)
    thresholds = (0.2, 0.7, 2.3, 8.0, 26.0)
    trivial_loss, chosen_on = 2.9, True
    batch_size, test_size = 128, 2000

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        nets = [nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 2)) for _ in range(6)]
        for net in nets:
            nn.init.zeros_(net[-1].weight)
            nn.init.zeros_(net[-1].bias)
        self.nets = nn.ModuleList(nets)

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        angles = math.pi * torch.rand(size, generator=generator)
        first = torch.randint(2, (size,), generator=generator) == 0
        x = torch.where(first, angles.cos(), 1 - angles.cos())
        y = torch.where(first, angles.sin(), 0.5 - angles.sin())
        points = torch.stack([(x - 0.5) / 0.87, (y - 0.25) / 0.5], dim=1)
        return (points + 0.1 * torch.randn(size, 2, generator=generator),)

    def loss(self, batch: Batch) -> Tensor:
        """Negative log-likelihood, as a standard Gaussian's of where the couplings put the points."""
        moved, kept = batch[0].chunk(2, dim=1)
        log_volume = torch.zeros_like(moved)
        for net in self.nets:
            scale, shift = net(kept).chunk(2, dim=1)
            scale = torch.tanh(scale)
            moved, kept = kept, moved * scale.exp() + shift
            log_volume = log_volume + scale
        return (0.5 * (moved.square() + kept.square()) + math.log(2 * math.pi) - log_volume).mean()

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)


class QLearning(Training):
    """Values of moves on a grid, by a target network renewed every 50 steps and a Huber loss (DQN), RMSprop."""

    short, rates = 700, (0.0005, 0.002, 0.01, 0.05)
    thresholds = (0.01, 0.03, 0.1)
    trivial_loss = 0.3
    discount, goal, pit = 0.9, 35, 21

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.values, self.target = self.make_net(), self.make_net()
        places = torch.arange(36)
        row, column = places[:, None] // 6, places[:, None] % 6
        row = (row + torch.tensor([-1, 1, 0, 0])).clamp(0, 5)
        column = (column + torch.tensor([0, 0, -1, 1])).clamp(0, 5)
        self.next = row * 6 + column  # (place, move)
        self.reward = (self.next == self.goal).float() - (self.next == self.pit).float()
        self.goes_on = (self.next != self.goal) & (self.next != self.pit)
        self.features = torch.cat([one_hot(places // 6, 6), one_hot(places % 6, 6)], dim=1).float()

    @staticmethod
    def make_net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    def make_optimizers(self) -> list[Optimizer]:
        return [RMSprop(self.values.parameters(), lr=self.rate)]

    def objectives(self, step: int) -> Iterator[tuple[int, Tensor]]:
        if step % 50 == 0:
            self.target.load_state_dict(self.values.state_dict())
        places, moves = (torch.randint(choices, (32,), generator=self.generator) for choices in (36, 4))
        following = self.next[places, moves]
        with torch.no_grad():
            best = self.target(self.features[following]).max(1).values
            wanted = self.reward[places, moves] + self.discount * self.goes_on[places, moves] * best
        yield 0, smooth_l1_loss(self.values(self.features[places]).gather(1, moves[:, None])[:, 0], wanted)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Squared distance to the true values."""
        truth = torch.zeros(36, 4)
        for _ in range(200):
            truth = self.reward + self.discount * self.goes_on * truth.max(1).values[self.next]
        return float(mse_loss(self.values(self.features), truth))


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """What a residual block adds: at first nothing, by its last scale of 0."""
    last = nn.BatchNorm2d(outputs)
    nn.init.zeros_(last.weight)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        last,
    )


class ResNet(Drawn):
    """Two residual blocks on noisy gratings, last scales of 0 and Nesterov's momentum (Goyal et al. 2017), cosine."""

    short, rates = 200, (0.1, 0.5, 2.5, 10.0)
    thresholds = (0.05, 0.17, 0.6, 2.0, 7.0)
    trivial_loss, chosen_on = 2.2, True
    test_size = 600

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.first, self.second = block(12, 12, stride=1), block(12, 24, stride=2)
        self.shortcut = nn.Sequential(nn.Conv2d(12, 24, 1, stride=2, bias=False), nn.BatchNorm2d(24))
        self.output = nn.Linear(24, 8)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        """Gratings of eight directions, ``(size, 1, 12, 12)``."""
        directions = torch.randint(8, (size,), generator=generator)
        angles, places = (directions * math.pi / 8)[:, None, None], torch.arange(12.0)
        waves = places[:, None] * angles.cos() + places * angles.sin()
        gratings = torch.sin(waves + 6.28 * torch.rand(size, 1, 1, generator=generator))
        return (gratings + 1.5 * torch.randn(size, 12, 12, generator=generator))[:, None], directions

    def loss(self, batch: Batch) -> Tensor:
        hidden = self.stem(batch[0])
        hidden = relu(hidden + self.first(hidden))
        hidden = relu(self.shortcut(hidden) + self.second(hidden))
        return cross_entropy(self.output(hidden.mean((2, 3))), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def schedule(self, step: int) -> float:
        return cosine(step, self.steps)
