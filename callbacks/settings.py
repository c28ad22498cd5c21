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


def whole_number(value: Any) -> float:
    """The same number; NaN, which is in no range, if it is no whole one.

    >>> whole_number(64), whole_number(64.0), whole_number("64")
    (64, nan, nan)
    """
    try:
        return operator.index(value)
    except TypeError:
        return math.nan
