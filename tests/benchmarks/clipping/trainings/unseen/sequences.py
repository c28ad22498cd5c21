"""Sequences: words, three quantiles and counts to forecast, dates to write in another way, and places to tag."""

import calendar
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, poisson_nll_loss
from torch.optim import SGD, Optimizer

from trainings.later.drawn import Drawn, cosine
from trainings.text import LSTMLanguageModel, PennTreebankWords, lanes
from trainings.training import Batch


class TiedLanguageModel(LSTMLanguageModel):
    """Embedding and output of the same weights, dropout before and after the LSTM."""

    def __init__(self, types: int, size: int) -> None:
        super().__init__(types, size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        self.output.weight = self.embedding.weight
        self.dropout = nn.Dropout(0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, state = self.lstm(self.dropout(self.embedding(inputs)), self.state if self.training else None)
        if self.training:
            self.state = (state[0].detach(), state[1].detach())
        return self.output(self.dropout(outputs))


class TiedWords(PennTreebankWords):
    """LSTM-64 with tied weights and dropout on Penn Treebank's 1,500 most frequent words, plain SGD, two drops."""

    short, rates = 500, (0.5, 2.0, 8.0, 32.0)
    thresholds = (0.01, 0.03, 0.08, 0.3, 1.0)
    types, trivial_loss = 1_500, 5.2
    batch_size, bptt = 16, 12
    _splits: ClassVar[dict[str, Tensor]] = {}

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.model = TiedLanguageModel(self.types, 64)

    def held_out(self) -> list[Batch]:
        return [next(lanes(self.split("valid"), batch_size=16, bptt=240))]

    def schedule(self, step: int) -> float:
        return 1.0 if step < 0.6 * self.steps else 0.25 if step < 0.8 * self.steps else 0.0625


class Quantiles(Drawn):
    """LSTM-32 forecasts three quantiles of a season with heavy-tailed noise, SGD with momentum 0.9, warm-up, cosine."""

    short, rates = 700, (0.2, 0.8, 3.2, 12.8)
    thresholds = (0.0015, 0.005, 0.015, 0.05, 0.15)
    trivial_loss = 0.25
    batch_size = 24

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.lstm, self.output = nn.LSTM(1, 32, batch_first=True), nn.Linear(32, 3)
        self.quantiles = torch.tensor([0.1, 0.5, 0.9])

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        phases = 6.28 * torch.rand(size, 1, generator=generator)
        periods = 6 + 10 * torch.rand(size, 1, generator=generator)
        shocks = 0.4 * torch.randn(size, 33, generator=generator)
        shocks = shocks * (0.6 * torch.randn(size, 33, generator=generator)).exp()
        noise = [shocks[:, 0]]
        for shock in shocks[:, 1:].unbind(1):
            noise.append(0.6 * noise[-1] + shock)
        return (torch.sin(6.28 * torch.arange(33.0) / periods + phases) + torch.stack(noise, dim=1),)

    def loss(self, batch: Batch) -> Tensor:
        """Koenker and Bassett's."""
        above = batch[0][:, 1:, None] - self.output(self.lstm(batch[0][:, :-1, None])[0])
        return torch.maximum(self.quantiles * above, (self.quantiles - 1) * above).mean()

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)

    def schedule(self, step: int) -> float:
        return (step + 1) / 50 if step < 50 else cosine(step - 50, self.steps - 50)


class Dates(Drawn):
    """LSTM-48 encoder, decoder and additive attention write dates by ISO 8601, smoothed labels, Nesterov, warm-up."""

    short, rates = 450, (0.08, 0.32, 1.28, 5.0)
    thresholds = (0.002, 0.005, 0.02, 0.06, 0.2)
    trivial_loss, test_size = 2.55, 400
    months = tuple(map(str.lower, calendar.month_name))  # from 1 on
    characters = "\0\1 abcdefghijklmnopqrstuvwxyz0123456789-,"  # the first fills up, the second begins

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.embedding = nn.Embedding(len(self.characters), 24)
        self.encoder, self.decoder = nn.LSTM(24, 48, batch_first=True), nn.LSTM(24, 48, batch_first=True)
        self.query, self.key = nn.Linear(48, 32, bias=False), nn.Linear(48, 32)
        self.score = nn.Linear(32, 1, bias=False)
        self.output = nn.Linear(96, len(self.characters))

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        """Characters as indices of dates in one of three forms, ``(size, 18)``, and by ISO 8601, ``(size, 11)``."""
        limits = ((1, 29), (1, 13), (1950, 2050), (0, 3))
        drawn = [torch.randint(*limit, (size,), generator=generator).tolist() for limit in limits]
        sources, targets = [], []
        for day, month, year, form in zip(*drawn, strict=True):
            name = self.months[month]
            forms = (f"{day} {name} {year}", f"{name} {day}, {year}", f"{name[:3]} {day} {year}")
            sources.append(self.indices(forms[form].ljust(18, "\0")))
            targets.append(self.indices(f"\1{year}-{month:02d}-{day:02d}"))
        return torch.tensor(sources), torch.tensor(targets)

    def indices(self, text: str) -> list[int]:
        return [self.characters.index(character) for character in text]

    def loss(self, batch: Batch) -> Tensor:
        sources, targets = batch
        memory, state = self.encoder(self.embedding(sources))
        decoded, _ = self.decoder(self.embedding(targets[:, :-1]), state)
        scores = self.score(torch.tanh(self.query(decoded)[:, :, None] + self.key(memory)[:, None]))[..., 0]
        logits = self.output(torch.cat([decoded, scores.softmax(-1) @ memory], dim=-1))
        return cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), label_smoothing=0.1)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9, nesterov=True)

    def schedule(self, step: int) -> float:
        return min(1.0, (step + 1) / 30)


class Counts(Drawn):
    """GRU-32 forecasts counts of a hidden rate, Poisson loss, perhaps near 0, SGD with momentum 0.9, constant rate."""

    short, rates = 700, (0.01, 0.04, 0.16, 0.64)
    thresholds = (0.01, 0.04, 0.1, 0.4, 1.0)
    trivial_loss = 0.99
    batch_size = 24

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.gru, self.output = nn.GRU(2, 32, batch_first=True), nn.Linear(32, 1)

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        frequencies = 0.15 + 0.5 * torch.rand(size, 1, generator=generator)
        phases = 6.28 * torch.rand(size, 1, generator=generator)
        levels = 0.3 * torch.randn(size, 1, generator=generator)
        rates = 0.9 * (levels + 0.9 * torch.sin(frequencies * torch.arange(25.0) + phases)).exp()
        return (torch.poisson(rates, generator=generator),)

    def loss(self, batch: Batch) -> Tensor:
        before, after = batch[0][:, :-1], batch[0][:, 1:]
        outputs, _ = self.gru(torch.stack([before, before.log1p()], dim=-1))
        return poisson_nll_loss(self.output(outputs)[..., 0], after)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)

    def schedule(self, step: int) -> float:
        return 1.0


class Tags(Drawn):
    """LSTM-24 of both ways with layer norm, twelve tags of a place, four batches a step, SGD with momentum, cosine."""

    short, rates = 350, (0.02, 0.08, 0.32, 1.28)
    thresholds = (0.07, 0.2, 0.7, 2.0, 7.0)
    trivial_loss = 5.65
    part_size, test_size = 8, 256

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.embedding = nn.Embedding(40, 24)
        self.lstm = nn.LSTM(24, 24, batch_first=True, bidirectional=True)
        self.norm, self.output = nn.LayerNorm(48), nn.Linear(48, 12)
        generator = torch.Generator().manual_seed(1)
        self.first, self.second = (torch.rand(40, 12, generator=generator) < 0.3 for _ in range(2))

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        """Symbols ``(size, 16)`` and their tags ``(size, 16, 12)``, which depend on those around, one in 50 wrong."""
        symbols = torch.randint(40, (size, 16), generator=generator)
        first, second = self.first[symbols], self.second[symbols]
        tags = (first & second.roll(1, 1)) | (first.roll(-1, 1) & second)
        return symbols, (tags ^ (torch.rand(tags.shape, generator=generator) < 0.02)).float()

    def loss(self, batch: Batch) -> Tensor:
        """The mean of batches of eight, as of gradients that are accumulated."""
        parts = zip(*(tensor.split(self.part_size) for tensor in batch), strict=True)
        return torch.stack([self.loss_of_part(symbols, tags) for symbols, tags in parts]).mean()

    def loss_of_part(self, symbols: Tensor, tags: Tensor) -> Tensor:
        logits = self.output(self.norm(self.lstm(self.embedding(symbols))[0]))
        return binary_cross_entropy_with_logits(logits, tags, reduction="none").sum(-1).mean()

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)

    def schedule(self, step: int) -> float:
        return (step + 1) / 10 if step < 10 else cosine(step - 10, self.steps - 10)
