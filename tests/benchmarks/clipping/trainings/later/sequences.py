"""Generated sequences: waves to name and to forecast, frames to transcribe, symbols to reverse, to tag, to continue."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, ctc_loss, mse_loss
from torch.optim import SGD, Adam, Optimizer

from trainings.later.drawn import Drawn
from trainings.training import Batch


class Waves(Drawn):
    """GRU-32 names the frequency of a noisy sine by its mean output (Theano's LSTM tutorial), SGD with momentum 0.9."""

    short, rates = 400, (0.03, 0.1, 0.4, 1.6)
    thresholds = (0.05, 0.17, 0.6, 2.0, 7.0)
    trivial_loss, chosen_on = 1.85, True

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.gru, self.output = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 6)

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        frequencies = torch.randint(6, (size,), generator=generator)
        phases = 6.28 * torch.rand(size, 1, generator=generator)
        waves = torch.sin(torch.arange(40) * 0.5 * (1 + 0.35 * frequencies[:, None]) + phases)
        return (waves + 0.3 * torch.randn(size, 40, generator=generator))[..., None], frequencies

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.output(self.gru(batch[0])[0].mean(1)), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)


class Sines(Drawn):
    """LSTM-32 forecasts two sines with noise one step ahead (as PyTorch's time_sequence_prediction), plain SGD."""

    short, rates = 350, (0.05, 0.2, 0.8, 3.0)
    thresholds = (0.02, 0.06, 0.2, 0.6, 2.0)
    trivial_loss, chosen_on = 1.1, True
    noise = 0.1

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.lstm, self.output = nn.LSTM(1, 32, batch_first=True), nn.Linear(32, 1)

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        time = torch.arange(41.0)
        frequencies = 0.2 + 0.6 * torch.rand(size, 1, generator=generator)
        phases = 6.28 * torch.rand(size, 2, generator=generator)
        first = torch.sin(frequencies * time + phases[:, :1])
        second = 0.5 * torch.sin(2.3 * frequencies * time + phases[:, 1:])
        values = first + second + self.noise * torch.randn(size, 41, generator=generator)
        return values[:, :-1, None], values[:, 1:, None]

    def loss(self, batch: Batch) -> Tensor:
        return mse_loss(self.output(self.lstm(batch[0])[0]), batch[1])

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


class SinesClean(Sines):
    """The same without noise, as that example has it, so that the loss goes to 0, SGD with momentum 0.9."""

    rates, chosen_on = (0.02, 0.1, 0.4, 1.6), False
    noise = 0.0

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9)


class Transcription(Drawn):
    """LSTM-32 of both ways transcribes 40 noisy frames by CTC, Nesterov's momentum (as Deep Speech)."""

    short, rates = 250, (0.01, 0.05, 0.2, 0.8)
    thresholds = (0.07, 0.22, 0.7, 2.2, 7.0)
    trivial_loss = 3.5
    batch_size, test_size = 16, 200

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.lstm, self.output = nn.LSTM(8, 32, batch_first=True, bidirectional=True), nn.Linear(64, 7)
        self.sounds = torch.randn(7, 8, generator=torch.Generator().manual_seed(5))  # of every symbol

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        frames, targets = torch.zeros(size, 40, 8), torch.zeros(size, 6, dtype=torch.long)
        lengths = torch.zeros(size, dtype=torch.long)
        for row in range(size):
            length = int(torch.randint(4, 7, (1,), generator=generator))
            symbols = torch.randint(1, 7, (length,), generator=generator)
            durations = torch.randint(3, 7, (length,), generator=generator)
            spoken = torch.repeat_interleave(symbols, durations)
            frames[row, : len(spoken)] = self.sounds[spoken]
            targets[row, :length], lengths[row] = symbols, length
        return frames + 0.5 * torch.randn(frames.shape, generator=generator), targets, lengths

    def loss(self, batch: Batch) -> Tensor:
        frames, targets, lengths = batch
        log_chances = self.output(self.lstm(frames)[0]).log_softmax(-1).transpose(0, 1)  # (time, batch, symbols)
        return ctc_loss(log_chances, targets, torch.full((len(lengths),), 40), lengths)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate, momentum=0.9, nesterov=True)


class Reversal(Drawn):
    """GRU-48 encoder and decoder with dot attention reverse six symbols, plain SGD (both of Luong et al. 2015)."""

    short, rates = 600, (0.2, 0.8, 3.0, 12.0)
    thresholds = (0.07, 0.22, 0.7, 2.2, 7.0)
    trivial_loss, chosen_on = 2.4, True
    symbols = 10

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.embedding = nn.Embedding(self.symbols + 1, 32)  # the last begins a target
        self.encoder, self.decoder = nn.GRU(32, 48, batch_first=True), nn.GRU(32, 48, batch_first=True)
        self.attended, self.output = nn.Linear(96, 48), nn.Linear(48, self.symbols)

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        return (torch.randint(self.symbols, (size, 6), generator=generator),)

    def loss(self, batch: Batch) -> Tensor:
        sources, targets = batch[0], batch[0].flip(1)
        memory, state = self.encoder(self.embedding(sources))
        before = torch.cat([torch.full_like(targets[:, :1], self.symbols), targets[:, :-1]], dim=1)
        decoded, _ = self.decoder(self.embedding(before), state)
        context = (decoded @ memory.transpose(1, 2)).softmax(-1) @ memory
        attended = torch.tanh(self.attended(torch.cat([context, decoded], dim=-1)))
        return cross_entropy(self.output(attended).flatten(0, 1), targets.flatten())

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


class Tagger(Drawn):
    """LSTM-32 tags one sentence of 3 to 20 words a step (as PyTorch's tutorial on tagging), plain SGD."""

    short, rates = 900, (0.1, 0.5, 2.0, 8.0)
    thresholds = (0.1, 0.3, 1.0, 3.0, 10.0)
    trivial_loss, chosen_on = 1.7, True
    batch_size = 1

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.embedding, self.lstm = nn.Embedding(60, 16), nn.LSTM(16, 32, batch_first=True)
        self.output = nn.Linear(32, 5)
        truth = torch.Generator().manual_seed(7)
        self.next_tags = torch.rand(5, 5, generator=truth) ** 4
        self.words_of_tags = torch.rand(5, 60, generator=truth) ** 6

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        """One sentence, whatever the size."""
        length = int(torch.randint(3, 21, (1,), generator=generator))
        tags = [int(torch.randint(5, (1,), generator=generator))]
        for _ in range(length - 1):
            tags.append(int(torch.multinomial(self.next_tags[tags[-1]], 1, generator=generator)))
        words = torch.multinomial(self.words_of_tags[tags], 1, generator=generator)[:, 0]
        return words, torch.tensor(tags)

    def held_out(self) -> list[Batch]:
        generator = torch.Generator().manual_seed(-1)
        return [self.draw(generator, 1) for _ in range(150)]

    def loss(self, batch: Batch) -> Tensor:
        words, tags = batch
        return cross_entropy(self.output(self.lstm(self.embedding(words)[None])[0][0]), tags)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)


class Chains(Drawn):
    """LSTM-32 on two chains of lognormal length a step, the loss summed over symbols (as DyNet's examples), Adam."""

    short, rates = 500, (0.003, 0.015, 0.08, 0.4)
    thresholds = (3.3, 11.0, 36.0)
    trivial_loss = 4.0
    batch_size, test_size = 2, 60

    def __init__(self, seed: int, rate: float, length: int = 1) -> None:
        super().__init__(seed, rate, length)
        self.embedding, self.lstm = nn.Embedding(20, 16), nn.LSTM(16, 32, batch_first=True)
        self.output = nn.Linear(32, 20)
        self.next_symbols = torch.rand(20, 20, generator=torch.Generator().manual_seed(9)) ** 8

    def draw(self, generator: torch.Generator, size: int) -> Batch:
        return tuple(self.chain(generator) for _ in range(size))

    def chain(self, generator: torch.Generator) -> Tensor:
        length = min(120, 3 + int(math.exp(2.3 + 0.9 * float(torch.randn(1, generator=generator)))))
        symbols = [int(torch.randint(20, (1,), generator=generator))]
        for _ in range(length):
            symbols.append(int(torch.multinomial(self.next_symbols[symbols[-1]], 1, generator=generator)))
        return torch.tensor(symbols)

    def loss(self, batch: Batch) -> Tensor:
        total = torch.zeros(())
        for chain in batch:
            logits = self.output(self.lstm(self.embedding(chain[None, :-1]))[0][0])
            total = total + cross_entropy(logits, chain[1:], reduction="sum")
        return total if self.training else total / sum(len(chain) - 1 for chain in batch)

    def make_optimizer(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.rate)


class ChainsSGD(Chains):
    """The same summed loss, plain SGD."""

    rates = (0.008, 0.03, 0.12, 0.5)
    thresholds = (1.0, 3.3, 11.0, 36.0, 120.0)

    def make_optimizer(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.rate)
