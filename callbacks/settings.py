"""Settings as what they have to be, so that one that is something else is refused with all that are out of range."""

import math
import operator
from typing import Any


def number(value: Any) -> float:
    """The same number; NaN, which is in no range, if it is none.

    >>> number(5), number("5"), number(None)
    (5.0, nan, nan)
    """
    if isinstance(value, str | bytes):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def as_float(settings: object, *names: str) -> None:
    """Make numbers of a frozen dataclass floats, so that ``5`` and ``5.0`` are the same setting in a checkpoint.

    >>> from rnn_blocks.callbacks import Fixed
    >>> Fixed(5)
    Fixed(threshold=5.0)
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None:
            object.__setattr__(settings, name, float(value))


def whole_number(value: Any) -> float:
    """The same number; NaN, which is in no range, if it is no whole one.

    >>> whole_number(64), whole_number(64.0), whole_number("64")
    (64, nan, nan)
    """
    try:
        return operator.index(value)
    except TypeError:
        return math.nan
