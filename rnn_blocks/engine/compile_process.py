"""Compiling in a process beside this one, which leaves what it made in the compiler's cache on disk.

Not in a thread: torch's compiler keeps much of its state for the whole process, and recording a graph replaces methods
of every module while it lasts. There is one such process at a time, on one thread, at a low priority while nobody waits
for it, and only while there is work; it ends with the one that started it, however that ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from multiprocessing.util import Finalize
from pathlib import Path
from threading import Thread

import torch

from rnn_blocks.engine.compile import CompilerError, StepSource, compile_step, unpacked

LONGEST = 600.0  # seconds for which anybody waits for it
PATIENCE = 10.0  # for which one waits on a low priority, at which it may never have its turn
NICENESS = 10

_SERVE = """
import sys
sys.path[:] = sys.argv[4:]
from rnn_blocks.engine.compile_process import serve
serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


class CompileProcess:
    """The process, from where it is asked.

    >>> CompileProcess().is_running
    False
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._niceness = 0

    @property
    def is_running(self) -> bool:
        """Whether it is at work."""
        return self._process is not None and self._process.poll() is None

    def ask(self, source: StepSource) -> None:
        """Have programs compiled that are not on disk yet.

        Raises:
            CompilerError: where there is no compiler, or nothing that it makes would be kept.
        """
        if os.getpid() != self._owner:  # in a fork of the process that asked before
            self.__init__()  # type: ignore[misc]
        name = source.digest()
        if _mark(name).exists():
            return
        _check_possible()
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rnn-blocks-compile-"))
            Finalize(None, self.stop, exitpriority=100)  # at the end of this process, whichever way it was started
        job = self._folder / f"{name}.job"
        if not job.exists():
            unfinished = job.with_suffix(".unfinished")
            unfinished.write_bytes(source.packed())
            unfinished.replace(job)
        if _first_rank_here():  # which is asked for the same, and one process is enough
            self._start(NICENESS)

    def wait(self, source: StepSource) -> None:
        """Until programs that were asked for are on disk.

        Raises:
            CompilerError: where they cannot be compiled, or that takes too long.
        """
        name, mark = source.digest(), _mark(source.digest())
        begin, starts = time.monotonic(), 0
        while not mark.exists():
            if self._folder is None:
                raise CompilerError("what was asked for has gone from the disk")
            if (failed := self._folder / f"{name}.failed").exists():
                raise CompilerError(failed.read_text(encoding="utf-8"))
            if not self.is_running and not mark.exists() and not failed.exists():
                if starts == 2 or not (self._folder / f"{name}.job").exists():
                    code = None if self._process is None else self._process.returncode
                    raise CompilerError(f"the process that compiles a step has ended with code {code}")
                starts += 1
                self._start(0)
            elif self._niceness and time.monotonic() - begin > PATIENCE:  # few may raise the priority of what runs
                warnings.warn("the training waits until its steps are compiled, on a busy machine", stacklevel=2)
                self._end()
                self._start(0)
            if time.monotonic() - begin > LONGEST:
                raise CompilerError(f"compiling a step takes longer than {LONGEST:.0f} s")
            time.sleep(0.02)

    def _start(self, niceness: int) -> None:
        if self.is_running:  # it looks for work until there is none
            return
        self._niceness = niceness
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(self._folder), str(niceness), str(os.getpid()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for this process, which then stops that one and its compiler
            )
        except OSError as error:
            raise CompilerError(f"no process that compiles can be started: {error}") from error

    def stop(self) -> None:
        """End it, whatever it is doing, and what it was asked."""
        if os.getpid() != self._owner:  # in a fork
            return
        self._end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)  # at which a C++ compiler takes away what it has half written
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _first_rank_here() -> bool:
    if (rank := os.environ.get("LOCAL_RANK")) is not None:
        return rank == "0"
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def _check_possible() -> None:
    if shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is None:
        raise CompilerError("there is no C++ compiler")
    from torch._inductor import config

    if config.force_disable_caches:
        raise CompilerError("torch's compiler is told to keep nothing on disk")


def _mark(name: str) -> Path:
    """What says that programs are on disk: with them, so that it goes when they go."""
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        return Path(cache_dir()) / "rnn_blocks" / name
    except Exception as error:
        raise CompilerError(f"torch's compiler has no place on disk: {error}") from error


def serve(folder: str, niceness: int, owner: int) -> None:
    """The process itself: compile what lies in a folder until it is empty, or until the process that asked has gone."""
    Thread(target=_end_with, args=(owner, folder), daemon=True).start()
    os.nice(niceness)
    torch.set_num_threads(1)
    while jobs := sorted(Path(folder).glob("*.job")):
        for job in jobs:
            try:
                source = unpacked(job.read_bytes())
                source.surroundings.restore()
                compile_step(source, one_thread=True)
                mark = _mark(job.stem)
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
            except Exception as error:  # told to who asked
                unfinished = job.with_suffix(".telling")
                unfinished.write_text(str(error), encoding="utf-8")
                unfinished.replace(job.with_suffix(".failed"))
            job.unlink()


def _end_with(owner: int, folder: str) -> None:
    """Wait for the end of the process that asked, which a kill keeps from telling this one, and end."""
    while os.getppid() == owner:
        time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpgid(0), signal.SIGTERM)  # this process, and the compiler that it started
