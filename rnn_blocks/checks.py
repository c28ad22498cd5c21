"""Arguments that are refused by their name, before anything is made of them."""

import operator
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
