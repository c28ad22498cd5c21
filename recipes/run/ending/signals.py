"""Signals that end a command: Ctrl-C, a scheduler's SIGTERM, and SLURM's warning before a job's time is up."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C ends the command. Whoever cleans up after Ctrl-C cleans up after it as well.

    Args:
        number: the signal's.
        requeue: whether SLURM is asked to run the job again.

    >>> exit_code(Terminated(signal.SIGTERM)), exit_code(KeyboardInterrupt())
    (143, 130)
    """

    def __init__(self, number: int, requeue: bool = False) -> None:
        super().__init__(number)
        self.number = number
        self.requeue = requeue


def exit_code(ended: KeyboardInterrupt) -> int:
    """That of a command which a signal ended: 128 and its number, as in a shell."""
    return 128 + signal_of(ended)


def signal_of(ended: KeyboardInterrupt) -> signal.Signals:
    """The signal that ended a command."""
    return signal.Signals(ended.number if isinstance(ended, Terminated) else signal.SIGINT)


def ended_by(number: int) -> KeyboardInterrupt:
    """What is raised for a signal.

    >>> ended_by(signal.SIGINT)
    KeyboardInterrupt()
    """
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number, requeue=number == signal.SIGUSR1)


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """The interruption behind an error, if there is one: Lightning puts ``SystemExit(1)`` in its place.

    >>> interruption(SystemExit(1)) is None
    True
    """
    one: BaseException | None = error
    while one is not None and not isinstance(one, KeyboardInterrupt):
        one = one.__context__
    return one


def job_id() -> str | None:
    """That of the SLURM job that this process is part of; None in an interactive one, which is not run again.

    >>> job_id() is None
    True
    """
    environment = os.environ
    if environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def ending_signals() -> list[signal.Signals]:
    """Those that end a command besides Ctrl-C.

    >>> signal.SIGTERM in ending_signals()
    True
    """
    return [signal.SIGTERM, *([signal.SIGUSR1] if job_id() else [])]


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it the first such signal ends what runs, as Ctrl-C does; later ones do not disturb how it ends.

    >>> try:
    ...     with ended_by_signals():
    ...         signal.raise_signal(signal.SIGTERM)
    ... except Terminated as ended:
    ...     exit_code(ended)
    143
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not ended:
            ended.append(number)
            raise ended_by(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ending_signals())}
    try:
        for number, handler in before.items():
            if handler is signal.SIG_DFL:  # else somebody has said what it does, as Python of Ctrl-C
                signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_later() -> Iterator[None]:
    """A signal that comes within it does what it does afterwards: for what cannot be ended half done.

    >>> with ended_by_signals():
    ...     try:
    ...         with ended_later():
    ...             signal.raise_signal(signal.SIGTERM)
    ...             done = True
    ...     except Terminated:
    ...         done
    True
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    come: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ending_signals())}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda number, frame: come.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for sent, frame in come[:1]:
            handler = before[signal.Signals(sent)]
            assert callable(handler)
            handler(sent, frame)
