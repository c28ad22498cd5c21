"""The topics of Python's help: their characters by an Elman network and a transformer, their words by skip-grams."""

import pydoc_data.topics
import re
from collections import Counter
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from torch.optim import SGD, Optimizer

from trainings.later.drawn import cosine
from trainings.training import Batch, Supervised

HELD_OUT = 12_000  # characters, at the end
HELD_OUT_WORDS = 2_000


@cache
def characters() -> tuple[Tensor, int]:
    """The first 120,000 as indices, and how many types there are."""
    text = "\n".join(pydoc_data.topics.topics.values())[:120_000]
    index = {character: place for place, character in enumerate(sorted(set(text)))}
    return torch.tensor([index[character] for character in text]), len(index)


@cache
def words() -> Tensor:
    """The text's words as indices, those left out that are not among the 500 most frequent."""
    text = re.findall(r"[a-z]+", "\n".join(pydoc_data.topics.topics.values()).lower())
    index = {word: place for place, (word, _) in enumerate(Counter(text).most_common(500))}
    return torch.tensor([index[word] for word in text if word in index])


class ElmanCharacters(Supervised):
    """Elman network of 96 on characters, in chunks of 25 with the state carried (as min-char-rnn), plain SGD."""

    short, rates = 500, (0.2, 0.6, 2.0, 8.0)
    thresholds = (0.1, 0.3, 1.0, 3.0, 10.0)
    trivial_loss, chosen_on = 3.4, True
    batch_size, bptt = 16, 25

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        text, types = characters()
        self.embedding, self.rnn = nn.Embedding(types, 32), nn.RNN(32, 96, batch_first=True)
        self.output = nn.Linear(96, types)
        columns = (len(text) - HELD_OUT) // self.batch_size
        self.lanes = text[: columns * self.batch_size].view(self.batch_size, columns)
        self.start = int(torch.randint(3_000, (1,), generator=self.generator))
        self.state: Tensor | None = None

    def batch(self) -> Batch:
        if self.start + self.bptt >= self.lanes.shape[1]:
            self.start, self.state = 0, None
        start, self.start = self.start, self.start + self.bptt
        return (self.lanes[:, start : start + self.bptt + 1],)

    def held_out(self) -> list[Batch]:
        return [(characters()[0][-HELD_OUT:][: 40 * 290].view(40, 290),)]

    def loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch[0][:, :-1], batch[0][:, 1:]
        outputs, state = self.rnn(self.embedding(inputs), self.state if self.training else None)
        if self.training:
            self.state = state.detach()
        return cross_entropy(self.output(outputs).flatten(0, 1), targets.flatten())

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


class TransformerMomentum(Supervised):
    """Two pre-norm blocks of width 48 on characters, SGD with momentum (as Zhang et al. 2020), warm-up, cosine."""

    short, rates = 250, (0.05, 0.25, 1.25, 5.0)
    thresholds = (0.05, 0.17, 0.6, 2.0, 7.0)
    trivial_loss = 3.4
    context = 32

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        _, types = characters()
        self.embedding = nn.Embedding(types, 48)
        self.positions = nn.Parameter(0.02 * torch.randn(self.context, 48))
        block = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.output = nn.LayerNorm(48), nn.Linear(48, types)
        self.mask = nn.Transformer.generate_square_subsequent_mask(self.context)

    def windows(self, text: Tensor, generator: torch.Generator, size: int) -> Batch:
        starts = torch.randint(len(text) - self.context - 1, (size,), generator=generator).tolist()
        return (torch.stack([text[start : start + self.context + 1] for start in starts]),)

    def batch(self) -> Batch:
        return self.windows(characters()[0][:-HELD_OUT], self.generator, 16)

    def held_out(self) -> list[Batch]:
        return [self.windows(characters()[0][-HELD_OUT:], torch.Generator().manual_seed(-1), 128)]

    def loss(self, batch: Batch) -> Tensor:
        inputs, targets = batch[0][:, :-1], batch[0][:, 1:]
        hidden = self.blocks(self.embedding(inputs) + self.positions, mask=self.mask, is_causal=True)
        return cross_entropy(self.output(self.norm(hidden)).flatten(0, 1), targets.flatten())

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)

    def schedule(self, step: int) -> float:
        return cosine(step, self.steps, warm=30)


class SkipGrams(Supervised):
    """Skip-grams with five negatives, the loss summed, outputs from 0, plain SGD that falls to 0 (word2vec)."""

    short, rates = 800, (0.025, 0.08, 0.25, 0.8)
    thresholds = (1.0, 3.3, 11.0, 36.0, 120.0)
    trivial_loss = 4.5

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.inputs, self.outputs = nn.Embedding(500, 32), nn.Embedding(500, 32)
        nn.init.uniform_(self.inputs.weight, -0.5 / 32, 0.5 / 32)
        nn.init.zeros_(self.outputs.weight)

    @staticmethod
    def draw(low: int, high: int, generator: torch.Generator, size: int) -> Batch:
        """Words between two places, ``(size,)``, a neighbour of each, and five of the whole text, ``(size, 5)``."""
        text = words()
        places = torch.randint(low + 3, high - 3, (size,), generator=generator)
        offsets = torch.tensor([-2, -1, 1, 2])[torch.randint(4, (size,), generator=generator)]
        negatives = text[torch.randint(len(text), (size, 5), generator=generator)]
        return text[places], text[places + offsets], negatives

    def batch(self) -> Batch:
        return self.draw(0, len(words()) - HELD_OUT_WORDS, self.generator, 64)

    def held_out(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(-1)
        return [self.draw(len(words()) - HELD_OUT_WORDS, len(words()), generator, 1_500)]

    def loss(self, batch: Batch) -> Tensor:
        centres, neighbours, negatives = batch
        vectors = self.inputs(centres)
        of_neighbours = (vectors * self.outputs(neighbours)).sum(-1)
        of_negatives = (self.outputs(negatives) @ vectors[:, :, None])[..., 0]
        total = softplus(-of_neighbours).sum() + softplus(of_negatives).sum()
        return total if self.training else total / len(centres)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)

    def schedule(self, step: int) -> float:
        return 1 - step / self.steps
