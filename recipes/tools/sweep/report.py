"""What a sweep found: one table, best first, and one figure."""

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from rnn_blocks.callbacks.figures import BLUE, ORANGE, RED
from rnn_blocks.recipes.run.folder import write_whole
from rnn_blocks.recipes.tools.sweep.outcome import Outcome
from rnn_blocks.recipes.tools.sweep.points import Point
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec

Outcomes = dict[Point, Outcome]


def ranked(outcomes: Outcomes, goal: str) -> list[tuple[Point, Outcome]]:
    """Points from the best on; those without a finite metric come last.

    >>> found = ((1, 2.5), (2, 2.0), (3, None))
    >>> outcomes = {Point({"lr": lr}, (str(lr),)): Outcome("done", best) for lr, best in found}
    >>> [point.values["lr"] for point, _ in ranked(outcomes, "minimize")]
    [2, 1, 3]
    """
    sign = 1 if goal == "minimize" else -1
    return sorted(outcomes.items(), key=lambda pair: math.inf if pair[1].best is None else sign * pair[1].best)


def short_names(names: list[str]) -> dict[str, str]:
    """The last part of each dotted name, or more of it where two would be the same.

    >>> short_names(["model.encoder.init_args.hidden_size", "model.decoder.init_args.hidden_size", "model.dropout"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'model.encoder.init_args.hidden_size': 'encoder.hidden_size',
     'model.decoder.init_args.hidden_size': 'decoder.hidden_size', 'model.dropout': 'dropout'}
    """
    parts = {name: [part for part in name.split(".") if part != "init_args"] for name in names}
    short = {}
    for name, own in parts.items():
        length = 1
        others = [other for key, other in parts.items() if key != name]
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        short[name] = ".".join(own[-length:])
    return short


def swept(outcomes: Outcomes) -> list[str]:
    """Names of the parameters that have more than one value.

    >>> swept({Point({"a": 1, "b": 1}, ("1",)): Outcome("done"), Point({"a": 1, "b": 2}, ("2",)): Outcome("done")})
    ['b']
    """
    names = list(next(iter(outcomes)).values)
    return [name for name in names if len({repr(point.values[name]) for point in outcomes}) > 1] or names


def table(outcomes: Outcomes, spec: SweepSpec) -> str:
    """The printed table: swept parameters, the metric at its best, where, and how long it took.

    >>> table({}, spec=None)
    ''
    """
    if not outcomes:
        return ""
    short = short_names(swept(outcomes))
    rows = [[*short.values(), spec.metric, "at step", "at the end", "minutes", ""]]
    for point, outcome in ranked(outcomes, spec.goal):
        measured = [_number(outcome.best), _number(outcome.step), _number(outcome.last)]
        took = f"{outcome.seconds / 60:.1f}" if outcome.seconds else ""
        status = "" if outcome.status == "done" else outcome.status
        rows.append([*(_number(point.values[name]) for name in short), *measured, took, status])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "".join("  ".join(map(str.rjust, row, widths)).rstrip() + "\n" for row in rows)


def write_csv(path: Path, outcomes: Outcomes, spec: SweepSpec) -> None:
    """The table as a file, all names and digits in full."""
    text = io.StringIO()
    names = list(spec.parameters)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, spec.metric, "step", "last", "seconds", "status", "run", "reason"])
    for point, outcome in ranked(outcomes, spec.goal):
        measured = [outcome.best, outcome.step, outcome.last, round(outcome.seconds, 1)]
        writer.writerow(
            [*(point.values[name] for name in names), *measured, outcome.status, outcome.run, outcome.reason]
        )
    write_whole(path, text.getvalue())


def draw(path: Path, outcomes: Outcomes, spec: SweepSpec) -> bool:
    """The metric over each swept parameter, and a heat map where two make a grid.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = {point: outcome.best for point, outcome in outcomes.items() if outcome.best is not None}
    if not known:
        return False
    names = swept(outcomes)
    short = short_names(names)
    cells = _grid(outcomes, names)
    panels = len(names) + (cells is not None)
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(4.6 * columns, 3.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    figure.suptitle(f"{spec.name}: {spec.metric} at its best", x=0.01, ha="left")
    for place, name in zip(axes, names, strict=False):
        _scatter(place, name, short[name], known, spec)
    if cells is not None:
        _heat_map(figure, axes[len(names)], cells, [short[name] for name in names], spec)
    for place in axes[panels:]:
        place.set_visible(False)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    os.replace(temporary, path)
    return True


def _scatter(axes: Any, name: str, label: str, known: dict[Point, float], spec: SweepSpec) -> None:
    values = [point.values[name] for point in known]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    ticks = list(dict.fromkeys(map(str, values)))
    places = [float(value) if numbers else float(ticks.index(str(value))) for value in values]
    metric = list(known.values())
    axes.scatter(places, metric, color=BLUE, s=28, alpha=0.75, linewidth=0)
    pick = min if spec.goal == "minimize" else max
    axes.scatter(*pick(zip(places, metric, strict=True), key=lambda pair: pair[1]), color=ORANGE, s=50, zorder=3)
    distinct = sorted(set(places))
    if len(distinct) <= 12:  # the best of each value, joined
        best = [pick(m for p, m in zip(places, metric, strict=True) if p == value) for value in distinct]
        axes.plot(distinct, best, color=BLUE, linewidth=1, alpha=0.6)
    if not numbers:
        axes.set_xticks(range(len(ticks)), ticks)
    elif distinct[0] > 0 and distinct[-1] / distinct[0] >= 8:
        axes.set_xscale("log")
    if numbers and len(distinct) <= 8:
        axes.set_xticks(distinct, [f"{value:g}" for value in distinct])
        axes.minorticks_off()
    elif axes.get_xscale() == "log":
        marks = np.geomspace(distinct[0], distinct[-1], 4)
        axes.set_xticks(marks, [f"{value:.2g}" for value in marks])
        axes.minorticks_off()
    low, high = _limits(np.array(metric), spec.goal)
    margin = 0.06 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    beyond = [(p, m) for p, m in zip(places, metric, strict=True) if not low <= m <= high]
    for place, value in beyond:  # at the edge, with its value
        up = value > high
        edge = high + margin if up else low - margin
        axes.annotate(
            f"{value:.3g} {'↑' if up else '↓'}",
            (place, edge),
            xytext=(0, -12 if up else 4),
            color=RED,
            ha="center",
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel(label)
    axes.set_ylabel(spec.metric)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _limits(metric: np.ndarray[Any, Any], goal: str) -> tuple[float, float]:
    """The range that is shown: a run that diverged would press all others flat."""
    low, middle, high = np.quantile(metric, [0, 0.5, 1])
    if goal == "minimize":
        return float(low), float(max(metric[metric <= middle + 4 * (middle - low)], default=high))
    return float(min(metric[metric >= middle - 4 * (high - middle)], default=low)), float(high)


def _grid(outcomes: Outcomes, names: list[str]) -> tuple[list[Any], list[Any], np.ndarray[Any, Any]] | None:
    """Values of the first and the second parameter, and the metric at each pair of them, where they make a grid."""
    if len(names) != 2:
        return None
    first, second = (list(dict.fromkeys(point.values[name] for point in outcomes)) for name in names)
    if len(first) * len(second) != len(outcomes):
        return None
    cells = np.full((len(first), len(second)), np.nan)
    for point, outcome in outcomes.items():
        if outcome.best is not None:
            cells[first.index(point.values[names[0]]), second.index(point.values[names[1]])] = outcome.best
    return first, second, cells


def _heat_map(
    figure: Any, axes: Any, grid: tuple[list[Any], list[Any], np.ndarray[Any, Any]], labels: list[str], spec: SweepSpec
) -> None:
    first, second, cells = grid
    low, high = _limits(cells[~np.isnan(cells)], spec.goal)
    colours = "viridis_r" if spec.goal == "minimize" else "viridis"
    image = axes.imshow(cells, cmap=colours, aspect="auto", vmin=low, vmax=max(high, low + 1e-12))
    axes.set_xticks(range(len(second)), [f"{value}" for value in second])
    axes.set_yticks(range(len(first)), [f"{value}" for value in first])
    axes.set_xlabel(labels[1])
    axes.set_ylabel(labels[0])
    for (row, column), value in np.ndenumerate(cells):
        shown = "–" if np.isnan(value) else f"{value:.4g}"
        red, green, blue, _ = image.cmap(image.norm(value))
        light = np.isnan(value) or 0.3 * red + 0.6 * green + 0.1 * blue > 0.5
        axes.text(column, row, shown, ha="center", va="center", color="black" if light else "white", fontsize=9)
    figure.colorbar(image, ax=axes, label=spec.metric)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
