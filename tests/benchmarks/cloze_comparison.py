"""Blanks filled in from both sides and from the left alone: perplexity of masked words of the Penn Treebank.

Two models of as many parameters train on the same lines with the same blanks in the same order for as many steps: one
whose layers read both ways (`Bidirectional`), one that reads from the left, wider for it. The weights of the best
validation are tested once, on the test text under twenty draws of blanks, so that nearly every word is asked for.
Goes on where it stopped. Prints a table and draws a picture.

    python tests/benchmarks/cloze_comparison.py --data FOLDER [--file cloze.json] [--to PICTURE]
    python tests/benchmarks/cloze_comparison.py --report cloze.json [--to PICTURE]

FOLDER holds `ptb.train.txt`, `ptb.valid.txt` and `ptb.test.txt`, plain or gzip.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from files import penn_treebank, write
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

from rnn_blocks import LSTM, Bidirectional, ClozeBatch, ClozeModel, Layer, Stack, linear_cross_entropy
from rnn_blocks.recipes.cloze.data import ClozeDataModule
from rnn_blocks.recipes.run.host.process import tune_host

MODELS = {"both": "both directions", "left": "left to right"}
COLOURS = {"both": "#3b6fb6", "left": "#e07b39"}
SETTINGS = ("hidden", "layers", "steps", "batch_tokens", "mask_rate", "learning_rate", "dropout", "seed")
CLIP = 1.0
TEST_PASSES = 20  # draws of blanks: 96 of 100 words are blank in one of them


def make_model(name: str, data: ClozeDataModule, options: argparse.Namespace, width: int | None = None) -> ClozeModel:
    """The model that reads both ways with `hidden` units each way, or the one-way model as wide as it takes."""
    hidden, layers = options.hidden, options.layers
    if name == "left" and width is None:
        width = width_of_equal_size(data, options)
    torch.manual_seed(options.seed)
    parts: list[Layer]
    if name == "both":
        parts = [Bidirectional(LSTM(hidden if k == 0 else 2 * hidden, hidden)) for k in range(layers)]
    else:
        assert width is not None
        parts = [LSTM(hidden if k == 0 else width, width) for k in range(layers)]
    stack = Stack(parts, dropout=options.dropout)
    return ClozeModel(stack, data.vocabulary_size, data.mask_id, tie_weights=True, dropout=options.dropout)


def num_parameters(model: ClozeModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def width_of_equal_size(data: ClozeDataModule, options: argparse.Namespace) -> int:
    """Of the one-way model that comes nearest in parameters to the one that reads both ways."""
    with torch.device("meta"):
        wanted = num_parameters(make_model("both", data, options))
        low, high = options.hidden, 4 * options.hidden  # the first has fewer, the last more
        while high - low > 1:
            middle = (low + high) // 2
            if num_parameters(make_model("left", data, options, middle)) <= wanted:
                low = middle
            else:
                high = middle
        sizes = {width: num_parameters(make_model("left", data, options, width)) for width in (low, high)}
    return min(sizes, key=lambda width: abs(sizes[width] - wanted))


def nats(model: ClozeModel, batches: Iterator[ClozeBatch]) -> tuple[float, int, int]:
    """Summed cross-entropy of the blanks, their number, and how many were filled in rightly."""
    total, count, right = 0.0, 0, 0
    with model.evaluating(), torch.no_grad():
        for batch in batches:
            features, targets = model._blanks(batch)
            logits = model.output(features)
            total += float(cross_entropy(logits, targets, reduction="sum"))
            right += int((logits.argmax(1) == targets).sum())
            count += len(targets)
    return total, count, right


def data_of(options: argparse.Namespace, seed: int = 0) -> ClozeDataModule:
    sizes = {"batch_tokens": options.batch_tokens, "eval_batch_tokens": 4096, "length": 96}
    data = ClozeDataModule(
        **penn_treebank(options.data), tokenizer="word", mask_rate=options.mask_rate, seed=seed, **sizes
    )
    data.prepare()
    return data


def train(name: str, data: ClozeDataModule, options: argparse.Namespace) -> dict[str, Any]:
    """Trains a model, or goes on with it; its size, its validation perplexities, and its best weights' test."""
    model = make_model(name, data, options)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, options.steps, pct_start=0.1, cycle_momentum=False
    )
    loader = data.train_dataloader()
    place = options.file.with_suffix(f".{name}.pt")
    curve: list[list[float]] = []  # step, validation perplexity
    best: dict[str, Any] = {}
    done, seconds = 0, 0.0
    if place.exists():
        state = torch.load(place, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        loader.load_state_dict(state["loader"])
        torch.set_rng_state(state["random"])
        curve, best, done, seconds = state["curve"], state["best"], state["done"], state["seconds"]
        print(f"  goes on at step {done}", file=sys.stderr)
    began, total = time.process_time(), 0.0
    while done < options.steps:
        for batch in loader:
            optimizer.zero_grad()
            features, targets = model._blanks(batch)
            loss = linear_cross_entropy(features, model.output.weight, model.output.bias, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            done, total = done + 1, total + loss.item()
            if done % options.every == 0 or done == options.steps:
                val, count, right = nats(model, iter(data.val_dataloader()))
                curve.append([done, math.exp(val / count)])
                if curve[-1][1] == min(perplexity for _, perplexity in curve):
                    best = {key: value.clone() for key, value in model.state_dict().items()}
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "loader": loader.state_dict(),
                    "random": torch.get_rng_state(),
                    "seconds": seconds + time.process_time() - began,
                }
                write(place, state | {"curve": curve, "best": best, "done": done})
                print(
                    f"  step {done} of {options.steps}: training loss {total / options.every:.2f}, validation"
                    f" perplexity {curve[-1][1]:.1f}, right {100 * right / count:.1f} %",
                    file=sys.stderr,
                    flush=True,
                )
                total = 0.0
            if done == options.steps:
                break
    seconds += time.process_time() - began
    model.load_state_dict(best)
    passes = [nats(model, iter(data_of(options, seed).test_dataloader())) for seed in range(options.test_passes)]
    test, count, right = (sum(part) for part in zip(*passes, strict=True))
    return {
        "parameters": num_parameters(model),
        "width": model.layer.output_size,
        "cpu_seconds": seconds,
        "curve": curve,
        "test_perplexity": math.exp(test / count),
        "test_accuracy": right / count,
        "test_blanks": count,
    }


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    tune_host()
    data = data_of(options)
    settings = {name: getattr(options, name) for name in SETTINGS}
    file = json.loads(options.file.read_text()) if options.file.exists() else {"settings": settings, "models": {}}
    if file["settings"] != settings:
        raise SystemExit(f"{options.file} holds models of other settings, {file['settings']}, than {settings}")
    write(options.file, file)
    print(f"an epoch has {len(data.train_dataloader())} steps", file=sys.stderr)
    for name, title in MODELS.items():
        if name not in file["models"]:
            print(title, file=sys.stderr)
            file["models"][name] = train(name, data, options)
            write(options.file, file)


def report(file: dict[str, Any], to: Path | None) -> None:
    print("settings: " + ", ".join(f"{name} {value}" for name, value in file["settings"].items()))
    print("| layers read | features | parameters | best val perplexity | test perplexity | test right | CPU time |")
    print("| --- " * 7 + "|")
    for name, title in MODELS.items():
        if name not in file["models"]:
            continue
        found = file["models"][name]
        print(
            f"| {title} | {found['width']} | {found['parameters']:,} | {min(p for _, p in found['curve']):.1f}"
            f" | {found['test_perplexity']:.1f} | {100 * found['test_accuracy']:.1f} %"
            f" | {found['cpu_seconds'] / 60:.1f} min |"
        )
    if to is not None:
        draw(file, to)


def draw(file: dict[str, Any], to: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, found in file["models"].items():
        steps, perplexities = zip(*found["curve"], strict=True)
        label = f"{MODELS[name]} ({found['parameters'] / 1e6:.2f} M): {found['test_perplexity']:.1f} on test"
        axes.plot(steps, perplexities, "o-", color=COLOURS[name], markersize=4, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.set_xlabel("step")
    axes.set_ylabel("validation perplexity of the blanks")
    axes.set_title("Penn Treebank: a blanked-out word from both sides and from the left", loc="left")
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(to, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the corpus")
    parser.add_argument("--file", type=Path, default=Path("cloze.json"), help="where results go, .json")
    parser.add_argument("--report", type=Path, help="such a file: print and draw it, train nothing")
    parser.add_argument("--to", type=Path, help="the picture")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--hidden", type=int, default=256, help="of embeddings, and of each direction")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--mask-rate", type=float, default=0.15)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=200, help="steps between two validations")
    parser.add_argument("--test-passes", type=int, default=TEST_PASSES, help="draws of blanks on the test text")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if (options.data is None) == (options.report is None):
        parser.error("give --data to measure, or --report to show what was measured")
    if options.data is not None:
        measure(options)
    report(json.loads((options.report or options.file).read_text()), options.to)


if __name__ == "__main__":
    main()
