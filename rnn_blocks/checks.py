"""Arguments refused by their name before anything is made of them, and warnings at the line that gives them."""

import math
import operator
import sys
import warnings
from typing import Any


def whole(name: str, value: Any, least: int = 1, unit: str = "") -> int:
    """A whole number as an ``int``; numpy's and one in a tensor are taken, ``2.0`` is not.

    Args:
        name: of the argument.
        value: that was given.
        least: it may be.
        unit: said after that number, such as ``" steps"``.

    Raises:
        ValueError: where it is another thing, or below that.

    >>> whole("rounds", 5, 0)
    5
    >>> whole("delay", 2.5, 2, " steps")
    Traceback (most recent call last):
    ...
    ValueError: delay must be a whole number, at least 2 steps, got 2.5
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, at least {least}{unit}, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}{unit}, got {value}")
    return number


def number(
    name: str,
    value: Any,
    low: float = 0.0,
    high: float = math.inf,
    *,
    above: bool = False,
    up_to: bool = False,
) -> float:
    """A finite number in a range as a ``float``.

    Args:
        name: of the argument.
        value: that was given.
        low: the least that it may be.
        high: what it must be below.
        above: whether it must be above ``low``, too.
        up_to: whether it may be ``high``, too.

    Raises:
        ValueError: where it is another thing, or out of the range.

    >>> number("label_smoothing", 0, high=1)
    0.0
    >>> number("label_smoothing", 1, high=1)
    Traceback (most recent call last):
    ...
    ValueError: label_smoothing must be at least 0 and below 1, got 1
    """
    if is_within(value, low, high, above=above, up_to=up_to):
        return float(value)
    within = f"{'above' if above else 'at least'} {low:g}"
    within += "" if high == math.inf else f" and {'at most' if up_to else 'below'} {high:g}"
    try:
        finite = "" if math.isfinite(value) or high < math.inf else ", a finite number"
    except TypeError:
        raise ValueError(f"{name} must be a number, {within}, got {value!r}") from None
    raise ValueError(f"{name} must be {within}{finite}, got {value}")


def is_within(
    value: Any, low: float = 0.0, high: float = math.inf, *, above: bool = False, up_to: bool = False
) -> bool:
    """Whether a value is a number, and one in a range, for arguments whose errors say more than `number`'s.

    Args:
        value: that was given.
        low: the least that it may be.
        high: what it must be below.
        above: whether it must be above ``low``, too.
        up_to: whether it may be ``high``, too.

    >>> [is_within(value, high=1) for value in (0, 0.5, 1, float("nan"), "0.5", None)]
    [True, True, False, False, False, False]
    """
    try:
        math.isfinite(value)
    except TypeError:
        return False
    return bool((low < value if above else low <= value) and (value <= high if up_to else value < high))


def warn(message: str) -> None:
    """Warn at the line of the user's that led here: the nearest that is not of this package.

    >>> with warnings.catch_warnings(record=True) as told:
    ...     warnings.simplefilter("always")
    ...     warn("a dropout that does nothing")
    >>> [str(one.message) for one in told]
    ['a dropout that does nothing']
    """
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
