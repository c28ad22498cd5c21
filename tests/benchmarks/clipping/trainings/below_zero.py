"""Trainings by SGD whose loss falls below 0, and one like them, written to choose what bounds their steps, by name."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from trainings.later.drawn import Drawn
from trainings.later.regressions import gaussian_loss
from trainings.training import Batch, Training


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class ByMomentum(Drawn):
    """A training by SGD with momentum 0.9."""

    batch_size, chosen_on = 64, True

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)


class CouplingFlow(ByMomentum):
    """Four affine couplings (Dinh et al. 2017), −log-likelihood of points near a half circle, SGD with momentum 0.9."""

    short, rates = 500, (0.001, 0.004, 0.016, 0.064)
    thresholds = (1.0, 4.0, 16.0, 64.0)
    trivial_loss = 3.0

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.nets = nn.ModuleList(perceptron(2, 32, 4) for _ in range(4))

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        angles = math.pi * torch.rand(size, generator=generator)
        half = 0.5 * torch.stack([angles.cos(), angles.sin()], 1) + 0.03 * torch.randn(size, 2, generator=generator)
        rest = 0.3 * half.flip(1) + 0.02 * torch.randn(size, 2, generator=generator)
        return (torch.cat([half, rest], 1),)

    def loss(self, batch: Batch) -> Tensor:
        kept, moved = batch[0].chunk(2, 1)
        log_determinant = torch.zeros(len(kept))
        for net in self.nets:
            scale, shift = net(kept).chunk(2, 1)
            scale = 2 * torch.tanh(scale / 2)
            kept, moved = moved * scale.exp() + shift, kept
            log_determinant = log_determinant + scale.sum(1)
        squares = kept.square().sum(1) + moved.square().sum(1)
        return (0.5 * squares + 2 * math.log(2 * math.pi) - log_determinant).mean()


class EvidenceBound(ByMomentum):
    """A variational autoencoder whose decoder learns its variances (Kingma and Welling 2014), SGD with momentum 0.9."""

    short, rates = 500, (0.0003, 0.001, 0.004, 0.016)
    thresholds = (2.0, 8.0, 32.0)
    trivial_loss = 3.5

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.encoder, self.decoder = perceptron(10, 64, 8), perceptron(4, 64, 10)
        self.log_variance = nn.Parameter(torch.zeros(10))
        self.mixing = torch.randn(3, 10, generator=torch.Generator().manual_seed(4))

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        points = torch.tanh(torch.randn(size, 3, generator=generator) @ self.mixing)
        return points + 0.1 * torch.randn(size, 10, generator=generator), torch.randn(size, 4, generator=generator)

    def loss(self, batch: Batch) -> Tensor:
        points, noise = batch
        mean, log_variance = self.encoder(points).chunk(2, 1)
        log_variance = log_variance.clamp(-8, 8)
        errors = (points - self.decoder(mean + (log_variance / 2).exp() * noise)).square()
        reconstruction = (self.log_variance + errors * (-self.log_variance).exp()).sum(1)
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        return 0.5 * (reconstruction + divergence).mean()


class MutualInformation(ByMomentum):
    """The bound of Donsker and Varadhan on a mutual information (Belghazi et al. 2018, MINE), SGD with momentum 0.9.

    Its loss starts at 0 but for chance. Rare and large gradients hold it back, so that any clipping may harm it.
    """

    short, rates = 500, (0.03, 0.12, 0.5, 2.0)
    thresholds = (0.5, 1.0, 3.0, 8.0)
    trivial_loss = 0.0
    batch_size = 128
    above = 0.0  # added to the loss

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.critic = perceptron(4, 64, 64, 1)

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        first = torch.randn(size, 2, generator=generator)
        return first, 0.9 * first + math.sqrt(1 - 0.9**2) * torch.randn(size, 2, generator=generator)

    def loss(self, batch: Batch) -> Tensor:
        first, second = batch
        together = self.critic(torch.cat([first, second], 1)).mean()
        apart = self.critic(torch.cat([first, second.roll(1, 0)], 1))[:, 0]
        return self.above - together + torch.logsumexp(apart, 0) - math.log(len(apart))


class MutualInformationAbove(MutualInformation):
    """The same and a half: its loss starts above 0 and falls below it."""

    above, trivial_loss = 0.5, 0.5


class MutualInformationPositive(MutualInformation):
    """The same and three: its loss stays above 0."""

    above, trivial_loss = 3.0, 3.0


class Drift(ByMomentum):
    """A Gaussian likelihood of what becomes harder to foretell: the loss falls below 0, and rises again by design."""

    short, rates = 600, (0.0003, 0.001, 0.005, 0.02)
    thresholds = (0.5, 2.0, 8.0)
    trivial_loss = 1.0

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.net = perceptron(4, 64, 2)
        self.drawn = 0

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        """A third of the steps as it was, a third ever noisier, a third noisy; each of them about another function."""
        third = self.steps // 3
        noise = 0.05 + 0.6 * min(1.0, max(0.0, self.drawn / third - 1))
        inputs = torch.randn(size, 4, generator=generator)
        targets = torch.sin(inputs.sum(1, keepdim=True) + min(self.drawn // third, 2))
        return inputs, targets + noise * torch.randn(size, 1, generator=generator)

    def batch(self) -> Batch:
        batch = super().batch()
        self.drawn += 1
        return batch

    def loss(self, batch: Batch) -> Tensor:
        return gaussian_loss(self.net(batch[0]), batch[1])


class Critic(Drawn):
    """A critic of a Wasserstein distance with its penalty (Gulrajani et al. 2017), the other side fixed, plain SGD."""

    short, rates = 500, (0.001, 0.005, 0.025, 0.125)
    thresholds = (0.2, 1.0, 5.0)
    trivial_loss, chosen_on = 7.0, True
    batch_size = 64

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.critic = perceptron(2, 64, 64, 1)

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        angles = 2 * math.pi * torch.rand(size, generator=generator)
        real = 2 * torch.stack([angles.cos(), angles.sin()], 1) + 0.1 * torch.randn(size, 2, generator=generator)
        return real, torch.randn(size, 2, generator=generator), torch.rand(size, 1, generator=generator)

    def loss(self, batch: Batch) -> Tensor:
        real, fake, share = batch
        between = (share * real + (1 - share) * fake).requires_grad_()
        with torch.enable_grad():  # when it is held out too
            [slope] = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        distance = self.critic(real).mean() - self.critic(fake).mean()
        return 10 * (slope.norm(dim=1) - 1).square().mean() - distance

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


BELOW_ZERO: dict[str, type[Training]] = {
    "flow-couplings-momentum": CouplingFlow,
    "elbo-momentum": EvidenceBound,
    "mine-momentum": MutualInformation,
    "mine-above-momentum": MutualInformationAbove,
    "mine-positive-momentum": MutualInformationPositive,
    "drift-momentum": Drift,
    "critic-sgd": Critic,
}
