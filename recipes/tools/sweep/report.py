"""What a sweep found: one table, best first, and Optuna's pictures."""

import csv
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from rnn_blocks.recipes.run.folder import write_whole
from rnn_blocks.recipes.tools.sweep.search import Outcome, Point
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec


def ranked(outcomes: dict[Point, Outcome], goal: str) -> list[tuple[Point, Outcome]]:
    """Points from the best on; those without a finite metric come last."""
    sign = 1 if goal == "minimize" else -1
    return sorted(outcomes.items(), key=lambda pair: math.inf if pair[1].best is None else sign * pair[1].best)


def short_names(outcomes: dict[Point, Outcome]) -> dict[str, str]:
    """The last part of the names of parameters with more than one value; all of it where two have the same."""
    names = list(next(iter(outcomes)).values)
    varied = [name for name in names if len({repr(point.values[name]) for point in outcomes}) > 1] or names
    last = [name.rsplit(".", 1)[-1] for name in varied]
    return {name: short if last.count(short) == 1 else name for name, short in zip(varied, last, strict=True)}


def table(outcomes: dict[Point, Outcome], spec: SweepSpec) -> str:
    """The printed table: swept parameters, the metric at its best, where, and how long it took."""
    short = short_names(outcomes)
    rows = [[*short.values(), spec.metric, "at step", "at the end", "minutes", ""]]
    for point, outcome in ranked(outcomes, spec.goal):
        measured = [_number(outcome.best), _number(outcome.step), _number(outcome.last)]
        took = f"{outcome.seconds / 60:.1f}" if outcome.seconds else ""
        status = "" if outcome.status == "done" else outcome.status
        rows.append([*(_number(point.values[name]) for name in short), *measured, took, status])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "".join("  ".join(map(str.rjust, row, widths)).rstrip() + "\n" for row in rows)


def write_csv(path: Path, outcomes: dict[Point, Outcome], spec: SweepSpec) -> None:
    """The table as a file, all names and digits in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*spec.parameters, spec.metric, "step", "last", "seconds", "status", "run", "reason"])
    for point, outcome in ranked(outcomes, spec.goal):
        measured = [outcome.best, outcome.step, outcome.last, round(outcome.seconds, 1)]
        writer.writerow([*point.values.values(), *measured, outcome.status, outcome.run, outcome.reason])
    write_whole(path, text.getvalue())


def draw(folder: Path, study: optuna.Study, short: dict[str, str], metric: str) -> list[Path]:
    """Optuna's pictures of what was found, those that can be made of it, with short names of parameters."""
    import matplotlib
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    found = _shown(study, short)
    pictures: list[tuple[str, Any, float]] = [  # each with the number of points that it needs
        ("sweep", plots.plot_slice, 1),
        ("history", plots.plot_optimization_history, 1),
        ("parallel", plots.plot_parallel_coordinate, 2 if len(short) > 1 else math.inf),
        ("rank", plots.plot_rank, 2 if len(short) == 2 else math.inf),
        ("importances", plots.plot_param_importances, 10 if len(short) > 1 else math.inf),
    ]
    drawn = []
    with warnings.catch_warnings(), matplotlib.rc_context({"figure.figsize": (max(6.4, 3.2 * len(short)), 4.8)}):
        warnings.simplefilter("ignore")  # Optuna's, that its functions are new
        pyplot.switch_backend("agg")
        for name, plot, least in pictures:
            if len(found.trials) >= least:
                plot(found, target_name=metric)
                drawn.append(folder / f"{name}.png")
                pyplot.gcf().savefig(drawn[-1], dpi=130, bbox_inches="tight")
                pyplot.close("all")
    return drawn


def _shown(study: optuna.Study, short: dict[str, str]) -> optuna.Study:
    """A study with short names; a run that diverged, which would press all others flat, is at the edge of the rest."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    sign = 1 if study.direction is optuna.study.StudyDirection.MINIMIZE else -1
    values = sign * np.array([trial.value for trial in complete], dtype=float)
    low, middle = np.quantile(values, [0, 0.5]) if complete else (0, 0)
    edge = max(values[values <= middle + 4 * (middle - low)], default=0)
    shown = optuna.create_study(direction=study.direction)
    for trial, value in zip(complete, values, strict=True):
        params: dict[str, Any] = {new: trial.params[name] for name, new in short.items()}
        kinds = {new: trial.distributions[name] for name, new in short.items()}
        shown.add_trial(optuna.create_trial(params=params, distributions=kinds, value=float(sign * min(value, edge))))
    return shown


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
