"""Signals to this process at a place that a test chooses."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
BOTH = pytest.mark.parametrize("number", CODES, ids=["SIGTERM", "SIGINT"])


def before(owner: Any, method: str, happens: Callable[[Any], bool], number: int) -> pytest.MonkeyPatch:
    """A signal to this process as a method is called, the first time that a condition of its object holds."""
    patch, sound, sent = pytest.MonkeyPatch(), getattr(owner, method), list[int]()

    def called(*args: Any, **settings: Any) -> Any:
        if not sent and happens(args[0] if args else None):
            sent.append(number)
            os.kill(os.getpid(), number)
        return sound(*args, **settings)

    patch.setattr(owner, method, called)
    return patch
