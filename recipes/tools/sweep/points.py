"""The points of a sweep: one command line each."""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.tools.sweep.distributions import DRAWS, distribution_of
from rnn_blocks.recipes.tools.sweep.spec import Method, SweepSpec


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Args:
        values: of the parameters, by dotted name.
        args: of the recipe's ``fit``, without those that belong to the machine.

    >>> Point({"model.optimizer.init_args.lr": 0.1}, ("--model.optimizer.init_args.lr=0.1",)).folder_name[:7]
    'lr=0.1-'
    """

    values: dict[str, Any] = field(compare=False)
    args: tuple[str, ...]

    @property
    def folder_name(self) -> str:
        """The same for the same command line, whatever else is in the sweep."""
        told = ",".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in self.values.items())
        told = re.sub(r"[^\w.,=+-]", "_", told)[:80]
        return f"{told}-{hashlib.sha256(json.dumps(self.args).encode()).hexdigest()[:6]}"


def points_of(
    spec: SweepSpec, method: Method, *, count: int | None = None, seed: int = 1, options: tuple[str, ...] = ()
) -> list[Point]:
    """The points that a sweep visits, no command line twice.

    Args:
        spec: the sweep.
        method: ``"grid"`` visits every combination; ``"random"`` draws.
        count: at most so many; a random search needs it, here or as ``run_cap``.
        seed: of the draws. Point number i is the same for any count.
        options: arguments that every run gets after all others.

    Raises:
        InputError: where a grid has a parameter without a list of values, or a random search no number of runs.

    >>> from rnn_blocks.recipes.tools.sweep.spec import read_sweep, sweep_path
    >>> points = points_of(read_sweep(sweep_path("translation-default"), ["translation"]), "grid")
    >>> len(points), points[0].args[1]
    (9, '--model.lr_scheduler.init_args.max_lr=0.001')
    """
    count = count or spec.run_cap
    if method == "grid":
        chosen = _grid(spec)[:count]
    else:
        if count is None:
            raise InputError(f"{spec.name}: a random search needs --count (or run_cap in the file)")
        chosen = [_drawn(spec, np.random.default_rng([seed, index])) for index in range(count)]
    points = []
    for values in chosen:
        args = (*spec.before, *(f"--{name}={_spelled(value)}" for name, value in values.items()), *spec.after, *options)
        points.append(Point(values, args))
    return list({point.args: point for point in points}.values())


def points_to_check(points: list[Point], most: int = 12) -> list[Point]:
    """The first point, and those with a value that none before has: what the parser has to see before a run starts.

    >>> points_to_check([Point({"a": 1, "b": 1}, ()), Point({"a": 1, "b": 2}, ()), Point({"a": 1, "b": 2}, ("x",))])
    [Point(values={'a': 1, 'b': 1}, args=()), Point(values={'a': 1, 'b': 2}, args=())]
    """
    seen: set[tuple[str, str]] = set()
    chosen = []
    for point in points:
        own = {(name, repr(value)) for name, value in point.values.items()}
        if not own <= seen:
            chosen.append(point)
        seen |= own
    return chosen[:most]


def _grid(spec: SweepSpec) -> list[dict[str, Any]]:
    choices: list[list[Any]] = []
    for name, parameter in spec.parameters.items():
        kind = distribution_of(parameter)
        if kind not in ("constant", "categorical"):
            raise InputError(
                f"{spec.name}: parameters: {name}: a grid needs values: [...], this is a {kind} distribution; "
                "give values, or --method random --count N"
            )
        choices.append([parameter["value"]] if kind == "constant" else parameter["values"])
    return [dict(zip(spec.parameters, values, strict=True)) for values in itertools.product(*choices)]


def _drawn(spec: SweepSpec, generator: np.random.Generator) -> dict[str, Any]:
    drawn = {name: DRAWS[distribution_of(p)](generator, p) for name, p in spec.parameters.items()}
    chosen = {"constant", "categorical"}  # given, not drawn: with all their digits
    return {
        name: float(f"{value:.6g}")
        if isinstance(value, float) and distribution_of(spec.parameters[name]) not in chosen
        else value
        for name, value in drawn.items()
    }


def _spelled(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
