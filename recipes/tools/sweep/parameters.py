"""The parameters of a sweep file, in Optuna's words."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from rnn_blocks.recipes import InputError

RANGES = ("int_uniform", "uniform", "log_uniform", "log_uniform_values", "inv_log_uniform", "inv_log_uniform_values")
STEPPED = ("q_uniform", "q_log_uniform", "q_log_uniform_values")
KEYS: dict[str, tuple[str, ...]] = {"constant": ("value",), "categorical": ("values",)}  # by Weights & Biases' names
KEYS |= dict.fromkeys(RANGES, ("min", "max")) | dict.fromkeys(STEPPED, ("min", "max", "q"))


@dataclass(frozen=True)
class Parameter:
    """What a parameter's value is chosen from.

    >>> from optuna.trial import FixedTrial
    >>> read_parameter("mine.yaml", {"min": 0.001, "max": 0.1}).suggest(FixedTrial({"lr": 0.0123456789}), "lr")
    0.0123457
    """

    distribution: CategoricalDistribution | FloatDistribution | IntDistribution
    values: tuple[Any, ...] = ()  # of the choices; Optuna knows what is no number as it is spelled
    q: float | None = None  # what the values of a range are multiples of

    def suggest(self, trial: BaseTrial, name: str) -> Any:
        """The value in a trial, chosen now if it is not yet."""
        kept = self.distribution
        if isinstance(kept, CategoricalDistribution):
            return self.values[kept.choices.index(trial.suggest_categorical(name, kept.choices))]
        if isinstance(kept, IntDistribution):
            return trial.suggest_int(name, kept.low, kept.high)
        return self._rounded(trial.suggest_float(name, kept.low, kept.high, step=kept.step, log=kept.log))

    def examples(self) -> list[Any]:
        """The values, or the ends of the range."""
        if isinstance(self.distribution, CategoricalDistribution):
            return list(self.values)
        return [self._rounded(self.distribution.low), self._rounded(self.distribution.high)]

    def _rounded(self, value: float) -> float:
        if self.q is not None:
            value = round(value / self.q) * self.q
        return value if isinstance(value, int) else float(f"{value:.{6 if self.q is None else 12}g}")


def read_parameter(where: str, given: Any) -> Parameter:
    """A parameter of a sweep file.

    Raises:
        InputError: saying where, and what is valid.

    >>> read_parameter("mine.yaml", {"values": ["LSTM", True, None, 1]}).distribution.choices
    ('LSTM', 'true', 'null', 1)
    """
    if not isinstance(given, dict):
        raise InputError(f"{where}: give value:, values: or min: and max:, got {given!r}")
    if "parameters" in given:
        raise InputError(f"{where}: nested parameters are not taken: write the dotted name of the option instead")
    whole = all(isinstance(given.get(bound), int) for bound in ("min", "max"))
    told = [kind for key, kind in (("values", "categorical"), ("value", "constant")) if key in given]
    kind = given.get("distribution", [*told, "int_uniform" if whole else "uniform"][0])
    check_keys(f"{where}: distribution", [kind], KEYS)
    check_keys(where, given, ("distribution", *KEYS[kind]))
    for key in KEYS[kind]:
        if key not in given and key != "q":
            raise InputError(f"{where}: a {kind} parameter needs {key}:")
    if "min" in KEYS[kind]:
        return _range(where, kind, {"q": 1} | given if kind in STEPPED else given)
    values = given["values"] if kind == "categorical" else [given["value"]]
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}: values must be a list of at least one value, got {values!r}")
    return Parameter(CategoricalDistribution([v if _is_number(v) else spelled(v) for v in values]), tuple(values))


def check_keys(where: str, given: Collection[Any], valid: Collection[str]) -> None:
    """Refuse by name what is not known, or known to Weights & Biases alone.

    >>> check_keys("mine.yaml: distribution", ["normal"], ["uniform", "log_uniform"])
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: mine.yaml: distribution: normal is not taken here; valid are uniform, log_uniform
    """
    for key in given:
        if key not in valid:
            raise InputError(f"{where}: {key} is not taken here; valid are {', '.join(valid)}")


def spelled(value: Any) -> str:
    """A value on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _range(where: str, kind: str, given: dict[str, Any]) -> Parameter:
    for key in KEYS[kind]:
        if not _is_number(given[key]):  # YAML reads 1e-3 as a text, 1.0e-3 as a number
            raise InputError(f"{where}: {key} must be a number, such as 0.001 or 1.0e-3, got {given[key]!r}")
        if kind == "int_uniform" and not isinstance(given[key], int):
            raise InputError(f"{where}: {key} of an int_uniform parameter must be a whole number, got {given[key]!r}")
    low, high, q = given["min"], given["max"], given.get("q")
    if not low < high or (q is not None and q <= 0):
        raise InputError(f"{where}: min must be below max, and q above 0, got {given}")
    try:
        if kind == "int_uniform":
            return Parameter(IntDistribution(low, high))
        if kind in ("log_uniform", "q_log_uniform"):
            low, high = math.exp(low), math.exp(high)
        if kind == "inv_log_uniform":
            low, high = math.exp(-high), math.exp(-low)
        if q is not None:  # from its first multiple to its last, whatever the last digit of a division is
            low, high = math.ceil(low / q - 1e-9) * q, math.floor(high / q + 1e-9) * q
            low, high = float(f"{low:.12g}"), float(f"{high:.12g}")
        step = q if kind == "q_uniform" else None
        return Parameter(FloatDistribution(low, high, step=step, log="log" in kind), q=q)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: a {kind} parameter of {given}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
