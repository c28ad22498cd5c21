"""The place of this process among those of a training, as its launcher tells it."""

import os
import socket

from lightning.pytorch.utilities import rank_zero_only


def note_rank() -> None:
    """Let Lightning know which process is the first before there is a Trainer, which then gives each its number.

    Lightning reads the rank when it is imported, which may be before a launcher sets it. And where it starts the ranks
    of a machine itself, the first process of every machine takes itself for the first of all.

    >>> note_rank()
    """
    if getattr(rank_zero_only, "rank", 0) == 0:
        node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
        rank_zero_only.rank = int(os.environ.get("RANK", node))  # type: ignore[attr-defined]


def is_first_rank() -> bool:
    """Whether this process writes for all.

    >>> is_first_rank()
    True
    """
    return getattr(rank_zero_only, "rank", 0) == 0


def on_this_host() -> str:
    """What is said behind a fault that a rank other than the first meets; nothing on the first.

    >>> on_this_host()
    ''
    """
    if is_first_rank():
        return ""
    return f" (on host {socket.gethostname()}; to go on with a run, every host must find it in its --output_dir)"
