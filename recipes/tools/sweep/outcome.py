"""What a point of a sweep came to: read from its run's folder."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rnn_blocks.recipes.run.folder import LAST, RunFolder, runs, write_whole
from rnn_blocks.recipes.run.metrics_csv import read_metrics

DONE = "done.json"
LOG = "log.txt"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        status: ``"done"``, ``"failed"``, or ``"not run"``.
        best: the metric at its best, if it was ever finite.
        step: where that was.
        last: the metric at the end.
        seconds: that the run took, since it was started or resumed the last time.
        run: its folder.
        reason: why it failed.

    >>> Outcome("failed", reason="out of memory").best is None
    True
    """

    status: Literal["done", "failed", "not run"]
    best: float | None = None
    step: int | None = None
    last: float | None = None
    seconds: float = 0.0
    run: str = ""
    reason: str = ""


def newest_run(point: Path, recipe: str) -> RunFolder | None:
    """The run that a point goes on with: the newest that got as far as a checkpoint.

    >>> newest_run(Path("no-such-folder"), "language-model") is None
    True
    """
    whole = [run for run in runs(point / recipe) if run.checkpoint(LAST).is_file()]
    return max(whole, key=lambda run: run.checkpoint(LAST).stat().st_mtime_ns) if whole else None


def read_outcome(run: RunFolder, metric: str, goal: str, seconds: float) -> Outcome:
    r"""The metric of a run that ended well.

    >>> import tempfile
    >>> run = RunFolder(Path(tempfile.mkdtemp()))
    >>> _ = run.metrics.write_text("step,val/loss\n9,2.5\n19,2.25\n29,nan\n")
    >>> outcome = read_outcome(run, "val/loss", "minimize", 60.0); outcome.best, outcome.step
    (2.25, 19)
    """
    rows = read_metrics(run.metrics) if run.metrics.is_file() else []
    values = [(float(row[metric]), int(row["step"])) for row in rows if row.get(metric)]
    if not values:
        known = sorted({name for row in rows for name, value in row.items() if value and "/" in name})
        reason = f"the run did not log {metric}; it logged {', '.join(known) or 'nothing'}"
        return Outcome("failed", seconds=seconds, run=str(run.path), reason=reason)
    finite = [pair for pair in values if math.isfinite(pair[0])]
    best, step = (min if goal == "minimize" else max)(finite, default=(None, None), key=lambda pair: pair[0])
    return Outcome("done", best, step, values[-1][0], seconds, str(run.path))


def saved_outcome(point: Path) -> Outcome | None:
    """The outcome of a point that is done.

    >>> saved_outcome(Path("no-such-folder")) is None
    True
    """
    try:
        outcome = Outcome(**json.loads((point / DONE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return outcome


def save_outcome(point: Path, outcome: Outcome) -> None:
    """Mark a point as done.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()); save_outcome(folder, Outcome("done", 2.5)); saved_outcome(folder).best
    2.5
    """
    write_whole(point / DONE, json.dumps(asdict(outcome)))
