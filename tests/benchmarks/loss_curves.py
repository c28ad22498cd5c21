"""Whether the recipe's fast output layer and host settings train as the plain ones do: two loss curves, one picture.

The default recipe's model trains twice on the same batches of the standard library's source code: with `cross_entropy`
of a `linear`, and with the tiled `linear_cross_entropy` under the recipe's host settings. Prints the largest difference
between the two losses and draws both.

    python tests/benchmarks/loss_curves.py [--steps 300] [--to docs/images/loss_curves.png]
"""

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy, linear

import rnn_blocks
from rnn_blocks.modules.language_model import model as language_model
from rnn_blocks.recipes.language_model.data import TextDataModule
from rnn_blocks.recipes.run.host.process import tune_host


def plain(hidden, weight, bias, targets):
    return cross_entropy(linear(hidden, weight, bias), targets)


def plain_reversed(hidden, weight, bias, targets):
    return cross_entropy(linear(hidden, weight.flip(0), bias.flip(0)), len(weight) - 1 - targets)


def curve(data: TextDataModule, steps: int, loss_function) -> list[float]:
    language_model.linear_cross_entropy = loss_function
    torch.manual_seed(1)
    model = rnn_blocks.LanguageModel(rnn_blocks.LSTM(256, 256), data.vocabulary_size, tie_weights=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    losses = []
    for number, batch in zip(range(steps), data.train_dataloader(), strict=False):
        optimizer.zero_grad()
        loss = model._loss(batch, "train")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
        print(f"step {number + 1}/{steps}", end="\r", file=sys.stderr)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--to", type=Path, default=Path("loss_curves.png"))
    options = parser.parse_args()
    data = TextDataModule(batch_size=16, bptt=64)
    data.prepare()
    reference = curve(data, options.steps, plain)
    rounding = curve(data, options.steps, plain_reversed)
    tune_host()
    tiled = curve(data, options.steps, rnn_blocks.linear_cross_entropy)
    print(f"{options.steps} steps; largest difference from the plain curve, in nats, up to a step:")
    print(f"{'':>34}{'1':>10}{'10':>10}{'100':>10}{options.steps:>10}")
    for name, losses in (("tiled, host settings", tiled), ("plain, added up the other way", rounding)):
        gaps = [abs(a - b) for a, b in zip(reference, losses, strict=True)]
        print(f"{name:>34}" + "".join(f"{max(gaps[:end]):10.1e}" for end in (1, 10, 100, options.steps)))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(reference, color="#e07b39", linewidth=3, alpha=0.5, label="cross_entropy of a linear")
    axes.plot(rounding, color="#8a8a8a", linewidth=1, label="the same, added up the other way")
    axes.plot(tiled, color="#3b6fb6", linewidth=1, label="linear_cross_entropy, host settings")
    axes.set_title("The default recipe's loss, with the plain and with the fast output layer", loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy, nats a token")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(options.to, dpi=130)


if __name__ == "__main__":
    main()
