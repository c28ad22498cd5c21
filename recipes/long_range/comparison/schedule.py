"""Trainings one after the other or in several processes, with what they do told as they go."""

import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from rnn_blocks.recipes.long_range.comparison.report import outcome
from rnn_blocks.recipes.long_range.comparison.settings import Result, Settings
from rnn_blocks.recipes.long_range.comparison.training import Stopped, train
from rnn_blocks.recipes.run.ending.signals import ended_by, ending_signals
from rnn_blocks.recipes.run.host.process import quiet, tune_host
from rnn_blocks.recipes.run.host.threads import usable_cores

_worker: dict[str, Any] = {}  # of a worker process: where it tells what it does, and what stops it


def train_all(
    grid: Sequence[Settings], folder: Path, *, processes: int = 1, accelerator: str = "auto"
) -> tuple[list[Result], list[str]]:
    """Make all trainings that have no result yet.

    Ctrl-C, or a scheduler's signal, lets each running training write what it goes on from the next time.

    Args:
        grid: the trainings.
        folder: for their files.
        processes: how many run at a time; with more than one each has a process of its own and its share of the cores.
        accelerator: Lightning's.

    Returns:
        The results in the order of ``grid``, and for each training that failed a line that says which and why.

    Raises:
        KeyboardInterrupt: where it was interrupted.

    >>> train_all([], Path("no-such-folder"))
    ([], [])
    """
    results: dict[str, Result] = {}
    for settings in grid:
        done = Result.read(folder / f"{settings.key()}.json")
        if done is not None:
            results[settings.key()] = done
    due = [settings for settings in grid if settings.key() not in results]
    failures: list[str] = []
    if due:
        with _Told(len(grid), len(results)) as told:
            if processes == 1 or len(due) == 1:
                made = _here(due, folder, accelerator, told)
            else:
                # the longest first: none is left over when the others are done
                due.sort(key=lambda settings: -settings.length)
                made = _in_processes(due, folder, accelerator, told, min(processes, len(due)))
            for settings, found in made:
                if isinstance(found, Result):
                    results[settings.key()] = found
                    told.finished(found)
                else:
                    failures.append(f"{settings.told()}: {found}")
                    told.failed(failures[-1])
    return [results[settings.key()] for settings in grid if settings.key() in results], failures


class _Told:
    """A progress bar of all trainings, with those that run, and a line for each that ended."""

    def __init__(self, total: int, done: int) -> None:
        # a log file gets the lines alone
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="Trainings",
            bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}| {elapsed} {postfix}",
            file=sys.stderr,
            mininterval=0.2,
            disable=not sys.stderr.isatty(),
        )
        self._running: dict[str, str] = {}

    def __enter__(self) -> "_Told":
        return self

    def __exit__(self, *ended: object) -> None:
        self._bar.close()

    def step(self, settings: Settings, step: int, loss: float) -> None:
        relative = "" if math.isnan(loss) else f" loss {loss:.2g}"
        self._running[settings.key()] = f"{settings.cell} T={settings.length} step {step}{relative}"
        self._bar.set_postfix_str("; ".join(self._running.values()))

    def finished(self, result: Result) -> None:
        self._running.pop(result.settings.key(), None)
        self._bar.update()
        self._bar.write(
            f"{result.settings.told()}: {outcome(result)} after {result.steps} steps, loss {result.loss:.3g} "
            f"({result.relative_loss:.3g} of a guess's), {result.seconds:.0f} s",
            file=sys.stderr,
        )

    def failed(self, failure: str) -> None:
        self._bar.update()
        self._bar.write(f"failed: {failure}", file=sys.stderr)


Made = Iterator[tuple[Settings, "Result | str"]]


def _here(due: Sequence[Settings], folder: Path, accelerator: str, told: _Told) -> Made:
    stop = threading.Event()
    with _interrupts(stop.set) as numbers, _quiet_trainer():
        for settings in due:
            told.step(settings, 0, math.nan)

            def report(step: int, loss: float, settings: Settings = settings) -> None:
                told.step(settings, step, loss)

            found: Result | str
            try:
                found = train(settings, folder, report=report, stop=stop.is_set, accelerator=accelerator)
            except Stopped:
                raise ended_by(numbers[0]) from None
            except Exception as error:
                found = _reason(error)
            yield settings, found


def _in_processes(due: Sequence[Settings], folder: Path, accelerator: str, told: _Told, processes: int) -> Made:
    context = multiprocessing.get_context("spawn")  # a forked copy of torch's thread pools would hang
    messages, stop = context.Queue(), context.Event()
    threads = max(1, _cores() // processes)
    with (
        _interrupts(stop.set) as numbers,
        _environment("OMP_NUM_THREADS", str(threads)),
        ProcessPoolExecutor(processes, context, _start_worker, (messages, stop, threads)) as pool,
    ):
        by_future: dict[Future[Result], Settings] = {
            pool.submit(_train_in_worker, settings, folder, accelerator): settings for settings in due
        }
        waiting = set(by_future)
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for settings, step, loss in _drained(messages):
                told.step(settings, step, loss)
            if stop.is_set():
                pool.shutdown(cancel_futures=True)
                raise ended_by(numbers[0])
            for future in done:
                error = future.exception()
                yield by_future[future], future.result() if error is None else _reason(error)


def _start_worker(messages: Any, stop: Any, threads: int) -> None:
    for number in (signal.SIGINT, *ending_signals()):  # the process that started this one says when to stop
        signal.signal(number, _nothing)
    torch.set_num_threads(threads)
    quiet()
    tune_host()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    _worker.update(messages=messages, stop=stop)


def _nothing(number: int, frame: object) -> None:
    """An answer of its own, where ignoring a signal would be handed on to Lightning."""


def _train_in_worker(settings: Settings, folder: Path, accelerator: str) -> Result:
    messages, stop = _worker["messages"], _worker["stop"]
    messages.put((settings, 0, math.nan))

    def report(step: int, loss: float) -> None:
        messages.put((settings, step, loss))

    return train(settings, folder, report=report, stop=stop.is_set, accelerator=accelerator)


def _drained(messages: Any) -> Iterator[tuple[Settings, int, float]]:
    while True:
        try:
            yield messages.get_nowait()
        except Empty:
            return


def _reason(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return "a training's process was killed (for its memory?), and all that ran or waited ended with it"
    return f"{type(error).__name__}: {error}"


def _cores() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else usable_cores()


@contextmanager
def _interrupts(stop: Callable[[], object]) -> Iterator[list[int]]:
    """The first Ctrl-C or scheduler's signal stops in good order, a second one at once; gives the signals' numbers."""
    numbers: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield numbers
        return

    def handle(number: int, frame: object) -> None:
        signal.signal(number, before[number])
        numbers.append(number)
        stop()

    before: dict[int, Any] = {number: signal.signal(number, handle) for number in (signal.SIGINT, *ending_signals())}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _quiet_trainer() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
