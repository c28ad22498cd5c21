"""What a sweep draws a parameter's values from, by the names that Weights & Biases has for it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rnn_blocks.recipes import InputError

Draw = Callable[[np.random.Generator, dict[str, Any]], Any]


def _uniform(draw: np.random.Generator, of: dict[str, Any]) -> float:
    return float(draw.uniform(of["min"], of["max"]))


def _log_uniform_values(draw: np.random.Generator, of: dict[str, Any]) -> float:
    drawn = math.exp(draw.uniform(math.log(of["min"]), math.log(of["max"])))
    return float(min(max(drawn, of["min"]), of["max"]))


def _normal(draw: np.random.Generator, of: dict[str, Any]) -> float:
    return float(draw.normal(of.get("mu", 0.0), of.get("sigma", 1.0)))


def _quantized(draw: Draw) -> Draw:
    def quantized(generator: np.random.Generator, of: dict[str, Any]) -> float | int:
        step = of.get("q", 1)
        value = round(draw(generator, of) / step) * step
        return value if isinstance(step, int) else float(f"{value:.12g}")

    return quantized


DRAWS: dict[str, Draw] = {
    "constant": lambda draw, of: of["value"],
    "categorical": lambda draw, of: of["values"][int(draw.choice(len(of["values"]), p=of.get("probabilities")))],
    "int_uniform": lambda draw, of: int(draw.integers(of["min"], of["max"], endpoint=True)),
    "uniform": _uniform,
    "q_uniform": _quantized(_uniform),
    "log_uniform": lambda draw, of: math.exp(_uniform(draw, of)),
    "log_uniform_values": _log_uniform_values,
    "q_log_uniform_values": _quantized(_log_uniform_values),
    "normal": _normal,
    "q_normal": _quantized(_normal),
}
BOUNDED = ("int_uniform", "uniform", "q_uniform", "log_uniform", "log_uniform_values", "q_log_uniform_values")
KEYS = {"value", "values", "distribution", "min", "max", "mu", "sigma", "q", "probabilities"}


def distribution_of(parameter: dict[str, Any]) -> str:
    """The distribution of a parameter: the one it names, or the one that its other keys tell.

    >>> distribution_of({"values": [1, 2]}), distribution_of({"min": 0.0, "max": 1.0}), distribution_of({"value": 3})
    ('categorical', 'uniform', 'constant')
    """
    if "distribution" in parameter:
        return str(parameter["distribution"])
    if "values" in parameter:
        return "categorical"
    if "value" in parameter:
        return "constant"
    whole = all(isinstance(parameter.get(bound), int) for bound in ("min", "max"))
    return "int_uniform" if whole else "uniform"


def check_parameter(place: str, name: str, parameter: Any) -> None:
    """Make sure that a parameter's values can be drawn.

    Raises:
        InputError: naming the file, the parameter and the valid choices.

    >>> check_parameter("sweep.yaml", "model.dropout", {"min": 0.0, "max": 0.5})
    """
    where = f"{place}: parameters: {name}"
    if not isinstance(parameter, dict):
        raise InputError(f"{where}: give value:, values: or min: and max:, got {parameter!r}")
    if "parameters" in parameter:
        raise InputError(f"{where}: nested parameters are not taken: write the dotted name of the option instead")
    unknown = set(parameter) - KEYS
    if unknown:
        raise InputError(f"{where}: {', '.join(sorted(unknown))} is unknown; valid are {', '.join(sorted(KEYS))}")
    kind = distribution_of(parameter)
    if kind not in DRAWS:
        raise InputError(f"{where}: distribution {kind!r} is not taken; valid are {', '.join(DRAWS)}")
    needed = {"constant": ["value"], "categorical": ["values"]}.get(kind, ["min", "max"] if kind in BOUNDED else [])
    missing = [key for key in needed if key not in parameter]
    if missing:
        raise InputError(f"{where}: a {kind} parameter needs {' and '.join(f'{key}:' for key in missing)}")
    if kind == "categorical":
        values = parameter["values"]
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}: values must be a list of at least one value, got {values!r}")
        weights = parameter.get("probabilities")
        if weights is not None and (len(weights) != len(values) or abs(sum(weights) - 1) > 1e-6 or min(weights) < 0):
            raise InputError(f"{where}: probabilities must be {len(values)} that sum to 1, got {weights!r}")
    for key in ("min", "max", "mu", "sigma", "q"):
        value = parameter.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float):
            # YAML reads 1e-3 as a text, 1.0e-3 as a number
            raise InputError(f"{where}: {key} must be a number, such as 0.001 or 1.0e-3, got {value!r}")
    if kind in BOUNDED:
        low, high = parameter["min"], parameter["max"]
        if not low < high:
            raise InputError(f"{where}: min must be below max, got {low} and {high}")
        if kind.endswith("_values") and low <= 0:
            raise InputError(f"{where}: a {kind} parameter needs a min above 0, got {low}")
        if kind == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
            raise InputError(f"{where}: an int_uniform parameter needs whole numbers, got {low} and {high}")
    if parameter.get("q", 1) <= 0:
        raise InputError(f"{where}: q must be above 0, got {parameter['q']}")
