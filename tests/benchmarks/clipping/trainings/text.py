"""Language models: of Penn Treebank's words, and of the characters of Python's standard library."""

import gzip
import itertools
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from rnn_blocks.recipes.data.corpora.stdlib import StandardLibrary
from trainings.training import Batch, Supervised


def lanes(tokens: Tensor, batch_size: int, bptt: int, offset: int = 0) -> Iterator[Batch]:
    """Endless truncated-BPTT chunks (inputs, targets), ``(batch, time)``, of `batch_size` parallel streams."""
    length = (len(tokens) - 1) // batch_size
    inputs, targets = (t[: length * batch_size].view(batch_size, length) for t in (tokens, tokens[1:]))
    for start in itertools.count(offset, bptt):
        columns = torch.arange(start, start + bptt) % length
        yield inputs[:, columns], targets[:, columns]


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM, output; carries its state from chunk to chunk while it trains."""

    def __init__(self, types: int, size: int, num_layers: int = 1) -> None:
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


class LanguageModelling(Supervised):
    """Next token, in lanes."""

    batch_size, bptt = 20, 50
    model: nn.Module

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        offset = int(torch.randint(10_000, (), generator=self.generator))
        self._lanes = lanes(self.split("train"), self.batch_size, self.bptt, offset)

    @classmethod
    @abstractmethod
    def split(cls, name: str) -> Tensor:
        """Token indices of ``"train"`` or ``"valid"``."""

    def batch(self) -> Batch:
        return next(self._lanes)

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.model(batch[0]).flatten(0, 1), batch[1].flatten())


class PennTreebankWords(LanguageModelling):
    """LSTM-128 on Penn Treebank's 2,000 most frequent words, plain SGD."""

    short, rates = 300, (1.0, 4.0, 16.0, 64.0)
    thresholds = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
    types, trivial_loss = 2_000, 5.6
    batch_size, bptt = 20, 20
    folder: ClassVar[Path | None] = None
    _splits: ClassVar[dict[str, Tensor]] = {}

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.model = LSTMLanguageModel(self.types, 128)
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

    def held_out(self) -> list[Batch]:
        return list(itertools.islice(lanes(self.split("valid"), batch_size=20, bptt=100), 10))

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


class Characters(LanguageModelling):
    """LSTM-96 on the bytes of Python's standard library, Adam."""

    batch_size, bptt = 20, 32
    short, rates = 300, (0.0025, 0.01, 0.04, 0.2)
    thresholds = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    trivial_loss = 3.2
    _splits: ClassVar[dict[str, Tensor]] = {}

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.model = self.make_model()

    def make_model(self) -> nn.Module:
        return LSTMLanguageModel(128, 96)

    @classmethod
    def split(cls, name: str) -> Tensor:
        if not Characters._splits:
            library = StandardLibrary()
            texts: dict[str, list[bytes]] = {"train": [], "val": []}
            for path in sorted(library.folder.glob("*.py")):
                texts.get(library.split_of(path.name), []).append(path.read_bytes())
            Characters._splits = {
                name: torch.tensor([min(byte, 127) for byte in b"".join(text)]) for name, text in texts.items()
            }
        return Characters._splits["val" if name == "valid" else name]

    def held_out(self) -> list[Batch]:
        return list(itertools.islice(lanes(self.split("valid"), batch_size=20, bptt=200), 10))

    def make_optimizer(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.rate)


class CharactersRMSprop(Characters):
    """The same model, RMSprop."""

    rates = (0.0005, 0.002, 0.008, 0.03)

    def make_optimizer(self) -> Optimizer:
        return RMSprop(self.parameters(), lr=self.rate)


class Transformer(nn.Module):
    """Two pre-norm blocks of width 48."""

    context = 32

    def __init__(self, deviation: float | None = None) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(128, 48), nn.Embedding(self.context, 48)
        block = nn.TransformerEncoderLayer(48, 4, 192, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.output = nn.Linear(48, 128)
        self.mask = nn.Transformer.generate_square_subsequent_mask(self.context)
        for weight in self.parameters():
            if deviation is not None and weight.dim() > 1:
                nn.init.normal_(weight, std=deviation)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embedding(inputs) + self.positions.weight
        return self.output(self.blocks(hidden, mask=self.mask, is_causal=True))


class CharactersTransformer(Characters):
    """A transformer of two pre-norm blocks, width 48, on the same bytes, AdamW."""

    rates = (0.001, 0.005, 0.025, 0.125)
    batch_size, bptt = 16, Transformer.context

    def make_model(self) -> nn.Module:
        return Transformer()

    def held_out(self) -> list[Batch]:
        return list(itertools.islice(lanes(self.split("valid"), batch_size=64, bptt=self.bptt), 10))

    def make_optimizer(self) -> Optimizer:
        return AdamW(self.parameters(), lr=self.rate)


class CharactersGPT(CharactersTransformer):
    """The same transformer with weights of N(0, 0.02), a warm-up, weight decay 0.1 and betas 0.9, 0.95."""

    def make_model(self) -> nn.Module:
        return Transformer(deviation=0.02)

    def make_optimizer(self) -> Optimizer:
        return AdamW(self.parameters(), lr=self.rate, betas=(0.9, 0.95), weight_decay=0.1)

    def schedule(self, step: int) -> float:
        return min(1.0, (step + 1) / 30, 2 * (1 - step / self.steps))
