"""Runs the points of a sweep, several at a time, each a process of its own that a later call goes on with."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rnn_blocks.recipes.run.folder import ENVIRONMENT, LAST
from rnn_blocks.recipes.tools.sweep.outcome import LOG, Outcome, newest_run, read_outcome, save_outcome, saved_outcome
from rnn_blocks.recipes.tools.sweep.points import Point
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec


class SweepRunner:
    """Trains points below one folder.

    A point that is done is not trained again, one that was broken off goes on from its last checkpoint.

    Args:
        spec: the sweep.
        folder: the sweep's.
        processes: how many points are trained at a time; they share the threads of this machine.

    >>> from rnn_blocks.recipes.tools.sweep.spec import read_sweep, sweep_path
    >>> spec = read_sweep(sweep_path("translation-default"), ["translation"])
    >>> SweepRunner(spec, Path("runs/sweeps/translation-default"), processes=2).run([], print)
    {}
    """

    def __init__(self, spec: SweepSpec, folder: Path, processes: int) -> None:
        self._spec = spec
        self._folder = folder
        self._processes = processes
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._guard = threading.Lock()

    def run(self, points: list[Point], told: Callable[[Point, Outcome], None]) -> dict[Point, Outcome]:
        """Train the points.

        Args:
            points: what to train.
            told: called with each point that has ended, by this thread.

        Returns:
            Their outcomes.
        """
        outcomes: dict[str, Outcome] = {}
        with ThreadPoolExecutor(self._processes) as pool:
            try:
                futures = {pool.submit(self._run_one, point): point for point in points}
                for future in as_completed(futures):
                    point = futures[future]
                    outcomes[point.folder_name] = future.result()
                    told(point, outcomes[point.folder_name])
            except BaseException:
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise
        return {point: outcomes[point.folder_name] for point in points}

    def _run_one(self, point: Point) -> Outcome:
        folder = self._folder / point.folder_name
        done = saved_outcome(folder)
        if done is not None:
            return done
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        code = self._train(folder, self._command(point, folder))
        seconds = time.monotonic() - began
        run = newest_run(folder, self._spec.recipe)
        if code != 0 or run is None:
            reason = f"exit code {code}: {_last_line(folder / LOG)}"
            return Outcome("failed", seconds=seconds, run=str(folder), reason=reason)
        outcome = read_outcome(run, self._spec.metric, self._spec.goal, seconds)
        if outcome.status == "done":
            save_outcome(folder, outcome)
        return outcome

    def _command(self, point: Point, folder: Path) -> list[str]:
        run = newest_run(folder, self._spec.recipe)
        args = list(point.args) if run is None else ["--ckpt_path", str(run.checkpoint(LAST))]
        program = [sys.executable, "-m", "rnn_blocks.recipes", self._spec.recipe, "fit"]
        return [*program, "--trainer.enable_progress_bar=false", *args, "--output_dir", str(folder)]

    def _train(self, folder: Path, command: list[str]) -> int:
        threads = max(1, (os.cpu_count() or 1) // self._processes)
        given = os.environ.get("OMP_NUM_THREADS", "")
        if given.isdigit():
            threads = min(threads, int(given))
        environment = {"WANDB_RUN_GROUP": self._spec.name, **os.environ, "OMP_NUM_THREADS": str(threads)}
        environment.pop(ENVIRONMENT, None)
        with (folder / LOG).open("ab") as log:
            with self._guard:
                if self._stopped:
                    return -1
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
                )
                self._running.add(process)
            code = process.wait()
            with self._guard:
                self._running.discard(process)
        return code

    def _stop(self) -> None:
        with self._guard:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    said = [line for line in lines if line.strip() and not line.startswith("See rnn-blocks")]
    told = [line for line in said if line.startswith("error:")]
    return (told or said or ["it said nothing"])[-1].strip()[:300]
