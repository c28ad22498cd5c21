"""Formulas on one number or on tensors alike: torch takes microseconds for what Python does in tens of nanoseconds.

A number here is a tensor of any shape or Python's own. Operators do both; the functions are what operators do not, with
IEEE's answers where Python has errors.
"""

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

Number: TypeAlias = Any
"""A tensor, or a ``float``, ``int`` or ``bool``."""


def is_one_on_a_cpu(norm: Tensor) -> bool:
    """Whether it is a single number that can be read without waiting for a device.

    >>> is_one_on_a_cpu(torch.tensor(1.0)), is_one_on_a_cpu(torch.ones(1))
    (True, False)
    """
    return norm.ndim == 0 and is_on_a_cpu(norm)


def is_on_a_cpu(tensor: Tensor) -> bool:
    """Whether it can be read without waiting for a device.

    >>> is_on_a_cpu(torch.ones(2))
    True
    """
    return tensor.device.type == "cpu"


def in_numbers(value: Any) -> Any:
    """A tensor as a number, or as a list of them; anything else as it is.

    >>> in_numbers(torch.tensor([1.0, 2.0])), in_numbers(torch.tensor(3)), in_numbers(None)
    ([1.0, 2.0], 3, None)
    """
    return value.tolist() if isinstance(value, Tensor) else value


def in_tensors(value: Number, device: torch.device | str = "cpu") -> Tensor:
    """A number or a list of them as a tensor of float64, or of int64 where they are whole; a tensor as it is.

    >>> in_tensors([1.0, 2.0]), in_tensors(3)
    (tensor([1., 2.], dtype=torch.float64), tensor(3))
    """
    if isinstance(value, Tensor):
        return value
    first = value[0] if isinstance(value, list) else value
    return torch.tensor(value, dtype=torch.float64 if isinstance(first, float) else torch.int64, device=device)


def where(condition: Number, yes: Number, no: Number) -> Number:
    """One of two numbers, each tensors or not.

    >>> where(True, 1.0, 2.0), where(torch.tensor([True, False]), torch.tensor(1.0), 2.0)
    (1.0, tensor([1., 2.]))
    """
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def minimum(first: Number, second: Number) -> Number:
    """The lower of two, NaN where either is.

    >>> minimum(1.0, math.nan), minimum(2.0, 1.0)
    (nan, 1.0)
    """
    if isinstance(first, Tensor):
        return torch.minimum(first, second)
    return first if first <= second or first != first else second


def maximum(first: Number, second: Number) -> Number:
    """The higher of two, NaN where either is.

    >>> maximum(1.0, math.nan), maximum(2.0, 1.0)
    (nan, 2.0)
    """
    if isinstance(first, Tensor):
        return torch.maximum(first, second)
    return first if first >= second or first != first else second


def clamped(value: Number, low: float = -math.inf, high: float = math.inf) -> Number:
    """Not below one constant and not above another; NaN stays.

    >>> clamped(3.0, high=2.0), clamped(torch.tensor(3), high=2)
    (2.0, tensor(2))
    """
    if isinstance(value, Tensor):
        return value.clamp(low if low > -math.inf else None, high if high < math.inf else None)
    return low if value < low else high if value > high else value


def divided(value: Number, by: Number) -> Number:
    """A quotient, of nothing by nothing NaN.

    >>> divided(-1.0, 0.0), divided(0.0, 0.0), divided(3.0, 2.0)
    (-inf, nan, 1.5)
    """
    if isinstance(value, Tensor) or isinstance(by, Tensor) or by != 0:
        return value / by
    return math.nan if value == 0 or value != value else math.copysign(math.inf, value) * math.copysign(1.0, by)


def root(value: Number) -> Number:
    """The square root, NaN below 0.

    >>> root(4.0), root(-1.0)
    (2.0, nan)
    """
    if isinstance(value, Tensor):
        return value.sqrt()
    return math.sqrt(value) if value >= 0 else math.nan


def logarithm(value: Number) -> Number:
    """The natural logarithm, of 0 minus infinity and below it NaN.

    >>> logarithm(1.0), logarithm(0.0), logarithm(-1.0)
    (0.0, -inf, nan)
    """
    if isinstance(value, Tensor):
        return value.log()
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def exponential(value: Number) -> Number:
    """The exponential, infinite where that is beyond all numbers.

    >>> exponential(0.0), exponential(1e4)
    (1.0, inf)
    """
    if isinstance(value, Tensor):
        return value.exp()
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def lower_median(values: Number, filled: Number) -> Number:
    """The lower median of the `filled` lowest numbers of a list or along a tensor's first dimension.

    >>> lower_median([3.0, math.inf, 1.0, 2.0], 3), lower_median(torch.tensor([3.0, math.inf, 1.0]), torch.tensor(2))
    (2.0, tensor(1.))
    """
    if isinstance(values, Tensor):
        if is_on_a_cpu(values) and bool((filled >= len(values)).all()):  # in half of the time
            return values.median(dim=0).values
        middle = ((filled - 1) // 2).clamp(min=0).unsqueeze(0)
        return values.sort(dim=0).values.gather(0, middle).squeeze(0)
    return sorted(values)[max(filled - 1, 0) // 2]
