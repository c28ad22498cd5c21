"""Every cell there is, plain and wrapped, by name: what the properties that hold for all cells are tested on."""

from collections.abc import Iterable
from typing import Any

import oracles
import pytest
import zoo_gated
import zoo_linear
import zoo_wrappers

CELLS = {
    **oracles.CELLS,
    "own": oracles.LeakySum,
    **zoo_gated.CELLS,
    **zoo_linear.CELLS,
    **zoo_wrappers.CELLS,
}
SOME = [  # native, recorded, scanned, with parts, wrapped, of somebody's own
    *("elman-tanh", "lstm", "gru", "own", "layer-norm-lstm", "rhn-3", "min-gru", "lru"),
    *("leaky-gru-spectrum", "skip-lstm", "clockwork-gru", "deep-transition", "learned-state-lstm"),
]
PLAIN = [name for name in CELLS if name not in zoo_wrappers.CELLS]


def rest_is_slow(names: Iterable[str], fast: Iterable[str]) -> list[Any]:
    """All names to parametrise a test with; those that are not among ``fast`` run with ``pytest -m slow``."""
    chosen = set(fast)
    assert chosen <= set(names), chosen - set(names)
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]
