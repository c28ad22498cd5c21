"""What input feeding costs: a decoder that runs all steps at once, and one whose steps wait for each other.

    python tests/benchmarks/decoder_paths.py

CPU time of one thread, forward and backward through `Decoder` (without its output layer), the contenders interleaved,
medians of `--rounds`. Columns are milliseconds: without input feeding (one run of the layer, one batched attention),
with it on the recorded engine, and with it step by step under autograd, which is how other toolkits run it; then the
ratios to the first.
"""

import argparse
import statistics
import time

import torch
from machine import described

from rnn_blocks import GRU, Decoder, make_attention
from rnn_blocks.layers.recurrent import Engine
from rnn_blocks.recipes.run.host.process import tune_host

SIZES = [(64, 32, 20, 20), (128, 80, 14, 15), (256, 80, 14, 15), (256, 20, 30, 30), (512, 64, 25, 25)]


def decoder(hidden: int, attention: str, *, fed: bool, engine: Engine = "auto") -> Decoder:
    """Of a GRU that reads a bidirectional encoder of the same width."""
    return Decoder(
        GRU(2 * hidden if fed else hidden, hidden),
        100,
        attention=make_attention(attention, hidden, 2 * hidden),
        input_feeding=fed,
        engine=engine,
    )


def seconds(model: Decoder, outputs: torch.Tensor, ids: torch.Tensor) -> float:
    """Of one forward and backward pass."""
    began = time.process_time()
    memory = model.on(outputs, torch.full((len(outputs),), outputs.shape[1]))
    state = model.start(model.layer.initial_state(len(outputs), outputs), memory)
    features, _, _ = model(ids, state, memory)
    features.sum().backward()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    tune_host()
    print(described())
    print(
        f"{'hidden batch source target':28}{'attention':>10}"
        f"{'at once':>10}{'fed':>8}{'loop':>8}{'fed ×':>8}{'loop ×':>8}"
    )
    for hidden, batch, source, target in SIZES:
        outputs = torch.randn(batch, source, 2 * hidden, requires_grad=True)
        ids = torch.randint(100, (batch, target))
        for name in ("general", "additive"):
            models = [
                decoder(hidden, name, fed=False),
                decoder(hidden, name, fed=True),
                decoder(hidden, name, fed=True, engine="loop"),
            ]
            for model in models:
                seconds(model, outputs, ids)
            times = [[seconds(model, outputs, ids) for model in models] for _ in range(rounds)]
            once, fed, loop = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
            print(
                f"{f'{hidden:6}{batch:6}{source:7}{target:7}':28}{name:>10}"
                f"{once:10.1f}{fed:8.1f}{loop:8.1f}{fed / once:8.2f}{loop / once:8.2f}"
            )


if __name__ == "__main__":
    main()
