"""A run's folder: where everything it writes lies, and nothing of any other run."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from shlex import quote

from filelock import FileLock, Timeout

from rnn_blocks.recipes import InputError

ENVIRONMENT = "RNN_BLOCKS_RUN_FOLDER"  # tells the processes that a run starts for its other ranks where it lies
LAST, BEST, AVERAGED = "last", "best", "averaged"
OUTPUT_DIR = "runs"  # that all runs go into, a folder a recipe
ELSEWHERE = (
    "a training goes on in its run's folder: make it writable, or copy it elsewhere and give --ckpt_path "
    "COPY/checkpoints/last.ckpt"
)


@dataclass(frozen=True)
class RunFolder:
    """The places in a run's folder.

    >>> RunFolder(Path("runs/language-model/2026-01-31_12-00-00")).checkpoint("last").as_posix()
    'runs/language-model/2026-01-31_12-00-00/checkpoints/last.ckpt'
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def kept(self) -> Path:
        """The folder of checkpoints that are kept to be averaged."""
        return self.checkpoints / "kept"

    @property
    def metrics(self) -> Path:
        """All logged metrics."""
        return self.path / "metrics.csv"

    @property
    def plots(self) -> Path:
        """The folder of plots."""
        return self.path / "plots"

    @property
    def samples(self) -> Path:
        """Text that the model wrote at each validation."""
        return self.path / "samples.txt"

    def checkpoint(self, name: str) -> Path:
        """The checkpoint called ``last``, ``best`` or ``averaged``."""
        return self.checkpoints / f"{name}.ckpt"

    def is_begun(self) -> bool:
        """Whether a training made a step here that it wrote of.

        >>> RunFolder(Path("no-such-folder")).is_begun()
        False
        """
        return self.metrics.is_file() or any(self.checkpoints.glob("*.ckpt"))

    def written_at(self) -> int:
        """When a training last wrote here, in nanoseconds.

        >>> RunFolder(Path("no-such-folder")).written_at()
        0
        """
        places = [self.checkpoints, *self.checkpoints.glob("*.ckpt"), self.config, self.metrics]
        return max((path.stat().st_mtime_ns for path in places if path.exists()), default=0)

    def lock(self) -> FileLock:
        """Keep every other process out of this folder until this one ends.

        Raises:
            InputError: where another process is writing into it, or it cannot be written to.
        """
        try:
            return lock_folder(self.path, "another process is training in this folder")
        except OSError as error:
            raise InputError(f"{self.path}: cannot write here ({error.strerror}); {ELSEWHERE}") from error

    def check_writable(self) -> None:
        """Make sure that a training can go on here.

        Raises:
            InputError: naming the first folder or file that cannot be written to.

        >>> RunFolder(Path("no-such-folder")).check_writable()
        """
        folders = [self.path, self.checkpoints, self.kept, self.plots, self.path / "wandb", self.path / "tensorboard"]
        by_user = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
        for path in [*folders, self.metrics, self.samples]:
            if path.exists() and not os.access(path, os.W_OK, **by_user):
                raise InputError(f"{path}: cannot be written to; {ELSEWHERE}")

    def leave(self, lock: FileLock) -> None:
        """Let other processes in again; a folder that nothing was written to goes."""
        empty = {path.name for path in self.path.iterdir()} <= {".lock", "checkpoints", "job.json"} and not any(
            self.checkpoints.iterdir()
        )
        if empty:
            shutil.rmtree(self.path)
        lock.release()


def lock_folder(folder: Path, busy: str, timeout: float = 0) -> FileLock:
    """Keep every other process out of a folder until this one ends.

    Args:
        folder: that is there.
        busy: what is said where another process is in it.
        timeout: seconds to wait for it.

    Raises:
        InputError: where another process is.
        OSError: where it cannot be written to.

    >>> import tempfile
    >>> lock_folder(Path(tempfile.mkdtemp()), "busy").is_locked
    True
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise InputError(f"{folder}: {busy}") from error
    return lock


@contextmanager
def own_folder(folder: Path, busy: str, timeout: float = 0) -> Iterator[None]:
    """Make a folder below the output folder if it is not there, and keep every other process out of it meanwhile.

    Args:
        folder: which.
        busy: what is said where another process is in it.
        timeout: seconds to wait for it.

    Raises:
        InputError: where another process is, or where it cannot be made or written to.

    >>> import tempfile
    >>> with own_folder(Path(tempfile.mkdtemp()) / "sweep", "busy"):
    ...     pass
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder, busy, timeout)
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror}); give another --output_dir") from error
    try:
        yield
    finally:
        lock.release()


def new_run_folder(parent: Path, name: str | None = None) -> RunFolder:
    """Make a folder that no run has written to: ``parent/DATE_TIME[-name]``.

    Raises:
        InputError: where it cannot be made or written to.

    >>> import tempfile
    >>> folder = new_run_folder(Path(tempfile.mkdtemp()), "small")
    >>> folder.path.name.endswith("-small"), folder.checkpoints.is_dir()
    (True, True)
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    stem = f"{stamp}-{name}" if name else stamp
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            break
        folder = RunFolder(path)
        folder.checkpoints.mkdir()
    except OSError as error:
        raise InputError(
            f"{parent}: cannot write here ({error.strerror}); give another folder by --output_dir"
        ) from error
    return folder


def find_checkpoint(
    given: str,
    parent: Path,
    project: str | None = None,
    *,
    there: Sequence[RunFolder] | None = None,
    option: str = "--ckpt_path ",
) -> Path:
    """The file that ``--ckpt_path`` means: a path, a run's folder, a name (``best``) of the newest run's, an artifact.

    Args:
        given: what the user says.
        parent: the folder of the runs.
        project: of Weights & Biases, of an artifact that says none.
        there: the runs to choose from; by default those in ``parent``.
        option: that it was given by.

    Raises:
        InputError: where there is no such file, naming the runs that there are.

    >>> find_checkpoint("last", Path("no-such-folder"))
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: --ckpt_path last: there is no run in no-such-folder yet
    """
    if given.startswith("artifact:"):
        from rnn_blocks.recipes.run.weights_and_biases.fetch import fetch_model
        from rnn_blocks.recipes.run.weights_and_biases.mode import wandb_project  # and with them Lightning

        return fetch_model(given, wandb_project(project), parent)
    there = runs(parent) if there is None else there
    if given in (LAST, BEST, AVERAGED):
        return newest_checkpoint(given, there, str(parent), option)
    path = Path(given)
    if path.is_dir():
        for name in (BEST, LAST):
            if (inside := RunFolder(path).checkpoint(name)).is_file():
                return inside
        raise InputError(f"{option}{given}: this folder holds no checkpoints/best.ckpt or checkpoints/last.ckpt")
    if not path.is_file():
        newest = [str(run.path) for run in _begun(there)[-3:]]
        raise InputError(
            f"{option}{given}: no such file; valid are a checkpoint, a run's folder, 'last', 'best', 'averaged', "
            f"and artifact:NAME:ALIAS (newest runs: {', '.join(newest) or 'none'})"
        )
    return path


def newest_checkpoint(name: str, there: Sequence[RunFolder], place: str, option: str = "--ckpt_path ") -> Path:
    """The checkpoint ``name`` of the run that was written to last.

    Args:
        name: ``"last"``, ``"best"`` or ``"averaged"``.
        there: the runs to choose from; a folder in which no training made a step does not count.
        place: where they lie, in words.
        option: that the name was given by.

    Raises:
        InputError: where that run has none, naming what it has, and another that has one.

    >>> newest_checkpoint("best", [], "runs")
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: --ckpt_path best: there is no run in runs yet
    """
    if not there:
        raise InputError(f"{option}{name}: there is no run in {place} yet")
    begun = _begun(there)
    having = [path for run in begun if (path := run.checkpoint(name)).is_file()]
    if having and having[-1] == begun[-1].checkpoint(name):
        return having[-1]
    last = begun[-1].checkpoint(LAST) if begun else None
    hints = [f"it has a last one: {option}{quote(str(last))}"] if last is not None and last.is_file() else []
    hints += [f"another has one: {option}{quote(str(having[-1]))}"] if having else []
    which = f"the newest run, {begun[-1].path}," if begun else f"no run in {place}"
    has = f"has no checkpoints/{name}.ckpt" if begun else f"has a checkpoints/{name}.ckpt yet"
    raise InputError("; ".join([f"{option}{name}: {which} {has}", *hints]))


def _begun(there: Sequence[RunFolder]) -> list[RunFolder]:
    """Those in which a training made a step, the one that was written to last at the end."""
    return sorted((run for run in there if run.is_begun()), key=RunFolder.written_at)


def runs(parent: Path) -> list[RunFolder]:
    """The runs in ``parent``, oldest first.

    >>> runs(Path("no-such-folder"))
    []
    """
    if not parent.is_dir():
        return []
    return [RunFolder(path) for path in sorted(parent.iterdir()) if (path / "checkpoints").is_dir()]


def run_of_checkpoint(checkpoint: Path) -> RunFolder | None:
    """The run whose folder a checkpoint lies in, if it lies in one.

    >>> run_of_checkpoint(Path("elsewhere/model.ckpt")) is None
    True
    """
    for path in (checkpoint.absolute(), checkpoint.resolve()):  # a link to it, or to the folder of a run's checkpoints
        within = path.parent
        if within.name == RunFolder(within).kept.name:
            within = within.parent
        folder = RunFolder(within.parent)
        if folder.checkpoints == within and folder.config.is_file():
            return folder
    return None


def inherited_run_folder() -> RunFolder | None:
    """The folder that the process which started this rank made, if this is a rank that was started so.

    >>> inherited_run_folder() is None
    True
    """
    path = os.environ.get(ENVIRONMENT)
    return RunFolder(Path(path)) if path and os.environ.get("LOCAL_RANK", "0") != "0" else None


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place and move it there: whoever reads it finds it as it was, or all of the new.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "table.md"); write_whole(path, "| a |"); path.read_text()
    '| a |'
    """
    partial = path.with_name(f".{path.name}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
