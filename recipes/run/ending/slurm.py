"""SLURM runs a job again that is warned before its time is up."""

import subprocess
import sys

from rnn_blocks.recipes.run.ending.signals import job_id
from rnn_blocks.recipes.run.ranks.place import is_first_rank


def requeue() -> None:
    """Ask SLURM to run the job again; of its tasks the first one does."""
    job = job_id()
    if job is None or not is_first_rank():
        return
    try:
        code = subprocess.call(["scontrol", "requeue", job])
        told = f"SLURM runs job {job} again" if code == 0 else f"scontrol requeue {job} ended with exit code {code}"
    except OSError as error:
        told = f"job {job} is not run again: scontrol: {error.strerror}"
    sys.stderr.write(f"{told}\n")
