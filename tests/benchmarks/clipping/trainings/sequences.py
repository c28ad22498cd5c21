"""Generated sequences: spelt numbers, the adding problem."""

import torch
from num2words import num2words
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, pad
from torch.optim import SGD, Adam, Optimizer

from rnn_blocks import Elman
from trainings.training import Batch, Supervised

SPELT = [num2words(number).replace("-", " ").replace(",", "").split() for number in range(1000)]
WORDS = ["<pad>", "<bos>", "<eos>", "thousand", *sorted({word for words in SPELT for word in words})]


def spell(number: int) -> list[str]:
    """A number below a million in English words."""
    thousands, rest = divmod(number, 1000)
    if not thousands:
        return SPELT[rest]
    return [*SPELT[thousands], "thousand", *(SPELT[rest] if rest else [])]


class SpeltNumbers(Supervised):
    """GRU-128 encoder and decoder, numbers below a million from digits to English words, Adam."""

    short, rates = 300, (0.001, 0.004, 0.02, 0.1)
    thresholds = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    trivial_loss = 2.6

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.digits, self.words = nn.Embedding(11, 64, padding_idx=10), nn.Embedding(len(WORDS), 64, padding_idx=0)
        self.encoder, self.decoder = nn.GRU(64, 128, batch_first=True), nn.GRU(64, 128, batch_first=True)
        self.output = nn.Linear(128, len(WORDS))

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        lengths = torch.randint(1, 7, (size,), generator=generator)
        numbers = (torch.rand(size, generator=generator) * 10**lengths).long().tolist()
        sources = [torch.tensor([int(digit) for digit in reversed(str(number))]) for number in numbers]
        targets = [torch.tensor([WORDS.index(word) for word in ["<bos>", *spell(n), "<eos>"]]) for n in numbers]
        sources = torch.stack([pad(source, (6 - len(source), 0), value=10) for source in sources])
        return sources, nn.utils.rnn.pad_sequence(targets, batch_first=True)

    def batch(self) -> Batch:
        return self.draw(self.generator, 32)

    def held_out(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(-1)
        return [self.draw(generator, 128) for _ in range(4)]

    def loss(self, batch: Batch) -> Tensor:
        sources, targets = batch
        _, state = self.encoder(self.digits(sources))
        outputs, _ = self.decoder(self.words(targets[:, :-1]), state)
        return cross_entropy(self.output(outputs).flatten(0, 1), targets[:, 1:].flatten(), ignore_index=0)

    def make_optimizer(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.rate)


class AddingProblem(Supervised):
    """`Elman`-64 with rectified units on the adding problem over 30 steps, SGD with momentum 0.9."""

    short, rates = 1200, (0.0003, 0.001, 0.003, 0.01)
    thresholds = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    trivial_loss, chosen_on = 0.25, True
    time = 30

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.layer, self.output = Elman(2, 64, nonlinearity="relu"), nn.Linear(64, 1)
        with torch.no_grad():  # Le, Jaitly and Hinton 2015
            for name, weight in self.layer.named_parameters():
                if weight.shape == (64, 64):
                    nn.init.eye_(weight)
                elif "bias" in name:
                    weight.zero_()

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        values = torch.rand(size, self.time, generator=generator)
        half = self.time // 2
        places = torch.stack([torch.randint(half, (size,), generator=generator) + k * half for k in range(2)], dim=1)
        marks = torch.zeros_like(values).scatter_(1, places, 1.0)
        return torch.stack([values, marks], dim=-1), (values * marks).sum(1, keepdim=True)

    def batch(self) -> Batch:
        return self.draw(self.generator, 32)

    def held_out(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(-1)
        return [self.draw(generator, 500) for _ in range(4)]

    def loss(self, batch: Batch) -> Tensor:
        return mse_loss(self.output(self.layer(batch[0])[0][:, -1]), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)
