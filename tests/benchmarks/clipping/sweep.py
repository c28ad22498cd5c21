"""Whether clipping harms, and whether a threshold has to be tuned: small trainings of many kinds, each swept by hand.

    python tests/benchmarks/clipping/sweep.py --ptb FOLDER [--full] [--workers 2] [--only NAME …] [--rules RULE …]

Every training (see trainings/) is run without clipping, at fixed thresholds and by each rule, at four learning rates.
There are 68. The settings of `Auto` were chosen with a view on nine of the first 24. The others (trainings/later/) were
written after that, to check it; how the rule tells whether a training makes progress was then chosen with a view on
thirteen of these too. The other eleven had no part in any choice, nor had thirteen that nobody had seen, written last
by someone who did not know how the rule was made (trainings/unseen/). What bounds a step where the loss is below 0 was
chosen on the last seven (trainings/below_zero.py). `Training.chosen_on`, the report's star, says which.

The reduced grid, to be run for every change of the rule, has `none` and `auto`, two seeds and the short length. With
`--full` there are all fixed thresholds (eight, or three to five in the later trainings), every rule and three seeds,
and one seed of none, auto and up to three fixed thresholds at five times the length. Each run is added to a file as it
ends, and runs already in it are not repeated: after a break, or with more rules, the same command goes on. `report.py`
makes the tables and the picture of the file.

Needs scikit-learn, for its digits and tables: ``pip install -c constraints.txt -e '.[benchmarks]'``.

Trainings are plain loops with a `GradientClipper`, which is what `AdaptiveGradientClipping` does in a Trainer.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from trainings import TRAININGS
from trainings.text import PennTreebankWords

from rnn_blocks.callbacks import (
    Auto,
    ClippingPolicy,
    EmaRatio,
    Fixed,
    GradientClipper,
    LogNormal,
    NonFiniteGradientError,
    Percentile,
    SkipOutliers,
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
    "Chorowski (LogNormal)": LogNormal(),
    "OLMo (SkipOutliers)": SkipOutliers(),
}
LONG = 5
POINTS = 40  # of a curve
Run = tuple[str, str, float, int, int]  # training, rule, learning rate, seed, length


def policy_of(rule: str) -> ClippingPolicy | None:
    """None, a fixed threshold, or a rule by its name."""
    if rule == "none":
        return None
    return Fixed(float(rule.removeprefix("fixed "))) if rule.startswith("fixed ") else RULES[rule]


def train(run: Run) -> dict[str, object]:
    """One whole training.

    Returns:
        The held-out loss (infinite if it diverged), the training losses of the first optimizer's steps as the means of
        `POINTS` parts, their mean over the second twentieth of the steps, and the shares of steps clipped, by reason.
    """
    name, rule, rate, seed, length = run
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    training, policy = TRAININGS[name](seed, rate, length), policy_of(rule)
    optimizers = training.make_optimizers()
    schedules = [LambdaLR(optimizer, training.schedule) for optimizer in optimizers]
    clippers = [None if policy is None else GradientClipper(optimizer, policy) for optimizer in optimizers]
    losses: list[float] = []
    try:
        for step in range(training.steps):
            for index, loss in training.objectives(step):
                optimizers[index].zero_grad()
                loss.backward()
                if (clipper := clippers[index]) is not None:
                    clipper.clip(loss if training.asks_the_loss else None)
                elif not is_finite(optimizers[index]):
                    raise NonFiniteGradientError
                optimizers[index].step()
                if index == 0:
                    losses.append(loss.item())
            for schedule in schedules:
                schedule.step()
        held_out = training.held_out_loss()
    except (NonFiniteGradientError, RuntimeError):  # `multinomial` of NaN, for one
        held_out = math.inf
    return {
        "run": run,
        "loss": held_out if held_out < training.trivial_loss else math.inf,
        "curve": parts(losses),
        "start": statistics.fmean(losses[training.steps // 20 : training.steps // 10] or [math.inf]),
        "clipped": shares([clipper for clipper in clippers if clipper is not None]),
    }


def is_finite(optimizer: Optimizer) -> bool:
    gradients = [w.grad for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    return math.isfinite(float(nn.utils.get_total_norm(dense)))


def parts(losses: list[float]) -> list[float]:
    size = max(len(losses) // POINTS, 1)
    return [float(f"{statistics.fmean(losses[i : i + size]):.5g}") for i in range(0, len(losses), size)]


def shares(clippers: list[GradientClipper]) -> dict[str, float]:
    """Means over the optimizers."""
    metrics = [clipper.metrics() for clipper in clippers]
    names = [name for name in (metrics[0] if metrics else {}) if name.endswith("_fraction")]
    return {name.removeprefix("grad_clip/"): statistics.fmean(m.get(name, 0.0) for m in metrics) for name in names}


def grid(names: list[str], rules: list[str], seeds: int, full: bool) -> list[Run]:
    """All runs wanted, one seed of everything before the next, the long ones last."""

    def of(name: str) -> list[str]:
        fixed = [f"fixed {c:g}" for c in TRAININGS[name].thresholds]
        return rules or (["none", *fixed, *RULES] if full else ["none", "auto"])

    short = [
        (name, rule, rate, seed, 1)
        for seed in range(1, seeds + 1)
        for name in names
        for rule in of(name)
        for rate in TRAININGS[name].rates
    ]
    long = [
        (name, rule, rate, 1, LONG)
        for name in names
        for rule in rules or ["none", "auto", *(f"fixed {c:g}" for c in TRAININGS[name].thresholds[2:8:2])]
        for rate in TRAININGS[name].rates
    ]
    return [*short, *(long if full else [])]


def load(path: Path) -> dict[Run, dict[str, object]]:
    """The runs in a file."""
    lines = path.read_text().splitlines() if path.exists() else []
    results = [json.loads(line) for line in lines]
    return {tuple(result["run"]): result for result in results}


def start_worker(folder: Path | None) -> None:
    PennTreebankWords.folder = folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptb", type=Path, help="folder with ptb.train.txt.gz and ptb.valid.txt.gz")
    parser.add_argument("--full", action="store_true", help="the whole grid: hours of a core")
    parser.add_argument("--long", action="store_true", help="at five times the length, in place of the short one")
    parser.add_argument("--seeds", type=int, help="2, or 3 of the full grid")
    parser.add_argument("--rates", nargs="*", type=float, default=[], help="some of the learning rates; else all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=TRAININGS, default=list(TRAININGS), metavar="NAME")
    parser.add_argument("--rules", nargs="*", default=[], help="'none', 'fixed 0.1', 'auto', …; else those of the grid")
    parser.add_argument("--results", type=Path, default=Path("clipping_sweep.jsonl"))
    options = parser.parse_args()
    names = options.only
    words = [name for name in names if issubclass(TRAININGS[name], PennTreebankWords)]
    if options.ptb is None and words:
        names = [name for name in names if name not in words]
        print(f"{' and '.join(words)} left out: give Penn Treebank's folder as --ptb", file=sys.stderr)
    done = load(options.results)
    runs = grid(names, options.rules, options.seeds or (3 if options.full else 2), options.full)
    if options.long:
        runs = [(name, rule, rate, seed, LONG) for name, rule, rate, seed, length in runs if length == 1]
    todo = [run for run in runs if run not in done and (not options.rates or run[2] in options.rates)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, start_worker, (options.ptb,)) as pool, options.results.open("a") as file:
        for result in tqdm(pool.imap_unordered(train, todo), total=len(todo), disable=None):
            print(json.dumps(result), file=file, flush=True)


if __name__ == "__main__":
    main()
