"""Which optimizer trains a recurrent language model best in the time that AdamW takes: AdamW, Muon and SOAP.

The model of the `ptb-quick` configuration trains on the words of the Penn Treebank along one cycle of the learning
rate, by each optimizer at several rates. What a step costs is measured first, in turns; the others have as many steps
as fit into the CPU time of AdamW's `--steps`. Measured is the perplexity of the validation text; the test text is not
evaluated. Trainings are added to a file as they end, and are not repeated. Prints a table and draws a picture.

    python tests/benchmarks/optimizer_comparison.py --data FOLDER [--file optimizers.json] [--to PICTURE]
    python tests/benchmarks/optimizer_comparison.py --report optimizers.json [--to PICTURE]

FOLDER holds `ptb.train.txt`, `ptb.valid.txt` and `ptb.test.txt`, plain or gzip. SOAP is pytorch-optimizer's
(`pip install -c constraints.txt -e '.[benchmarks]'`), Muon and AdamW are torch's.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from files import penn_treebank, write
from machine import described
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from rnn_blocks import LSTM, LanguageModel, TextBatch, WeightDrop, detach_state
from rnn_blocks.callbacks import GradientClipper
from rnn_blocks.recipes.language_model.data import TextDataModule
from rnn_blocks.recipes.run.host.process import tune_host

COLOURS = {"AdamW": "#3b6fb6", "Muon": "#e07b39", "SOAP": "#5b8c5a"}
BETAS, DECAY, ADAMW_RATE, WARM_UP = (0.8, 0.99), 0.05, 4e-3, 0.15  # those of `ptb-quick`
LARGEST_SIDE = 2048  # that SOAP turns into its eigenbasis: a vocabulary's would take as long as a thousand steps


def adamw(model: LanguageModel, rate: float) -> list[Optimizer]:
    return [AdamW(model.parameters(), lr=rate, betas=BETAS, weight_decay=DECAY)]


def muon(model: LanguageModel, rate: float) -> list[Optimizer]:
    """The layer's matrices by Muon, their steps as long as AdamW's at that rate; the rest by AdamW at its best."""
    matrices = [weight for weight in model.layer.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        Muon(matrices, lr=rate, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        AdamW(rest, lr=ADAMW_RATE, betas=BETAS, weight_decay=DECAY),
    ]


def soap(model: LanguageModel, rate: float) -> list[Optimizer]:
    from pytorch_optimizer import SOAP

    return [SOAP(model.parameters(), lr=rate, weight_decay=DECAY, max_precondition_dim=LARGEST_SIDE)]


Maker = Callable[[LanguageModel, float], list[Optimizer]]
OPTIMIZERS: dict[str, tuple[Maker, list[float]]] = {
    "AdamW": (adamw, [2e-3, 4e-3, 8e-3]),
    "Muon": (muon, [4e-3, 8e-3, 1.6e-2]),
    "SOAP": (soap, [2e-3, 4e-3, 8e-3]),
}


class Training:
    """A model and its optimizers, a step at a time."""

    def __init__(self, name: str, rate: float, steps: int, data: TextDataModule, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        layer = WeightDrop(LSTM(options.hidden, options.hidden), p=0.25)
        self.model = LanguageModel(layer, data.vocabulary_size, tie_weights=True, dropout=0.4)
        self.optimizers = OPTIMIZERS[name][0](self.model, rate)
        self.schedules = [
            OneCycleLR(
                optimizer,
                [group["lr"] for group in optimizer.param_groups],
                max(steps, 2),
                pct_start=WARM_UP,
                cycle_momentum=False,
            )
            for optimizer in self.optimizers
        ]
        self.clippers = [GradientClipper(optimizer) for optimizer in self.optimizers]
        self.data, self.batches = data, iter(())
        self.state: Any = None

    def step(self) -> float:
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.data.train_dataloader())
            batch = next(self.batches)
        loss, self.state = self.loss(batch, None if batch.fresh else self.state)
        loss.backward()
        for optimizer, clipper, schedule in zip(self.optimizers, self.clippers, self.schedules, strict=True):
            clipper.clip(loss)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return loss.item()

    def loss(self, batch: TextBatch, state: Any) -> tuple[torch.Tensor, Any]:
        hidden, state = self.model.hidden(batch.inputs, state)
        targets = batch.targets.t().flatten()
        return self.model.next_token_loss(hidden.flatten(0, 1), targets), detach_state(state)

    def perplexity(self) -> float:
        """Of the validation text."""
        total, count, state = 0.0, 0, None
        with self.model.evaluating(), torch.no_grad():
            for batch in self.data.val_dataloader():
                loss, state = self.loss(batch, None if batch.fresh else state)
                tokens = int((batch.targets != -100).sum())
                total, count = total + tokens * loss.item(), count + tokens
        return math.exp(total / count)


def data_of(options: argparse.Namespace) -> TextDataModule:
    sizes = {"batch_size": 20, "bptt": 40, "eval_batch_size": 10, "eval_bptt": 100}
    data = TextDataModule(**penn_treebank(options.data), tokenizer="word", vocab_size=None, **sizes)
    data.prepare()
    return data


def seconds_of_a_step(names: list[str], data: TextDataModule, options: argparse.Namespace) -> dict[str, float]:
    """Median CPU time, in turns; the first steps, which make an optimizer's state, do not count."""
    steps = 10 * (options.rounds + 1)
    trainings = {name: Training(name, OPTIMIZERS[name][1][0], steps, data, options) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in tqdm(range(options.rounds + 1), desc="timing", leave=False, disable=None):
        for name, training in trainings.items():
            began = time.process_time()
            for _ in range(10):  # SOAP turns its bases at every tenth
                training.step()
            if turn:
                taken[name].append((time.process_time() - began) / 10)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def train(name: str, rate: float, steps: int, data: TextDataModule, options: argparse.Namespace) -> dict[str, Any]:
    training = Training(name, rate, steps, data, options)
    curve = []
    began = time.process_time()
    places = {round(steps * (k + 1) / options.points) for k in range(options.points)}
    with tqdm(total=steps, desc=f"{name} at {rate:g}", leave=False, disable=None) as bar:
        for step in range(1, steps + 1):
            loss = training.step()
            bar.update()
            if step in places:
                curve.append([step / steps, training.perplexity()])
                bar.set_postfix(loss=f"{loss:.2f}", perplexity=f"{curve[-1][1]:.1f}")
    result = {"optimizer": name, "rate": rate, "steps": steps, "seed": options.seed, "curve": curve}
    return result | {"cpu_seconds": time.process_time() - began}


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    tune_host()
    print(described(), file=sys.stderr)
    data = data_of(options)
    file: dict[str, Any] = {"settings": {"steps": options.steps, "hidden": options.hidden}, "cpu": described()}
    file |= {"seconds": {}, "runs": []}
    if options.file.exists():
        known = json.loads(options.file.read_text())
        if known["settings"] != file["settings"]:
            raise SystemExit(f"{options.file} holds trainings of {known['settings']}, not of {file['settings']}")
        file = known
    if not set(options.only) <= set(file["seconds"]):
        file["seconds"] = seconds_of_a_step(list(OPTIMIZERS), data, options)
        write(options.file, file)
    print(", ".join(f"{name} {1000 * s:.0f} ms a step" for name, s in file["seconds"].items()), file=sys.stderr)
    done = {(run["optimizer"], run["rate"], run["seed"]) for run in file["runs"]}
    for name, rate in trainings(options):
        if (name, rate, options.seed) not in done:
            steps = round(options.steps * file["seconds"]["AdamW"] / file["seconds"][name])
            file["runs"].append(train(name, rate, steps, data, options))
            write(options.file, file)


def trainings(options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    for name in options.only:
        for rate in options.rates or OPTIMIZERS[name][1]:
            yield name, rate


def report(file: dict[str, Any], to: Path | None) -> None:
    print(f"{file['cpu']}; AdamW: {file['settings']['steps']} steps, the others as long")
    print("| optimizer | rate | seed | steps | ms a step | validation perplexity |")
    print("| --- " * 6 + "|")
    for run in sorted(file["runs"], key=lambda run: (run["optimizer"], run["rate"], run["seed"])):
        milliseconds = 1000 * file["seconds"][run["optimizer"]]
        print(
            f"| {run['optimizer']} | {run['rate']:g} | {run['seed']} | {run['steps']:,} | {milliseconds:.0f}"
            f" | {run['curve'][-1][1]:.1f} |"
        )
    if to is not None:
        draw(file, to)


def draw(file: dict[str, Any], to: Path) -> None:
    """Each optimizer's best rate over the time of a training, and what each rate ends at."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    over_time, over_rates = figure.subplots(1, 2)
    for name, colour in COLOURS.items():
        runs = [run for run in file["runs"] if run["optimizer"] == name]
        if not runs:
            continue
        best = min(runs, key=lambda run: run["curve"][-1][1])
        over_time.plot(*zip(*best["curve"], strict=True), "o-", color=colour, markersize=3, label=name)
        ends = sorted((run["rate"], run["curve"][-1][1]) for run in runs)
        over_rates.plot(*zip(*ends, strict=True), "o-", color=colour, label=name)
    over_time.set_xlabel("part of the time")
    over_time.set_ylabel("validation perplexity")
    over_time.set_yscale("log")
    over_time.yaxis.set_major_formatter("{x:.0f}")
    over_time.yaxis.set_minor_formatter("{x:.0f}")
    over_time.set_title("At its best rate", loc="left")
    over_rates.set_xlabel("learning rate")
    over_rates.set_xscale("log")
    over_rates.set_title("At the end, by rate", loc="left")
    for axes in (over_time, over_rates):
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    over_rates.legend(frameon=False)
    figure.savefig(to, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the corpus")
    parser.add_argument("--file", type=Path, default=Path("optimizers.json"), help="where results go, .json")
    parser.add_argument("--report", type=Path, help="such a file: print and draw it, train nothing")
    parser.add_argument("--to", type=Path, help="the picture")
    parser.add_argument("--only", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), metavar="NAME")
    parser.add_argument("--rates", nargs="+", type=float, help="in place of each optimizer's own")
    parser.add_argument("--steps", type=int, default=2324, help="of AdamW: by default two epochs")
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--points", type=int, default=4, help="validations of a training")
    parser.add_argument("--rounds", type=int, default=5, help="of ten steps each, to time them")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if (options.data is None) == (options.report is None):
        parser.error("give --data to measure, or --report to show what was measured")
    if options.data is not None:
        measure(options)
    report(json.loads((options.report or options.file).read_text()), options.to)


if __name__ == "__main__":
    main()
