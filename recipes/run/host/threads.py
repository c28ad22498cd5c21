"""Threads of the CPU: how they wait for each other, and how many there may be. Nothing here imports torch at once."""

import math
import os
import sys
from pathlib import Path

COUNT = "OMP_NUM_THREADS"
WAITING = {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": "PASSIVE"}  # GNU's own is read first where it is GNU's OpenMP
_ASKED = (*WAITING, "KMP_BLOCKTIME")


def wait_quietly() -> None:
    """Let threads of OpenMP sleep soon where they wait for each other; to be called before torch is imported.

    As they come, GNU's spin for milliseconds. A recurrent step is hundreds of small operators, each of which waits for
    all threads: where another program has one of the cores, most of the time is spent spinning. What the user's
    environment says of waiting is left as it is.

    >>> wait_quietly()
    """
    if not any(name in os.environ for name in _ASKED) and "torch" not in sys.modules:
        os.environ.update(WAITING)  # for this process, whose OpenMP reads it once, and those that it starts


def usable_cores() -> int:
    """How many cores this process may keep busy: by its affinity, and by the quota of its container.

    >>> 1 <= usable_cores() <= os.cpu_count()
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, quota())))


def quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """The cores' worth of time that control groups leave this process; infinite where they set no limit.

    Args:
        proc: what tells the process's groups.
        root: where they are mounted, of version 1 or 2.

    >>> quota() > 0
    True
    """
    try:
        lines = [line.strip().split(":", 2) for line in proc.read_text(encoding="utf-8").splitlines()]
    except OSError:  # not Linux
        return math.inf
    limits = [math.inf]
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / controllers if controllers else root
        group = Path(path.lstrip("/"))
        # The groups above hold too; in a container its own is mounted as the root, whatever its path is outside.
        for folder in {mounted / parent for parent in (group, *group.parents)}:
            limits.append(_limit(folder))
    return min(limits)


def _limit(folder: Path) -> float:
    try:
        if (folder / "cpu.max").is_file():
            allowed, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            allowed, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        return float(allowed) / float(period) if float(allowed) > 0 else math.inf
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return math.inf


def limit_threads() -> None:
    """Give torch no more threads than the process has cores, unless the environment says how many.

    >>> limit_threads()
    """
    import torch

    if COUNT not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())
