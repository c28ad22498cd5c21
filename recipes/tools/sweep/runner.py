"""Trains the points of a sweep, several at a time, each a process of its own, and reads what they came to."""

import difflib
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO

from optuna.trial import Trial, TrialState
from tqdm import tqdm  # type: ignore[import-untyped]

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.folder import ENVIRONMENT, LAST, RunFolder, own_folder, runs, write_whole
from rnn_blocks.recipes.run.host.threads import usable_cores
from rnn_blocks.recipes.run.metrics import read_metrics
from rnn_blocks.recipes.tools.sweep.search import Outcome, Point, Search
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec

DONE, LOG = "done.json", "log.txt"
EVERY = 0.5  # seconds, between two looks at the trainings


@dataclass
class Training:
    """A point that is being trained."""

    trial: Trial
    point: Point
    folder: Path
    lock: IO[str]
    process: "subprocess.Popen[bytes]"
    began: float = field(default_factory=time.monotonic)
    read: int = 0  # when metrics.csv was written that was read last
    pruned: bool = False


class SweepRunner:
    """Trains points below one folder, which several runners may do at once.

    A point that is done is not trained again, one that was broken off goes on from its last checkpoint. A point's lock
    is also its training's: a training whose sweep was killed keeps others away from its point. As many points as there
    are processes are trained at a time, and share the threads of this machine.
    """

    def __init__(self, spec: SweepSpec, folder: Path, search: Search, processes: int = 1) -> None:
        self._spec, self._folder, self._search, self._processes = spec, folder, search, processes
        self._alone = partial(own_folder, folder, "another process keeps this sweep to itself", timeout=60)
        before = sum(outcome.status != "failed" for outcome in search.outcomes().values())
        self._bar = tqdm(total=search.size, initial=before, desc=spec.name, unit="run")

    def run(self) -> None:
        """Train until no point is left, here or in another process."""
        running: list[Training] = []
        with self._alone():
            self._search.try_failed_again()
        try:
            while True:
                while len(running) < self._processes and (training := self._next()):
                    running.append(training)
                if not running and not self._search.unfinished():
                    return
                time.sleep(EVERY)
                for training in list(running):
                    code = training.process.poll()
                    self._watch(training)
                    if code is not None:
                        self._end(training, code)
                        running.remove(training)
        finally:
            for training in running:
                training.process.terminate()
            for training in running:
                training.process.wait()
                training.lock.close()
            self._bar.close()

    def _next(self) -> Training | None:
        """Begin with a point that was broken off, or else with a new one."""
        with self._alone():
            for trial in self._search.unfinished():
                if training := self._begin(trial, new=False):
                    return training
            while (new := self._search.ask()) is not None:
                if training := self._begin(new, new=True):
                    return training
        return None

    def _begin(self, trial: Trial, *, new: bool) -> Training | None:
        point = self._search.point(trial)
        folder = self._folder / point.folder_name
        folder.mkdir(exist_ok=True)
        lock = (folder / ".lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a training is at this point already
            lock.close()
            if new:
                self._search.study.tell(trial, state=TrialState.FAIL)
            return None
        done = saved_outcome(folder, self._spec)
        if done is not None:
            self._tell(trial, point, done)
            lock.close()
            return None
        run = newest_run(folder, self._spec.recipe)
        args = list(point.args) if run is None else ["--ckpt_path", str(run.checkpoint(LAST))]
        process = self._start(folder, [*args, "--output_dir", str(folder)], lock)
        return Training(trial, point, folder, lock, process)

    def _start(self, folder: Path, args: list[str], lock: IO[str]) -> "subprocess.Popen[bytes]":
        program = [sys.executable, "-m", "rnn_blocks.recipes", self._spec.recipe, "fit"]
        threads = max(1, usable_cores() // self._processes)
        given = os.environ.get("OMP_NUM_THREADS", "")
        if given.isdigit():
            threads = min(threads, int(given))
        environment = {"WANDB_RUN_GROUP": self._spec.name, **os.environ, "OMP_NUM_THREADS": str(threads)}
        environment.pop(ENVIRONMENT, None)
        with (folder / LOG).open("ab") as log:
            return subprocess.Popen(
                [*program, "--trainer.enable_progress_bar=false", *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(lock.fileno(),),
            )

    def _watch(self, training: Training) -> None:
        """Tell Optuna of new validations, and end a training that it holds for hopeless."""
        run = next(reversed(runs(training.folder / self._spec.recipe)), None)
        written = run.metrics.stat().st_mtime_ns if run is not None and run.metrics.is_file() else 0
        if run is None or written == training.read or training.pruned:
            return
        training.read = written
        values = [value for value, _ in measured(run, self._spec.metric)]
        if self._search.hopeless(training.trial, values) and training.process.poll() is None:
            training.pruned = True
            training.process.terminate()

    def _end(self, training: Training, code: int) -> None:
        folder, seconds = training.folder, time.monotonic() - training.began
        run = newest_run(folder, self._spec.recipe)
        if run is not None and training.pruned and code in (128 + signal.SIGTERM, -signal.SIGTERM):
            outcome = replace(read_outcome(run, self._spec, seconds), status="pruned")
        elif run is not None and code == 0:
            outcome = read_outcome(run, self._spec, seconds)
        else:
            reason = f"exit code {code}: {_last_line(folder / LOG)}"
            outcome = Outcome("failed", seconds=seconds, run=str(folder), reason=reason)
        if outcome.status == "done":
            write_whole(folder / DONE, json.dumps(asdict(outcome)))
        self._tell(training.trial, training.point, outcome)
        training.lock.close()
        measured_before = any(one.best is not None for one in self._search.outcomes().values())
        if code == 0 and outcome.status == "failed" and not measured_before:
            raise InputError(f"metric: {outcome.reason}; the other points would not either, and are not trained")

    def _tell(self, trial: Trial, point: Point, outcome: Outcome) -> None:
        self._search.tell(trial, outcome)
        found = [one.best for one in self._search.outcomes().values() if one.best is not None]
        if found:
            self._bar.set_postfix({f"best {self._spec.metric}": (min if self._spec.goal == "minimize" else max)(found)})
        if outcome.status == "failed":
            self._bar.write(f"failed: {point.folder_name}: {outcome.reason}", file=sys.stderr)
        self._bar.update()


def newest_run(point: Path, recipe: str) -> RunFolder | None:
    """The run that a point goes on with: the newest that got as far as a checkpoint."""
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
        near = difflib.get_close_matches(spec.metric, known, n=2, cutoff=0.8)
        told = f"did you mean {' or '.join(near)}?" if near else f"it logged {', '.join(known) or 'nothing'}"
        reason = f"the run did not log {spec.metric}; {told}"
        return Outcome("failed", seconds=seconds, run=str(run.path), reason=reason)
    finite = [pair for pair in values if math.isfinite(pair[0])]
    pick = min if spec.goal == "minimize" else max
    best, step = pick(finite, default=(None, None), key=lambda pair: pair[0])
    return Outcome("done", best, step, values[-1][0], seconds, str(run.path))


def saved_outcome(point: Path, spec: SweepSpec) -> Outcome | None:
    """The outcome of a point that is done, by the metric that is asked for now."""
    try:
        saved = Outcome(**json.loads((point / DONE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    outcome = read_outcome(RunFolder(point / spec.recipe / Path(saved.run).name), spec, saved.seconds)
    return outcome if outcome.status == "done" else None


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = [line for line in lines if line.strip() and not line.startswith("See rnn-blocks")]
    told = [line for line in said if line.startswith("error:")]
    return (told or said or ["it said nothing"])[-1].strip()[:300]
