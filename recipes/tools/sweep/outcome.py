"""What a point of a sweep came to: read from its run's folder."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rnn_blocks.recipes.run.folder import LAST, RunFolder, runs, write_whole
from rnn_blocks.recipes.run.metrics_csv import read_metrics
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec

DONE = "done.json"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    >>> Outcome("failed", reason="out of memory").best is None
    True
    """

    status: Literal["done", "pruned", "failed"]
    best: float | None = None  # the metric, where it was ever finite
    step: int | None = None  # where that was
    last: float | None = None  # the metric at the end
    seconds: float = 0.0  # since the run was started or resumed the last time
    run: str = ""  # its folder
    reason: str = ""  # why it failed


def newest_run(point: Path, recipe: str) -> RunFolder | None:
    """The run that a point goes on with: the newest that got as far as a checkpoint.

    >>> newest_run(Path("no-such-folder"), "language-model") is None
    True
    """
    whole = [run for run in runs(point / recipe) if run.checkpoint(LAST).is_file()]
    return max(whole, key=lambda run: run.checkpoint(LAST).stat().st_mtime_ns) if whole else None


def measured(run: RunFolder, metric: str) -> list[tuple[float, int]]:
    """The metric at each validation, and the step of it."""
    rows = read_metrics(run.metrics) if run.metrics.is_file() else []
    return [(float(row[metric]), int(row["step"])) for row in rows if row.get(metric)]


def read_outcome(run: RunFolder, spec: SweepSpec, seconds: float) -> Outcome:
    """What a run that ended well came to."""
    values = measured(run, spec.metric)
    if not values:
        rows = read_metrics(run.metrics) if run.metrics.is_file() else []
        known = sorted({name for row in rows for name, value in row.items() if value and "/" in name})
        reason = f"the run did not log {spec.metric}; it logged {', '.join(known) or 'nothing'}"
        return Outcome("failed", seconds=seconds, run=str(run.path), reason=reason)
    finite = [pair for pair in values if math.isfinite(pair[0])]
    pick = min if spec.goal == "minimize" else max
    best, step = pick(finite, default=(None, None), key=lambda pair: pair[0])
    return Outcome("done", best, step, values[-1][0], seconds, str(run.path))


def saved_outcome(point: Path, spec: SweepSpec) -> Outcome | None:
    """The outcome of a point that is done, by the metric that is asked for now.

    >>> saved_outcome(Path("no-such-folder"), spec=None) is None
    True
    """
    try:
        saved = Outcome(**json.loads((point / DONE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    outcome = read_outcome(RunFolder(point / spec.recipe / Path(saved.run).name), spec, saved.seconds)
    return outcome if outcome.status == "done" else None


def save_outcome(point: Path, outcome: Outcome) -> None:
    """Mark a point as done."""
    write_whole(point / DONE, json.dumps(asdict(outcome)))
