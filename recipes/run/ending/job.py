"""A job whose command is started again goes on with the run that it began."""

import json
import os
from pathlib import Path

from rnn_blocks.recipes.run.ending.signals import job_id
from rnn_blocks.recipes.run.folder import LAST, RunFolder, runs, write_whole

FILE = "job.json"


def torchrun_job() -> str | None:
    """The ``--rdzv-id`` that torchrun was given: its name for the job, on every host and at every restart.

    >>> torchrun_job() is None
    True
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # what torchrun says where none was given
    return None if name == "none" else f"torchrun {name}"


def remember_job(folder: RunFolder, args: list[str]) -> None:
    """Keep in a run's folder which job and command line it is of, if it is of a job."""
    if job := torchrun_job() or job_id():
        write_whole(folder.path / FILE, json.dumps({"job": job, "args": args}))


def begun_run(parent: Path, args: list[str]) -> RunFolder | None:
    """The run that this job's same command began before, if it got as far as a checkpoint.

    A job of SLURM's may give the same command twice: it goes on where SLURM has run the job again. With torchrun it is
    the same command with the same ``--rdzv-id``, for of those that are started again not all are told.

    >>> begun_run(Path("no-such-folder"), []) is None
    True
    """
    job = torchrun_job() or (job_id() if _run_again_by_slurm() else None)
    if job is None:
        return None
    for run in reversed(runs(parent)):
        try:
            told = json.loads((run.path / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if told == {"job": job, "args": args} and run.checkpoint(LAST).is_file():
            return run
    return None


def _run_again_by_slurm() -> bool:
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return count.isdigit() and int(count) > 0
