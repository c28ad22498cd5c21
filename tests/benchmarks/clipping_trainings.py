"""Five small trainings of which a clipping threshold can be swept: what they train, on what, and at which rates.

Each takes seconds on one thread. Between them they have plain SGD, SGD with momentum and Adam, recurrent networks and
a transformer, real text and generated data. The learning rate falls to 0 over the second half of each. The highest of
each one's learning rates is too high to train well, or at all, without clipping.
"""

import gzip
import itertools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, pad
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rnn_blocks import Elman
from rnn_blocks.recipes.data.corpora.stdlib import StandardLibrary

Batch = tuple[Tensor, ...]


class DivergedError(Exception):
    """The loss is no number any more."""


class Training(LightningModule, ABC):
    """A module, its data and its optimizer, all drawn by a seed.

    Attributes:
        steps: optimizer steps of a whole training.
        rates: learning rates to train at, ascending.
        thresholds: hand-set clipping thresholds to sweep.
        trivial_loss: held-out loss of a model that has learnt nothing; a training that ends above it has diverged.
    """

    steps: ClassVar[int]
    rates: ClassVar[tuple[float, ...]]
    thresholds: ClassVar[tuple[float, ...]]
    trivial_loss: float

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.rate = rate
        self.losses: list[float] = []

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Training batches, as many as wanted."""

    @abstractmethod
    def held_out(self) -> list[Batch]:
        """Batches to test on, the same for every seed."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Of one batch."""

    @abstractmethod
    def make_optimizer(self) -> Optimizer:
        """The optimizer at this training's rate."""

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = self.make_optimizer()
        schedule = LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / self.steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        if not math.isfinite(self.losses[-1]):
            raise DivergedError
        return loss

    @torch.no_grad()
    def held_out_loss(self) -> float:
        self.eval()
        losses = [self.loss(batch).item() for batch in self.held_out()]
        return sum(losses) / len(losses)


def lanes(tokens: Tensor, batch_size: int, bptt: int, offset: int = 0) -> Iterator[Batch]:
    """Endless truncated-BPTT chunks (inputs, targets), ``(batch, time)``, of `batch_size` parallel streams."""
    length = (len(tokens) - 1) // batch_size
    inputs, targets = (t[: length * batch_size].view(batch_size, length) for t in (tokens, tokens[1:]))
    for start in itertools.count(offset, bptt):
        columns = torch.arange(start, start + bptt) % length
        yield inputs[:, columns], targets[:, columns]


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM, output; carries its state from chunk to chunk while it trains."""

    def __init__(self, types: int, size: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(types, size)
        self.lstm = nn.LSTM(size, size, num_layers, batch_first=True)
        self.output = nn.Linear(size, types)
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, state = self.lstm(self.embedding(inputs), self.state if self.training else None)
        if self.training:
            self.state = (state[0].detach(), state[1].detach())
        return self.output(outputs)


class PennTreebankWords(Training):
    """LSTM-128 on Penn Treebank's 2,000 most frequent words, plain SGD."""

    steps, rates = 300, (1.0, 4.0, 16.0, 64.0)
    thresholds = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
    types = 2_000
    trivial_loss = 5.6
    folder: ClassVar[Path | None] = None
    _splits: ClassVar[dict[str, Tensor]] = {}

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__(seed, rate)
        self.model = LSTMLanguageModel(self.types, 128, num_layers=1)
        for weight in self.model.parameters():
            nn.init.uniform_(weight, -0.1, 0.1)

    @classmethod
    def split(cls, name: str) -> Tensor:
        if not cls._splits:
            if cls.folder is None:
                raise FileNotFoundError("give the folder with ptb.train.txt.gz and ptb.valid.txt.gz as --ptb")
            words = {}
            for split in ("train", "valid"):
                text = gzip.decompress((cls.folder / f"ptb.{split}.txt.gz").read_bytes()).decode()
                words[split] = text.replace("\n", " <eos> ").split()
            frequent = [word for word, _ in Counter(words["train"]).most_common(cls.types - 1)]
            index = {word: place for place, word in enumerate(frequent, start=1)}
            cls._splits = {split: torch.tensor([index.get(word, 0) for word in text]) for split, text in words.items()}
        return cls._splits[name]

    def batches(self) -> Iterator[Batch]:
        offset = int(torch.randint(10_000, (), generator=self.generator))
        return lanes(self.split("train"), batch_size=20, bptt=20, offset=offset)

    def held_out(self) -> list[Batch]:
        return list(itertools.islice(lanes(self.split("valid"), batch_size=20, bptt=100), 10))

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.model(batch[0]).flatten(0, 1), batch[1].flatten())

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


class StandardLibraryCharacters(Training):
    """LSTM-128 on the bytes of Python's standard library, Adam."""

    steps, rates = 300, (0.01, 0.04, 0.2, 1.0)
    thresholds = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    trivial_loss = 3.2
    _splits: ClassVar[dict[str, Tensor]] = {}

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__(seed, rate)
        self.model = LSTMLanguageModel(128, 128, num_layers=1)

    @classmethod
    def split(cls, name: str) -> Tensor:
        if not cls._splits:
            library = StandardLibrary()
            texts: dict[str, list[bytes]] = {"train": [], "val": []}
            for path in sorted(library.folder.glob("*.py")):
                texts.get(library.split_of(path.name), []).append(path.read_bytes())
            cls._splits = {
                name: torch.tensor([min(byte, 127) for byte in b"".join(text)]) for name, text in texts.items()
            }
        return cls._splits[name]

    def batches(self) -> Iterator[Batch]:
        offset = int(torch.randint(10_000, (), generator=self.generator))
        return lanes(self.split("train"), batch_size=20, bptt=50, offset=offset)

    def held_out(self) -> list[Batch]:
        return list(itertools.islice(lanes(self.split("val"), batch_size=20, bptt=200), 10))

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.model(batch[0]).flatten(0, 1), batch[1].flatten())

    def make_optimizer(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.rate)


ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS = ["<pad>", "<bos>", "<eos>", *ONES, *TENS[2:], "hundred", "thousand", "and"]


def spell(number: int) -> list[str]:
    """A number below a million in English words."""
    if number < 20:
        return [ONES[number]]
    if number < 100:
        return [TENS[number // 10], *(spell(number % 10) if number % 10 else [])]
    if number < 1000:
        return [ONES[number // 100], "hundred", *(["and", *spell(number % 100)] if number % 100 else [])]
    return [*spell(number // 1000), "thousand", *(spell(number % 1000) if number % 1000 else [])]


class SpeltNumbers(Training):
    """GRU-128 encoder and decoder, numbers below a million from digits to English words, Adam."""

    steps, rates = 300, (0.004, 0.02, 0.1, 0.5)
    thresholds = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    trivial_loss = 2.6

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__(seed, rate)
        self.digits, self.words = nn.Embedding(11, 64, padding_idx=10), nn.Embedding(len(WORDS), 64, padding_idx=0)
        self.encoder, self.decoder = nn.GRU(64, 128, batch_first=True), nn.GRU(64, 128, batch_first=True)
        self.output = nn.Linear(128, len(WORDS))

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        lengths = torch.randint(1, 7, (size,), generator=generator)
        numbers = (torch.rand(size, generator=generator) * 10**lengths).long().tolist()
        sources = [torch.tensor([int(digit) for digit in reversed(str(number))]) for number in numbers]
        targets = [torch.tensor([WORDS.index(word) for word in ["<bos>", *spell(n), "<eos>"]]) for n in numbers]
        sources = torch.stack([pad(source, (6 - len(source), 0), value=10) for source in sources])
        return sources, nn.utils.rnn.pad_sequence(targets, batch_first=True)

    def batches(self) -> Iterator[Batch]:
        while True:
            yield self.batch(self.generator, 32)

    def held_out(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(-1)
        return [self.batch(generator, 128) for _ in range(4)]

    def loss(self, batch: Batch) -> Tensor:
        sources, targets = batch
        _, state = self.encoder(self.digits(sources))
        outputs, _ = self.decoder(self.words(targets[:, :-1]), state)
        return cross_entropy(self.output(outputs).flatten(0, 1), targets[:, 1:].flatten(), ignore_index=0)

    def make_optimizer(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.rate)


class AddingProblem(Training):
    """`Elman`-64 with rectified units on the adding problem over 30 steps, SGD with momentum 0.9."""

    steps, rates = 1200, (0.0003, 0.001, 0.003, 0.01)
    thresholds = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    trivial_loss = 1 / 6
    length = 30

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__(seed, rate)
        self.layer, self.output = Elman(2, 64, nonlinearity="relu"), nn.Linear(64, 1)
        with torch.no_grad():  # Le, Jaitly and Hinton 2015
            for name, weight in self.layer.named_parameters():
                if weight.shape == (64, 64):
                    nn.init.eye_(weight)
                elif "bias" in name:
                    weight.zero_()

    def batch(self, generator: torch.Generator, size: int) -> Batch:
        values = torch.rand(size, self.length, generator=generator)
        half = self.length // 2
        places = torch.stack([torch.randint(half, (size,), generator=generator) + k * half for k in range(2)], dim=1)
        marks = torch.zeros_like(values).scatter_(1, places, 1.0)
        return torch.stack([values, marks], dim=-1), (values * marks).sum(1, keepdim=True)

    def batches(self) -> Iterator[Batch]:
        while True:
            yield self.batch(self.generator, 32)

    def held_out(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(-1)
        return [self.batch(generator, 500) for _ in range(4)]

    def loss(self, batch: Batch) -> Tensor:
        return mse_loss(self.output(self.layer(batch[0])[0][:, -1]), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)


class TransformerCharacters(StandardLibraryCharacters):
    """A transformer of two pre-norm blocks, width 64, on the same bytes, AdamW."""

    steps, rates = 300, (0.001, 0.005, 0.025, 0.125)
    context = 64

    def __init__(self, seed: int, rate: float) -> None:
        super().__init__(seed, rate)
        del self.model
        self.embedding, self.positions = nn.Embedding(128, 64), nn.Embedding(self.context, 64)
        block = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.output = nn.Linear(64, 128)
        self.mask = nn.Transformer.generate_square_subsequent_mask(self.context)

    def batches(self) -> Iterator[Batch]:
        offset = int(torch.randint(10_000, (), generator=self.generator))
        return lanes(self.split("train"), batch_size=16, bptt=self.context, offset=offset)

    def held_out(self) -> list[Batch]:
        return list(itertools.islice(lanes(self.split("val"), batch_size=64, bptt=self.context), 10))

    def loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch
        hidden = self.embedding(inputs) + self.positions.weight
        outputs = self.output(self.blocks(hidden, mask=self.mask, is_causal=True))
        return cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def make_optimizer(self) -> Optimizer:
        return AdamW(self.parameters(), lr=self.rate)


TRAININGS: dict[str, type[Training]] = {
    "ptb-lstm-sgd": PennTreebankWords,
    "characters-lstm-adam": StandardLibraryCharacters,
    "numbers-gru-adam": SpeltNumbers,
    "adding-elman-momentum": AddingProblem,
    "characters-transformer-adamw": TransformerCharacters,
}
