"""Where the loss is not what is wanted to fall: a GAN, a VAE with an annealed penalty, a policy gradient."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu, softplus
from torch.optim import SGD, Adam, Optimizer

from trainings.pictures import HELD_OUT, digits
from trainings.training import Training


class GAN(Training):
    """A generator of eight Gaussians on a circle and its discriminator, manual optimisation, Adam twice."""

    short, rates = 400, (0.0005, 0.002, 0.008, 0.03)
    thresholds = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    trivial_loss, asks_the_loss = 0.8, False

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.maker = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        self.judge = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    @staticmethod
    def real(size: int, generator: torch.Generator) -> Tensor:
        angles = torch.randint(8, (size,), generator=generator) * torch.pi / 4
        centres = torch.stack([angles.cos(), angles.sin()], dim=1)
        return centres + 0.05 * torch.randn(size, 2, generator=generator)

    def made(self, size: int, generator: torch.Generator) -> Tensor:
        return self.maker(torch.randn(size, 8, generator=generator))

    def make_optimizers(self) -> list[Optimizer]:
        return [Adam(part.parameters(), lr=self.rate, betas=(0.5, 0.9)) for part in (self.judge, self.maker)]

    def objectives(self, step: int) -> Iterator[tuple[int, Tensor]]:
        real, made = self.real(128, self.generator), self.made(128, self.generator)
        yield 0, softplus(-self.judge(real)).mean() + softplus(self.judge(made.detach())).mean()
        yield 1, softplus(-self.judge(made)).mean()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Wasserstein distance to the truth, mean over 16 directions."""
        generator = torch.Generator().manual_seed(-1)
        real, made = self.real(2048, generator), self.made(2048, generator)
        angles = torch.arange(16) * torch.pi / 16
        directions = torch.stack([angles.cos(), angles.sin()])
        return float(((real @ directions).sort(0).values - (made @ directions).sort(0).values).abs().mean())


class VAE(Training):
    """A variational autoencoder of digits whose penalty grows from 0, manual optimisation, Adam."""

    short, rates = 300, (0.0005, 0.002, 0.008, 0.03)
    thresholds = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    trivial_loss, asks_the_loss = 35.0, False

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 64))

    def make_optimizers(self) -> list[Optimizer]:
        return [Adam(self.parameters(), lr=self.rate)]

    def bound(self, pictures: Tensor, noise: Tensor, penalty: float = 1.0) -> Tensor:
        mean, log_variance = self.encoder(pictures).chunk(2, dim=1)
        logits = self.decoder(mean + (0.5 * log_variance).exp() * noise)
        reconstruction = binary_cross_entropy_with_logits(logits, pictures, reduction="none").sum(1).mean()
        return reconstruction + penalty * 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum(1).mean()

    def objectives(self, step: int) -> Iterator[tuple[int, Tensor]]:
        pictures, _ = digits()
        rows = torch.randint(HELD_OUT, len(pictures), (64,), generator=self.generator)
        noise = torch.randn(64, 8, generator=self.generator)
        yield 0, self.bound(pictures[rows], noise, penalty=min(1.0, 2 * step / self.steps))

    @torch.no_grad()
    def held_out_loss(self) -> float:
        noise = torch.randn(HELD_OUT, 8, generator=torch.Generator().manual_seed(-1))
        return float(self.bound(digits()[0][:HELD_OUT], noise))


class PolicyGradient(Training):
    """A policy that names the digit of a picture and is paid 1 if right, REINFORCE with a baseline, plain SGD."""

    short, rates = 600, (0.1, 0.4, 1.6, 6.0)
    thresholds = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    trivial_loss = 0.92

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.hidden, self.output = nn.Linear(64, 64), nn.Linear(64, 10)
        self.baseline = 0.1

    def policy(self, pictures: Tensor) -> Tensor:
        return self.output(relu(self.hidden(pictures))).log_softmax(1)

    def make_optimizers(self) -> list[Optimizer]:
        return [SGD(self.parameters(), lr=self.rate)]

    def objectives(self, step: int) -> Iterator[tuple[int, Tensor]]:
        pictures, targets = digits()
        rows = torch.randint(HELD_OUT, len(targets), (128,), generator=self.generator)
        log_chances = self.policy(pictures[rows])
        named = torch.multinomial(log_chances.detach().exp(), 1, generator=self.generator).squeeze(1)
        paid = (named == targets[rows]).float()
        chosen = log_chances.gather(1, named[:, None]).squeeze(1)
        entropy = -(log_chances.exp() * log_chances).sum(1).mean()
        yield 0, -((paid - self.baseline) * chosen).mean() - 0.01 * entropy
        self.baseline += 0.05 * (float(paid.mean()) - self.baseline)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """What it is not paid, on average."""
        pictures, targets = digits()
        chances = self.policy(pictures[:HELD_OUT]).exp()
        return float(1 - chances.gather(1, targets[:HELD_OUT, None]).mean())
