"""The parameters of a sweep file, in Optuna's words."""

import math
from collections.abc import Collection
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from rnn_blocks.recipes import InputError

RANGES = ("int_uniform", "uniform", "log_uniform", "log_uniform_values", "inv_log_uniform", "inv_log_uniform_values")
STEPPED = ("q_uniform", "q_log_uniform", "q_log_uniform_values")
KEYS: dict[str, tuple[str, ...]] = {"constant": ("value",), "categorical": ("values",)}  # by Weights & Biases' names
KEYS |= dict.fromkeys(RANGES, ("min", "max")) | dict.fromkeys(STEPPED, ("min", "max", "q"))


def suggest(trial: BaseTrial, name: str, parameter: dict[str, Any]) -> Any:
    """The value of a parameter in a trial, chosen now if it is not yet.

    >>> from optuna.trial import FixedTrial
    >>> suggest(FixedTrial({"lr": 0.0123456789}), "lr", read_parameter("mine.yaml", {"min": 0.001, "max": 0.1}))
    0.0123457
    """
    kept = distribution(parameter)
    if isinstance(kept, CategoricalDistribution):
        return parameter["values"][kept.choices.index(trial.suggest_categorical(name, kept.choices))]
    if isinstance(kept, IntDistribution):
        return trial.suggest_int(name, kept.low, kept.high)
    value = trial.suggest_float(name, kept.low, kept.high, step=kept.step, log=kept.log)
    if "q" not in parameter:
        return float(f"{value:.6g}")
    value = round(value / parameter["q"]) * parameter["q"]
    return value if isinstance(value, int) else float(f"{value:.12g}")


def distribution(parameter: dict[str, Any]) -> CategoricalDistribution | FloatDistribution | IntDistribution:
    """What a parameter is drawn from. Optuna knows a choice that is no number as it is spelled."""
    kind = parameter["distribution"]
    if "values" in parameter:
        return CategoricalDistribution([one if _is_number(one) else spelled(one) for one in parameter["values"]])
    low, high, q = parameter["min"], parameter["max"], parameter.get("q")
    if kind == "int_uniform":
        return IntDistribution(low, high)
    if kind in ("log_uniform", "q_log_uniform"):
        low, high = math.exp(low), math.exp(high)
    if kind == "inv_log_uniform":
        low, high = math.exp(-high), math.exp(-low)
    if q is not None:  # from its first multiple to its last, whatever the last digit of a division is
        low, high = math.ceil(low / q - 1e-9) * q, math.floor(high / q + 1e-9) * q
        low, high = float(f"{low:.12g}"), float(f"{high:.12g}")
    return FloatDistribution(low, high, step=q if kind == "q_uniform" else None, log="log" in kind)


def spelled(value: Any) -> str:
    """A value on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def read_parameter(where: str, given: Any) -> dict[str, Any]:
    """A parameter of a sweep file with all that it leaves out; a constant has one of ``values``.

    Raises:
        InputError: saying where its values cannot be chosen, and what is valid.
    """
    if not isinstance(given, dict):
        raise InputError(f"{where}: give value:, values: or min: and max:, got {given!r}")
    whole = all(isinstance(given.get(bound), int) for bound in ("min", "max"))
    told = [kind for kind, keys in KEYS.items() if set(keys) & {"value", "values"} & set(given)]
    kind = given.get("distribution", (*told, "int_uniform" if whole else "uniform")[0])
    check_keys(f"{where}: distribution", [kind], KEYS)
    check_keys(where, given, ("distribution", *KEYS[kind]))
    parameter = {"distribution": kind, **({"q": 1} if kind in STEPPED else {}), **given}
    for key in KEYS[kind]:
        if key not in parameter:
            raise InputError(f"{where}: a {kind} parameter needs {key}:")
        value = parameter[key]
        if key == "values" and not (isinstance(value, list) and value):
            raise InputError(f"{where}: values must be a list of at least one value, got {value!r}")
        if key in ("min", "max", "q") and not _is_number(value):  # YAML reads 1e-3 as a text, 1.0e-3 as a number
            raise InputError(f"{where}: {key} must be a number, such as 0.001 or 1.0e-3, got {value!r}")
        if kind == "int_uniform" and not isinstance(value, int):
            raise InputError(f"{where}: {key} of an int_uniform parameter must be a whole number, got {value!r}")
    if "value" in parameter:
        parameter["values"] = [parameter.pop("value")]
    try:
        distribution(parameter)
    except (ValueError, ArithmeticError) as error:
        raise InputError(f"{where}: a {kind} parameter of {given}: {error}") from error
    return parameter


def check_keys(where: str, given: Collection[Any], valid: Collection[str]) -> None:
    """Refuse by name what is not known, or known to Weights & Biases alone."""
    for key in given:
        if key not in valid:
            raise InputError(f"{where}: {key} is not taken here; valid are {', '.join(valid)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
