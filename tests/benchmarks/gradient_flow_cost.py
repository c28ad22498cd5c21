"""What measuring the gradient at every hidden state costs, on the step on which it is done.

    python tests/benchmarks/gradient_flow_cost.py

CPU time of one thread, the contenders interleaved, medians. A measured step is an ordinary one whose recurrences are
recorded, run again after the backward pass, and read; figures are left out, for they have nothing to do with the model.
The last column is what is added if one step in 500 is measured, which is the default.
"""

import statistics
import time
from collections.abc import Callable

import torch
from machine import described
from torch import Tensor, nn

from rnn_blocks import GRU, LSTM, Elman
from rnn_blocks.callbacks.gradient_flow.recorder import FlowRecorder, recurrences

EVERY, VOCABULARY, BATCH, STEPS = 500, 10_000, 20, 35


class LanguageModel(nn.Module):
    """Embedding, recurrent layers, output over 10,000 words; 20 lanes of 35 steps."""

    def __init__(self, layer: nn.Module, width: int, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layer = layer
        self.output = nn.Linear(width, vocabulary)
        self.tokens = torch.randint(vocabulary, (BATCH, STEPS + 1))

    def loss(self) -> Tensor:
        logits = self.output(self.layer(self.embedding(self.tokens[:, :-1]))[0])
        return nn.functional.cross_entropy(logits.flatten(0, 1), self.tokens[:, 1:].flatten())


def steps_of(model: LanguageModel) -> tuple[Callable[[], None], Callable[[], None]]:
    """An ordinary training step, and a measured one."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    targets, _ = recurrences(model)

    def ordinary() -> None:
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()

    def measured() -> None:
        recorder = FlowRecorder(targets, {}, "all")
        recorder.attach()
        optimizer.zero_grad()
        model.loss().backward()
        recorder.collect(1.0)
        optimizer.step()
        recorder.detach()
        recorder.read()

    return ordinary, measured


def medians(contenders: tuple[Callable[[], None], ...], repeats: int) -> list[float]:
    """Median CPU seconds of each contender, taken in turns."""
    seconds: list[list[float]] = [[] for _ in contenders]
    for round_number in range(repeats + 1):
        for run, taken in zip(contenders, seconds, strict=True):
            begin = time.process_time()
            run()
            if round_number:  # the first warms up
                taken.append(time.process_time() - begin)
    return [statistics.median(taken) for taken in seconds]


def main() -> None:
    """Print one table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(described())
    print(f"{'':38}{'step, ms':>10}{'measured, ms':>14}{'÷ step':>8}{f'1 in {EVERY}':>10}")
    for width, vocabulary, repeats in ((200, VOCABULARY, 15), (650, VOCABULARY, 5), (200, 50, 15)):
        layers = {
            "nn.LSTM": nn.LSTM(width, width, num_layers=2, batch_first=True),
            "nn.GRU": nn.GRU(width, width, num_layers=2, batch_first=True),
            "LSTM": LSTM(width, width, num_layers=2),
            "GRU": GRU(width, width, num_layers=2),
            "Elman": Elman(width, width, num_layers=2),
        }
        for name, layer in layers.items():
            ordinary, measured = medians(steps_of(LanguageModel(layer, width, vocabulary)), repeats)
            row = f"{name}, 2 × {width}, {vocabulary:,} words"
            share = (measured / ordinary - 1) / EVERY
            print(f"{row:38}{ordinary * 1e3:10.1f}{measured * 1e3:14.1f}{measured / ordinary:8.2f}{share:10.2%}")


if __name__ == "__main__":
    main()
