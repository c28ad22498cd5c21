"""Tables and a picture of what sweep.py found.

    python tests/benchmarks/clipping/report.py clipping_sweep.jsonl [--only NAME …] [--losses] [--length 5] [--to P.png]

A rate is *healthy* if the training without clipping ends within 10 % of what it reaches at its best rate, *hot* if it
is above the healthy ones, *slow* if below. Losses are held-out ones, means over the seeds that every rule of a row has;
÷ where a seed diverged (no number, or above the loss of a model that has learnt nothing). A star: the rule's settings
were chosen on this training, among others.

1. What `auto` costs: how far it is above no clipping, at the healthy and at the slow rate where that is worst, with the
   standard error of the mean difference over the seeds; of the training loss, the same in the second twentieth of the
   steps; and the share of steps clipped.
2. What it saves: at hot rates, how far it is above the best fixed threshold of each.
3. What is reached at the best rate: without clipping, with the best fixed threshold, with `auto`.

With `--losses` also the losses of every rule.
"""

import argparse
import math
import statistics
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sweep import RULES, load
from trainings import TRAININGS

COLOURS = {"auto": "#c8372d", "AutoClip (Percentile 10)": "#6b4fb3", "Percentile 90": "#3f77b5"}
COLOURS |= {"ZClip (ZScore)": "#0f7b82", "AdaGC (EmaRatio)": "#b8860b", "AGC (Unitwise)": "#7a9a3a"}
COLOURS |= {"Chorowski (LogNormal)": "#a0522d", "OLMo (SkipOutliers)": "#8a8f98"}


class Results:
    """The runs of one training, of one length."""

    def __init__(self, name: str, runs: dict, length: int) -> None:
        self.training = TRAININGS[name]
        self.rates = self.training.rates
        self._runs = {(r, rate, seed): x for (n, r, rate, seed, long), x in runs.items() if (n, long) == (name, length)}
        found = {rule for rule, _, _ in self._runs}
        fixed = [f"fixed {c:g}" for c in self.training.thresholds]
        self.rules = [rule for rule in ("none", *fixed, *RULES) if rule in found]
        self.fixed = fixed if set(fixed) <= found else []  # the best of a few would say nothing
        self.none = {rate: self.loss("none", rate) for rate in self.rates}
        best = min(self.none.values())
        limit = best + 0.1 * abs(best)
        healthy = [rate for rate in self.rates if self.none[rate] <= limit < math.inf]
        self.healthy = healthy
        self.hot = [rate for rate in self.rates if rate > max(healthy, default=0.0)]
        self.slow = [rate for rate in self.rates if rate not in (*healthy, *self.hot)]

    def seeds(self, *rules: str, rate: float | None = None) -> list[int]:
        """Those of which all rules have been run at that rate, or at every one."""
        wanted = [(rule, at) for rule in rules for at in (self.rates if rate is None else [rate])]
        seeds = {seed for _, _, seed in self._runs}
        return sorted(seed for seed in seeds if all((rule, at, seed) in self._runs for rule, at in wanted))

    def values(self, rule: str, rate: float, seeds: list[int], what: str = "loss") -> list[float]:
        return [self._runs[rule, rate, seed][what] for seed in seeds]

    def loss(self, rule: str, rate: float, seeds: list[int] | None = None) -> float:
        """Mean held-out loss; NaN where it has not been run."""
        values = self.values(rule, rate, self.seeds(rule) if seeds is None else seeds)
        return statistics.fmean(values) if values else math.nan

    def best_fixed(self, rate: float, seeds: list[int]) -> float:
        """The lowest mean loss of all fixed thresholds."""
        return min((self.loss(rule, rate, seeds) for rule in self.fixed), default=math.nan)

    def excess(self, rate: float, what: str = "loss") -> tuple[float, float]:
        """How far `auto` is above `none`, as a share of it, and the standard error of that."""
        seeds = self.seeds("none", "auto")
        none, auto = (self.values(rule, rate, seeds, what) for rule in ("none", "auto"))
        if math.inf in (*none, *auto):
            return (-math.inf if math.inf in none else math.inf), 0.0
        base = abs(statistics.fmean(none))
        differences = [(after - before) / base for before, after in zip(none, auto, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(seeds)) if len(seeds) > 1 else math.nan
        return statistics.fmean(differences), error

    def clipped(self, rate: float) -> float:
        """Mean share of steps that `auto` clips."""
        values = self.values("auto", rate, self.seeds("auto"), "clipped")
        return statistics.fmean(value.get("clipped_fraction", 0.0) for value in values)


def above(value: float, base: float) -> float:
    """How far, as a share of `base`; -inf where that is infinite."""
    return -math.inf if math.isinf(base) else (value - base) / abs(base)


def number(value: float) -> str:
    return "÷" if math.isinf(value) else "" if math.isnan(value) else f"{value:.4g}"


def percent(value: float) -> str:
    if math.isinf(value):
        return "÷" if value > 0 else "trains where none does not"
    return "" if math.isnan(value) else f"{100 * value:+.1f} %"


def print_cost(all_results: dict[str, Results]) -> None:
    print("\n| training | healthy rates | `auto` above `none` | at the start | steps clipped | slow rates |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, results in all_results.items():
        if not results.seeds("none", "auto"):
            continue
        cells = [", ".join(f"{rate:g}" for rate in results.healthy) or "none"]
        if results.healthy:
            rate = max(results.healthy, key=lambda rate: results.excess(rate)[0])
            value, error = results.excess(rate)
            start = max(results.excess(rate, "start")[0] for rate in results.healthy)
            most = max(map(results.clipped, results.healthy))
            cells += [f"{percent(value)} ± {100 * error:.1f}", percent(start), f"{100 * most:.1f} %"]
        else:
            cells += ["", "", ""]
        cells.append(percent(max((results.excess(rate)[0] for rate in results.slow), default=math.nan)))
        of = f"{name}{'*' if results.training.chosen_on else ''} ({len(results.seeds('none', 'auto'))})"
        print(f"| {of} | {' | '.join(cells)} |")


def print_savings(all_results: dict[str, Results]) -> None:
    print("\n| training | hot rate | none | best of the fixed thresholds | `auto` | `auto` above it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, results in all_results.items():
        for rate in results.hot if results.fixed else []:
            if not (seeds := results.seeds("none", "auto", *results.fixed, rate=rate)):
                continue
            best, auto = results.best_fixed(rate, seeds), results.loss("auto", rate, seeds)
            excess = math.nan if math.isinf(best) else above(auto, best)
            cells = [number(results.loss("none", rate, seeds)), number(best), number(auto), percent(excess)]
            print(f"| {name} ({len(seeds)}) | {rate:g} | {' | '.join(cells)} |")


def print_best(all_results: dict[str, Results]) -> None:
    print("\n| training | none | best fixed threshold | `auto` | `auto` above `none` |")
    print("| --- | --- | --- | --- | --- |")
    for name, results in all_results.items():
        if not (seeds := results.seeds("none", "auto")):
            continue
        none, auto = (min(results.loss(rule, rate, seeds) for rate in results.rates) for rule in ("none", "auto"))
        shared = results.seeds("none", *results.fixed) if results.fixed else []
        fixed = (
            min((results.best_fixed(rate, shared) for rate in results.rates), default=math.nan) if shared else math.nan
        )
        print(f"| {name} | {number(none)} | {number(fixed)} | {number(auto)} | {percent(above(auto, none))} |")


def print_losses(name: str, results: Results) -> None:
    print(f"\n**{name}**: {results.training.__doc__}\n")
    print("| clipping | seeds |" + "".join(f" lr {rate:g} |" for rate in results.rates))
    print("| --- | --- |" + " --- |" * len(results.rates))
    for rule in results.rules:
        losses = [number(results.loss(rule, rate)) for rate in results.rates]
        print(f"| {rule} | {len(results.seeds(rule))} | {' | '.join(losses)} |")


def draw(all_results: dict[str, Results], path: Path) -> None:
    """Held-out loss over the learning rate: fixed thresholds in grey, the rules in colour."""
    columns = min(5, len(all_results) + 1)
    rows = -(-(len(all_results) + 1) // columns)
    figure = Figure(figsize=(3 * columns, 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    handles: dict[str, object] = {}
    for axis, (name, results) in zip(axes, all_results.items(), strict=False):
        top = results.training.trivial_loss
        losses = {rule: [results.loss(rule, rate) for rate in results.rates] for rule in results.rules}
        best = min((value for values in losses.values() for value in values if value < math.inf), default=0.0)
        margin = 0.06 * (top - best)
        for rule, values in losses.items():
            fixed = rule.startswith("fixed ")
            style = {"color": "#c3cad1", "lw": 1, "zorder": 1} if fixed else {"color": COLOURS.get(rule, "#26323f")}
            style |= {"lw": 2.6, "zorder": 4} if rule == "auto" else {}
            style |= {"ls": "--", "zorder": 5} if rule == "none" else {}
            label = "fixed thresholds" if fixed else "no clipping" if rule == "none" else rule
            shown = [min(value, top + margin / 2) for value in values]
            [handles[label]] = axis.plot(results.rates, shown, marker=".", **style)
        axis.set_xscale("log")
        axis.set_xticks(results.rates, [f"{rate:g}" for rate in results.rates])
        axis.minorticks_off()
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.axhspan(top, top + margin, color="#f3d9d6", zorder=0)
        axis.set_ylim(best - margin, top + margin)
    for axis in axes[len(all_results) :]:
        axis.axis("off")
    axes[len(all_results)].legend(handles.values(), handles.keys(), loc="center", frameon=False, fontsize=8)
    figure.supxlabel("learning rate", fontsize=9)
    figure.supylabel("held-out loss\n(shaded: nothing learnt, or diverged)", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="*", choices=TRAININGS, default=list(TRAININGS), metavar="NAME")
    parser.add_argument("--length", type=int, default=1, help="1 or 5 times the short training")
    parser.add_argument("--losses", action="store_true", help="print every rule's losses too")
    parser.add_argument("--to", type=Path, help="where to draw the picture")
    options = parser.parse_args()
    runs = load(options.results)
    found = {
        name: Results(name, runs, options.length)
        for name in options.only
        if any(run[0] == name and run[4] == options.length for run in runs)
    }
    all_results = {name: results for name, results in found.items() if results.seeds("none")}
    print_cost(all_results)
    print_savings(all_results)
    print_best(all_results)
    if options.losses:
        for name, results in all_results.items():
            print_losses(name, results)
    if options.to:
        draw(all_results, options.to)


if __name__ == "__main__":
    main()
