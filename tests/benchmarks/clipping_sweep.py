"""Whether a threshold has to be tuned: five trainings, each swept by hand, against the rules that find it themselves.

    python tests/benchmarks/clipping_sweep.py --ptb FOLDER [--seeds 3] [--workers 2] [--only NAME …] [--rules …]

Every training (see clipping_trainings.py) is run without clipping, at eight fixed thresholds and by each rule, at four
learning rates, with the number of seeds given, through a Trainer with `AdaptiveGradientClipping`. Each run's losses are
added to a file, and runs already in it are not repeated; tables and pictures are made of the file. A run takes 3 to 8
seconds, the whole grid with three seeds a few hours of one core; one seed is the default.
"""

import argparse
import json
import logging
import math
import multiprocessing
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from clipping_trainings import TRAININGS, Batch, DivergedError, PennTreebankWords, Training
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    Auto,
    ClippingPolicy,
    EmaRatio,
    Fixed,
    NonFiniteGradientError,
    Percentile,
    Unitwise,
    ZScore,
)

RULES: dict[str, ClippingPolicy] = {
    "auto": Auto(),
    "AutoClip (Percentile 10)": Percentile(10.0),
    "Percentile 90": Percentile(90.0),
    "ZClip (ZScore)": ZScore(),
    "AdaGC (EmaRatio)": EmaRatio(),
    "AGC (Unitwise)": Unitwise(),
}
Run = tuple[str, str, float, int]  # training, rule, learning rate, seed


class Endless(IterableDataset[Batch]):
    """A training's batches."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __iter__(self) -> Iterator[Batch]:
        return self.training.batches()


def policy_of(rule: str) -> ClippingPolicy | None:
    """None, a fixed threshold, or a rule by its name."""
    if rule == "none":
        return None
    return Fixed(float(rule.removeprefix("fixed "))) if rule.startswith("fixed ") else RULES[rule]


def train(run: Run) -> dict[str, object]:
    """One whole training: its held-out loss (infinite if it diverged) and training losses, means of ten steps."""
    name, rule, rate, seed = run
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    training, policy = TRAININGS[name](seed, rate), policy_of(rule)
    trainer = Trainer(
        callbacks=[] if policy is None else [AdaptiveGradientClipping(policy)],
        max_steps=training.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    try:
        trainer.fit(training, DataLoader(Endless(training), batch_size=None))
        loss = training.held_out_loss()
    except (DivergedError, NonFiniteGradientError):
        loss = math.inf
    losses = training.losses
    means = [round(statistics.fmean(losses[i : i + 10]), 4) for i in range(0, len(losses), 10)]
    return {"run": run, "loss": loss if loss == loss else math.inf, "losses": means}


def grid(names: list[str], rules: list[str], seeds: int) -> list[Run]:
    """All runs wanted, one seed of everything before the next."""
    return [
        (name, rule, rate, seed)
        for seed in range(1, seeds + 1)
        for name in names
        for rule in rules or ["none", *(f"fixed {c:g}" for c in TRAININGS[name].thresholds), *RULES]
        for rate in TRAININGS[name].rates
    ]


def load(path: Path) -> dict[Run, dict[str, object]]:
    """The runs in a file."""
    lines = path.read_text().splitlines() if path.exists() else []
    results = [json.loads(line) for line in lines]
    return {tuple(result["run"]): result for result in results}


def _start_worker(folder: Path | None) -> None:
    PennTreebankWords.folder = folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptb", type=Path, help="folder with ptb.train.txt.gz and ptb.valid.txt.gz")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--rules", nargs="*", default=[], help="'none', 'fixed 0.1', 'auto', …; all if not given")
    parser.add_argument("--results", type=Path, default=Path("clipping_sweep.jsonl"))
    options = parser.parse_args()
    names = options.only
    if options.ptb is None and "ptb-lstm-sgd" in names:
        names = [name for name in names if name != "ptb-lstm-sgd"]
        print("ptb-lstm-sgd is left out: give Penn Treebank's folder as --ptb", file=sys.stderr)
    done = load(options.results)
    todo = [run for run in grid(names, options.rules, options.seeds) if run not in done]
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(options.workers, _start_worker, (options.ptb,)) as pool,
        options.results.open("a") as file,
    ):
        for result in tqdm(pool.imap_unordered(train, todo), total=len(todo), disable=None):
            print(json.dumps(result), file=file, flush=True)


if __name__ == "__main__":
    main()
