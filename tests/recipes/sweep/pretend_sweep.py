"""Sweep files for tests, and trainings that only write what a training would leave."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import Trial

from rnn_blocks.recipes.__main__ import main
from rnn_blocks.recipes.tools.sweep.runner import SweepRunner, Training
from rnn_blocks.recipes.tools.sweep.search import Outcome, Point, Search
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec, read_sweep

SWEEP: dict[str, Any] = {
    "program": "rnn-blocks",
    "command": ["rnn-blocks", "language-model", "fit", "${args}", "--logger=csv"],
    "method": "grid",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "parameters": {
        "model.dropout": {"values": [0.0, 0.1, 0.2]},
        "model.optimizer.init_args.lr": {"values": [0.01, 0.1]},
    },
}
SPREAD = {"a": {"min": 0.0, "max": 1.0}, "b": {"min": 1, "max": 9}, "c": {"values": ["x", "y"]}}


def chosen(search: Search, most: int = 100, loss: Any = None) -> list[dict[str, Any]]:
    """The values of the points that a search visits, told their loss where there is one."""
    values: list[dict[str, Any]] = []
    while len(values) < most and (trial := search.ask()) is not None:
        values.append(search.point(trial).values)
        if loss is not None:
            search.tell(trial, Outcome("done", loss(values[-1])))
    return values


def written(folder: Path, **changes: Any) -> Path:
    """A sweep file, with some keys changed, or left out where they are None."""
    content = {key: value for key, value in (SWEEP | changes).items() if value is not None}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def spec_of(folder: Path, **changes: Any) -> SweepSpec:
    return read_sweep(written(folder, **changes))


def run(*args: str) -> int:
    try:
        return main(["sweep", *args])
    except SystemExit as ended:
        return int(ended.code or 0)


class PretendTraining:
    """Stands for a process: each look at it finds one more validation, and after the last it has ended."""

    def __init__(self, run: Path, metric: str, losses: list[float], code: int) -> None:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints" / "last.ckpt").touch()
        self.run, self.metric, self.losses, self.code = run, metric, losses, code
        self.returncode: int | None = None
        self.validations = 0

    def poll(self) -> int | None:
        if self.returncode is None and self.validations < len(self.losses):
            self.validations += 1
            rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(self.losses[: self.validations], start=1))
            (self.run / "metrics.csv").write_text(f"step,{self.metric}\n{rows}")
            time.sleep(0.01)  # the times of two writes differ
        elif self.returncode is None:
            self.returncode = self.code
        return self.returncode

    def terminate(self) -> None:
        if self.returncode is None:
            self.returncode = 143

    def wait(self) -> int | None:
        return self.returncode


class PretendRunner(SweepRunner):
    """Remembers the arguments of trainings that are only pretended.

    Args:
        losses: those of the validations at a point, by the name of its folder.
        code: what the trainings exit with.
        metric: the name that they log it under; by default the sweep's.
        interrupted_at: the number of trainings at which somebody interrupts.
    """

    def __init__(
        self,
        spec: SweepSpec,
        folder: Path,
        search: Search,
        losses: Callable[[str], list[float]] = lambda name: [2.5],
        *,
        processes: int = 1,
        code: int = 0,
        metric: str | None = None,
        interrupted_at: int | None = None,
    ) -> None:
        self.ended: list[tuple[Point, Outcome]] = []
        super().__init__(spec, folder, search, processes)
        self.commands: list[list[str]] = []
        self.trainings: list[PretendTraining] = []
        self.losses, self.code, self.interrupted_at = losses, code, interrupted_at
        self.metric = metric or spec.metric

    def _start(self, folder: Path, args: list[str], lock: Any) -> Any:
        self.commands.append(args)
        (folder / "log.txt").write_text("Killed\n")
        run = folder / self._spec.recipe / "2026-01-01"
        self.trainings.append(PretendTraining(run, self.metric, self.losses(folder.name), self.code))
        return self.trainings[-1]

    def _watch(self, training: Training) -> None:
        if self.interrupted_at is not None and len(self.trainings) >= self.interrupted_at:
            raise KeyboardInterrupt
        super()._watch(training)

    def _tell(self, trial: Trial, point: Point, outcome: Outcome) -> None:
        super()._tell(trial, point, outcome)
        self.ended.append((point, outcome))
