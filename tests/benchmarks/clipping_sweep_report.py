"""Tables and a picture of what clipping_sweep.py found.

    python tests/benchmarks/clipping_sweep_report.py clipping_sweep.jsonl [--to docs/images/clipping_sweep.png]

For each training: the held-out loss by rule and learning rate, means over the seeds, ÷ where a seed diverged (its loss
was no number, or above that of a model that has learnt nothing). Then, of each rule, how far it is above the best
fixed threshold (or none): each at its own best learning rate, both at the rate that is best by hand, and at the worst
rate; the highest learning rate at which it still trains; and its steps to the training loss that the best training
without clipping ends with.
"""

import argparse
import math
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from clipping_sweep import RULES, load
from clipping_trainings import TRAININGS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Losses = dict[str, dict[float, float]]  # rule -> learning rate -> mean held-out loss, infinite where a seed diverged
COLOURS = {"auto": "#c8372d", "AutoClip (Percentile 10)": "#6b4fb3", "Percentile 90": "#3f77b5"}
COLOURS |= {"ZClip (ZScore)": "#0f7b82", "AdaGC (EmaRatio)": "#b8860b", "AGC (Unitwise)": "#7a9a3a"}


class Results:
    """The runs of one training."""

    def __init__(self, name: str, runs: dict) -> None:
        self.training = TRAININGS[name]
        seeds: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.curves: dict[tuple[str, float], list[list[float]]] = defaultdict(list)
        num_runs = Counter(seed for training, _, _, seed in runs if training == name)
        for (training, rule, rate, seed), result in runs.items():
            if training == name and num_runs[seed] == max(num_runs.values()):  # else the seed is under way
                loss = result["loss"]
                seeds[rule][rate].append(loss if loss < self.training.trivial_loss else math.inf)
                self.curves[rule, rate].append(result["losses"])
        self.num_seeds = min((len(losses) for by_rate in seeds.values() for losses in by_rate.values()), default=0)
        self.losses: Losses = {
            rule: {rate: statistics.fmean(by_rate[rate]) for rate in self.training.rates if by_rate[rate]}
            for rule, by_rate in seeds.items()
        }
        self.by_hand = {rule: row for rule, row in self.losses.items() if rule == "none" or rule.startswith("fixed ")}
        rates = [rate for rate in self.training.rates if all(rate in row for row in self.losses.values())]
        self.rates = tuple(rates)

    def best_by_hand(self, rate: float) -> tuple[float, str]:
        """The lowest loss at a learning rate, and the threshold that it took."""
        return min((row[rate], rule) for rule, row in self.by_hand.items())

    @property
    def best_rate(self) -> float:
        return min(self.rates, key=lambda rate: self.best_by_hand(rate)[0])

    def excess(self, rule: str, rate: float) -> float:
        """How far a rule's loss is above the best by hand, as a share of it."""
        best, _ = self.best_by_hand(rate)
        return self.losses[rule][rate] / best - 1 if math.isfinite(best) else math.nan

    def highest_rate(self, rule: str, within: float) -> float:
        """The highest learning rate at which a rule's loss is within a factor of the best by hand at any rate."""
        limit = within * self.best_by_hand(self.best_rate)[0]
        return max((rate for rate in self.rates if self.losses[rule][rate] <= limit), default=math.nan)

    def steps_to(self, rule: str, target: float) -> float:
        """The fewest steps, over the learning rates, in which the training loss came down to `target`."""
        steps = [
            statistics.median(_first_below(curve, target) for curve in self.curves[rule, rate]) for rate in self.rates
        ]
        return min(steps)


def _first_below(curve: list[float], target: float) -> float:
    for end in range(3, len(curve) + 1):
        if statistics.fmean(curve[end - 3 : end]) <= target:
            return 10.0 * end
    return math.inf


def _number(value: float) -> str:
    return "÷" if math.isinf(value) else "" if math.isnan(value) else f"{value:.4g}"


def _percent(value: float) -> str:
    return "÷" if math.isinf(value) else "" if math.isnan(value) else f"{100 * value:+.1f} %"


def print_losses(name: str, results: Results) -> None:
    rates = results.rates
    print(f"\n**{name}** ({results.num_seeds} seeds, {results.training.steps} steps): {results.training.__doc__}\n")
    print("| clipping |" + "".join(f" lr {rate:g} |" for rate in rates) + "\n| --- |" + " --- |" * len(rates))
    order = ["none", *(f"fixed {c:g}" for c in results.training.thresholds), *RULES]
    for rule in (rule for rule in order if rule in results.losses):
        cells = []
        for rate in rates:
            loss = results.losses[rule][rate]
            best = math.isfinite(loss) and results.best_by_hand(rate) == (loss, rule)
            cells.append(f"**{_number(loss)}**" if best else _number(loss))
        print(f"| {rule} | {' | '.join(cells)} |")


def print_summary(all_results: dict[str, Results]) -> None:
    print(
        "\nAbove the best by hand: each at its own best learning rate / both at the rate that is best by hand / at the"
    )
    print("worst of the four. ÷: diverged where a fixed threshold trains.\n")
    print("| rule |" + "".join(f" {name} |" for name in all_results))
    print("| --- |" + " --- |" * len(all_results))
    for rule in ("none", *RULES):
        cells = []
        for results in all_results.values():
            if rule not in results.losses:
                cells.append("")
                continue
            worst = max(excess for rate in results.rates if not math.isnan(excess := results.excess(rule, rate)))
            own = min(results.losses[rule].values()) / results.best_by_hand(results.best_rate)[0] - 1
            cells.append(" / ".join(map(_percent, (own, results.excess(rule, results.best_rate), worst))))
        print(f"| {rule} |" + "".join(f" {cell} |" for cell in cells))
    print("\nHighest learning rate whose loss is within 10 % of the best of all by hand / fewest steps to the training")
    print("loss that the best training without clipping ends with:\n")
    print("| clipping |" + "".join(f" {name} |" for name in all_results) + "\n| --- |" + " --- |" * len(all_results))
    for rule in ("none", "one fixed threshold", "the best fixed threshold of each rate", "auto"):
        cells = []
        for results in all_results.values():
            none = min(results.rates, key=lambda rate: results.losses["none"][rate])
            target = statistics.fmean(statistics.fmean(curve[-3:]) for curve in results.curves["none", none])
            if rule == "one fixed threshold":  # the one that is best at the best learning rate
                rules = [results.best_by_hand(results.best_rate)[1]]
            elif rule.startswith("the best"):
                rules = list(results.by_hand)
            else:
                rules = [rule]
            rates = [results.highest_rate(r, 1.1) for r in rules if r in results.losses]
            highest = max((rate for rate in rates if not math.isnan(rate)), default=math.nan)
            steps = min(results.steps_to(r, target) for r in rules if r in results.losses)
            cells.append(f"{_number(highest) or 'none'} / {_number(steps)}")
        print(f"| {rule} |" + "".join(f" {cell} |" for cell in cells))


def draw(all_results: dict[str, Results], path: Path) -> None:
    """Held-out loss over the learning rate: fixed thresholds in grey, the rules in colour."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).flat
    for axis, (name, results) in zip(axes, all_results.items(), strict=False):
        best = min(min(row.values()) for row in results.losses.values())
        top = results.training.trivial_loss
        for rule, row in results.losses.items():
            fixed = rule.startswith("fixed ")
            style = {"color": "#c3cad1", "lw": 1, "zorder": 1} if fixed else {"color": COLOURS.get(rule, "#26323f")}
            style |= {"lw": 2.6, "zorder": 4} if rule == "auto" else {}
            style |= {"ls": "--"} if rule == "none" else {}
            label = "fixed thresholds" if fixed else "no clipping" if rule == "none" else rule
            losses = [min(row[rate], 1.03 * top) for rate in results.rates]
            axis.semilogx(results.rates, losses, marker=".", label=label, **style)
        axis.set(title=name, xlabel="learning rate", ylabel="held-out loss")
        axis.axhspan(top, 1.06 * top, color="#f3d9d6", zorder=0)
        axis.set_ylim(best - 0.05 * (top - best), 1.05 * top)
    handles = {label: handle for handle, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True)}
    last = figure.axes[len(all_results)]
    last.axis("off")
    last.legend(handles.values(), handles.keys(), loc="center", frameon=False, title="shaded: diverged")
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--to", type=Path, help="where to draw the picture")
    options = parser.parse_args()
    runs = load(options.results)
    names = [name for name in TRAININGS if any(run[0] == name for run in runs)]
    all_results = {name: Results(name, runs) for name in names}
    for name, results in all_results.items():
        print_losses(name, results)
    print_summary(all_results)
    if options.to:
        draw(all_results, options.to)


if __name__ == "__main__":
    main()
