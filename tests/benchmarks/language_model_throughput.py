"""Training throughput of `LanguageModel` against PyTorch's `word_language_model` example, on the same model and
batches.

Both train 2 x 200 LSTM layers on 33,278 words, 20 lanes, 35 steps of truncated BPTT, dropout 0.2, plain SGD and
clipping by norm. The example is written out below as it ships: `nn.LSTM`, `log_softmax`, `NLLLoss`, its update by
`add_`. Each variant has a process of its own, since the allocator's settings last for a process's life; the processes
take turns, one thread each, and CPU time is counted.

    python tests/benchmarks/language_model_throughput.py [--steps 5] [--rounds 7]
"""

import argparse
import multiprocessing as mp
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from machine import described
from torch import nn

import rnn_blocks
from rnn_blocks.recipes.run.host.process import tune_host

WORDS, WIDTH, LAYERS, LANES, BPTT, DROPOUT, LR, CLIP = 33278, 200, 2, 20, 35, 0.2, 20.0, 0.25


class ExampleModel(nn.Module):
    """The example's model."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(DROPOUT)
        self.encoder = nn.Embedding(WORDS, WIDTH)
        self.rnn = nn.LSTM(WIDTH, WIDTH, LAYERS, dropout=DROPOUT)
        self.decoder = nn.Linear(WIDTH, WORDS)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

    def forward(self, words, state):
        embedded = self.drop(self.encoder(words))
        output, state = self.rnn(embedded, state)
        decoded = self.decoder(self.drop(output)).view(-1, WORDS)
        return nn.functional.log_softmax(decoded, dim=1), state


def example_steps(stream: torch.Tensor) -> Callable[[int], float]:
    model, criterion = ExampleModel(), nn.NLLLoss()
    state = (torch.zeros(LAYERS, LANES, WIDTH), torch.zeros(LAYERS, LANES, WIDTH))
    at = 0

    def run(steps: int) -> float:
        nonlocal state, at
        for _ in range(steps):
            words, targets = stream[at : at + BPTT], stream[at + 1 : at + 1 + BPTT].view(-1)
            at = (at + BPTT) % (len(stream) - BPTT - 1)
            model.zero_grad()
            state = tuple(part.detach() for part in state)
            output, state = model(words, state)
            loss = criterion(output, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            for parameter in model.parameters():
                parameter.data.add_(parameter.grad, alpha=-LR)
        return loss.item()

    return run


def our_steps(stream: torch.Tensor) -> Callable[[int], float]:
    layer = rnn_blocks.LSTM(WIDTH, WIDTH, num_layers=LAYERS, dropout=DROPOUT)
    model = rnn_blocks.LanguageModel(layer, WORDS, dropout=DROPOUT)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    lanes = stream.t().contiguous()
    at = 0

    def run(steps: int) -> float:
        nonlocal at
        for _ in range(steps):
            batch = rnn_blocks.TextBatch(lanes[:, at : at + BPTT], lanes[:, at + 1 : at + 1 + BPTT], fresh=at == 0)
            at = (at + BPTT) % (lanes.shape[1] - BPTT - 1)
            optimizer.zero_grad()
            loss = model._loss(batch, "train")
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
        return loss.item()

    return run


VARIANTS = {
    "example, as it ships": (example_steps, False),
    "example, our host settings": (example_steps, True),
    "LanguageModel, no host settings": (our_steps, False),
    "LanguageModel, as it ships": (our_steps, True),
}


def serve(pipe: Connection, variant: str) -> None:
    torch.set_num_threads(1)
    make_steps, tuned = VARIANTS[variant]
    if tuned:
        tune_host()
    torch.manual_seed(0)
    # words as they are spread in text: Zipf's law
    stream = torch.multinomial(1 / torch.arange(1.0, WORDS + 1), 2000 * LANES, replacement=True).view(-1, LANES)
    run = make_steps(stream)
    while (steps := pipe.recv()) is not None:
        began = time.process_time()
        loss = run(steps)
        pipe.send((time.process_time() - began, loss))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    context = mp.get_context("spawn")
    pipes, times, losses = {}, {name: [] for name in VARIANTS}, {}
    for name in VARIANTS:
        pipes[name], far = context.Pipe()
        context.Process(target=serve, args=(far, name), daemon=True).start()
        pipes[name].send(2)  # warm-up
    for pipe in pipes.values():
        pipe.recv()
    for number in range(options.rounds):
        print(f"round {number + 1}/{options.rounds}", end="\r", file=sys.stderr)
        for name, pipe in pipes.items():
            pipe.send(options.steps)
            seconds, losses[name] = pipe.recv()
            times[name].append(seconds / options.steps)
    for pipe in pipes.values():
        pipe.send(None)
    print(described())
    print(f"{WORDS:,} words, {LAYERS} x {WIDTH}, {LANES} lanes x {BPTT} steps, CPU time, one thread")
    print(f"{'':34}{'ms a batch':>11}{'tokens/s':>10}{'÷ as ships':>12}{'÷ same settings':>17}{'loss':>8}")
    plain, tuned = (statistics.median(times[name]) for name in list(VARIANTS)[:2])
    for name in VARIANTS:
        median = statistics.median(times[name])
        print(
            f"{name:34}{median * 1e3:11.1f}{LANES * BPTT / median:10,.0f}{plain / median:12.2f}{tuned / median:17.2f}"
            f"{losses[name]:8.3f}"
        )


if __name__ == "__main__":
    main()
