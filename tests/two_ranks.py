"""A program in two processes on one machine."""

import os
import subprocess
import sys
import tempfile

# Now and then gloo's threads abort a process whose interpreter lets go of them while the other rank still listens.
LEAVE_TOGETHER = """
import os
import torch.distributed

if torch.distributed.is_initialized():
    torch.distributed.barrier()
os._exit(0)
"""


def run_two_ranks(program: str) -> None:
    """Run `program` in two processes joined by gloo; it can import what its test can."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # in the checkout rnn_blocks/, without callbacks/, would be found first
        result = subprocess.run(
            [*launch, sys.executable, "-c", program + LEAVE_TOGETHER],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },  # of what pytest imports
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert result.returncode == 0, result.stderr[-12000:]
