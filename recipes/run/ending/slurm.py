"""SLURM runs a job again that is warned before its time is up, and the job's training goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

from rnn_blocks.recipes.run.ending.signals import job_id
from rnn_blocks.recipes.run.folder import LAST, RunFolder, runs, write_whole

FILE = "slurm.json"


def requeue() -> None:
    """Ask SLURM to run the job again; of its tasks the first one does."""
    job = job_id()
    if job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return
    try:
        code = subprocess.call(["scontrol", "requeue", job])
        told = f"SLURM runs job {job} again" if code == 0 else f"scontrol requeue {job} ended with exit code {code}"
    except OSError as error:
        told = f"job {job} is not run again: scontrol: {error.strerror}"
    sys.stderr.write(f"{told}\n")


def remember_job(folder: RunFolder, args: list[str]) -> None:
    """Keep in a run's folder which job and command line it is of, if it is of a job."""
    if job := job_id():
        write_whole(folder.path / FILE, json.dumps({"job": job, "args": args}))


def requeued_run(parent: Path, args: list[str]) -> RunFolder | None:
    """The run that this job's same command began before SLURM ran the job again, if it got as far as a checkpoint.

    >>> requeued_run(Path("no-such-folder"), []) is None
    True
    """
    job = job_id()
    if job is None or not os.environ.get("SLURM_RESTART_COUNT", "0").isdigit():
        return None
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) < 1:
        return None
    for run in reversed(runs(parent)):
        try:
            told = json.loads((run.path / FILE).read_text())
        except (OSError, ValueError):
            continue
        if told == {"job": job, "args": args} and run.checkpoint(LAST).is_file():
            return run
    return None
