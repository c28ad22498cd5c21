"""A program in two processes on one machine."""

import os
import subprocess
import sys
from pathlib import Path

# Now and then gloo's threads abort a process whose interpreter lets go of them while the other rank still listens.
LEAVE_TOGETHER = """
import os
import torch.distributed

if torch.distributed.is_initialized():
    torch.distributed.barrier()
os._exit(0)
"""


def run_two_ranks(program: str, folder: Path) -> None:
    """Run `program` in two processes joined by gloo, started in `folder`, whose modules it can import."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    result = subprocess.run(
        [*launch, sys.executable, "-c", program + LEAVE_TOGETHER],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},  # of what pytest imports
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-12000:]
