"""Trains the points of a sweep, several at a time, each a process of its own that a later call goes on with."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from optuna.trial import Trial

from rnn_blocks.recipes.run.folder import ENVIRONMENT, LAST, own_folder, runs
from rnn_blocks.recipes.tools.sweep.outcome import (
    Outcome,
    measured,
    newest_run,
    read_outcome,
    save_outcome,
    saved_outcome,
)
from rnn_blocks.recipes.tools.sweep.search import Point, Search
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec

LOG = "log.txt"
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
    is also its training's: a training whose sweep was killed keeps others away from its point.

    Args:
        spec: the sweep.
        folder: the sweep's.
        search: says which points.
        processes: how many points are trained at a time; they share the threads of this machine.
        told: called with each point that has ended.
    """

    def __init__(
        self, spec: SweepSpec, folder: Path, search: Search, processes: int, told: Callable[[Point, Outcome], None]
    ) -> None:
        self._spec, self._folder, self._search = spec, folder, search
        self._processes, self._told = processes, told

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

    def _alone(self) -> AbstractContextManager[None]:
        return own_folder(self._folder, "another process has kept this sweep to itself for a minute", timeout=60)

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
        lock = (folder / ".lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a training is at this point already
            lock.close()
            if new:
                self._search.tell(trial, None)
            return None
        done = saved_outcome(folder, self._spec)
        if done is not None:
            self._search.tell(trial, done)
            self._told(point, done)
            lock.close()
            return None
        run = newest_run(folder, self._spec.recipe)
        args = list(point.args) if run is None else ["--ckpt_path", str(run.checkpoint(LAST))]
        process = self._start(folder, [*args, "--output_dir", str(folder)], lock)
        return Training(trial, point, folder, lock, process)

    def _start(self, folder: Path, args: list[str], lock: IO[str]) -> "subprocess.Popen[bytes]":
        program = [sys.executable, "-m", "rnn_blocks.recipes", self._spec.recipe, "fit"]
        threads = max(1, (os.cpu_count() or 1) // self._processes)
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
            save_outcome(folder, outcome)
        self._search.tell(training.trial, outcome)
        training.lock.close()
        self._told(training.point, outcome)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    said = [line for line in lines if line.strip() and not line.startswith("See rnn-blocks")]
    told = [line for line in said if line.startswith("error:")]
    return (told or said or ["it said nothing"])[-1].strip()[:300]
