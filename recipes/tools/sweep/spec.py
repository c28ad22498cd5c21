"""A sweep file: what is varied, how, and what is run; the file that ``wandb sweep`` takes."""

import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from optuna.pruners import SuccessiveHalvingPruner

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.command_line.commands import RECIPE_MODULES
from rnn_blocks.recipes.tools.sweep.parameters import check_keys, read_parameter

METHODS = ("grid", "random", "bayes")
KEYS = (  # of Weights & Biases
    *("command", "description", "early_terminate", "entity", "method", "metric", "name", "parameters", "program"),
    *("project", "run_cap"),
)
ARGS = "${args}"
LAUNCHERS = ("${env}", "${interpreter}", "${program}")


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep file says."""

    name: str  # the file's, without its ending
    recipe: str
    before: tuple[str, ...]  # arguments of fit before the parameters
    after: tuple[str, ...]  # and after them
    parameters: dict[str, dict[str, Any]]  # by the option's dotted name
    metric: str  # what tells how good a run is
    goal: Literal["minimize", "maximize"]
    method: str
    run_cap: int | None  # at most so many runs
    early_terminate: tuple[int, int, int | None] | None  # min_iter, eta, max_iter


def shipped_sweeps() -> dict[str, Path]:
    """The sweep files that come with the package, by name.

    >>> "language-model-default" in shipped_sweeps()
    True
    """
    folder = Path(str(files("rnn_blocks.recipes"))) / "tools" / "sweep" / "shipped"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_sweep(path: Path, *, method: str | None = None, options: tuple[str, ...] = ()) -> SweepSpec:
    """Read a sweep file.

    Args:
        path: the file.
        method: in place of the file's.
        options: arguments that every run gets after all others.

    Raises:
        InputError: naming the file, the key at fault and what is valid.

    >>> read_sweep(shipped_sweeps()["language-model-default"]).method
    'bayes'
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a sweep: it must be a mapping with {', '.join(KEYS)}")
    check_keys(str(path), content, KEYS)
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise InputError(f"{path}: parameters: name at least one option and its values")
    parameters = {str(name): read_parameter(f"{path}: {name}", given) for name, given in parameters.items()}
    metric = content.get("metric")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise InputError(f"{path}: metric: give name: (such as val/loss) and goal: minimize or maximize")
    check_keys(f"{path}: metric", metric, ("name", "goal"))
    check_keys(f"{path}: metric: goal", [metric.get("goal", "minimize")], ("minimize", "maximize"))
    method = method or str(content.get("method", "grid"))
    check_keys(f"{path}: method", [method], METHODS)
    ranges = [name for name, given in parameters.items() if "min" in given]
    if method == "grid" and ranges:
        raise InputError(f"{path}: {ranges[0]}: a grid needs values: [...]; or give --method random --count N")
    run_cap = content.get("run_cap")
    if run_cap is not None and (not isinstance(run_cap, int) or run_cap < 1):
        raise InputError(f"{path}: run_cap must be at least 1, got {run_cap!r}")
    recipe, before, after = _command(path, content.get("command"))
    return SweepSpec(
        name=path.stem,
        recipe=recipe,
        before=before,
        after=(*after, *options),
        parameters=parameters,
        metric=metric["name"],
        goal=metric.get("goal", "minimize"),
        method=method,
        run_cap=run_cap,
        early_terminate=_early_terminate(path, content.get("early_terminate")),
    )


def _early_terminate(path: Path, given: Any) -> tuple[int, int, int | None] | None:
    if given is None:
        return None
    where, keys = f"{path}: early_terminate", ("type", "min_iter", "max_iter", "s", "eta")
    if not isinstance(given, dict) or given.get("type") != "hyperband":
        raise InputError(f"{where}: type must be hyperband, got {given!r}")
    check_keys(where, given, keys)
    eta, end = given.get("eta", 3), given.get("max_iter")
    try:
        first = given["min_iter"] if "min_iter" in given else end // eta ** given["s"]
        SuccessiveHalvingPruner(first, eta)
        if {type(value) for key, value in given.items() if key != "type"} == {int}:
            return first, eta, end
    except (KeyError, TypeError, ValueError):
        pass
    raise InputError(f"{where}: give min_iter, or max_iter and s, and eta: whole numbers, eta from 2 on; got {given!r}")


def _command(path: Path, command: Any) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    example = "command: [rnn-blocks, language-model, fit, --config=default, ${args}]"
    if not isinstance(command, list):
        raise InputError(f"{path}: it has no command; for example {example}")
    words = [str(word) for word in command]
    plain = [word for word in words if word not in LAUNCHERS]
    if plain[:1] != ["rnn-blocks"] or plain[2:3] != ["fit"]:
        got = " ".join(words)
        raise InputError(f"{path}: command must be rnn-blocks RECIPE fit …, got {got}; for example {example}")
    check_keys(f"{path}: command", plain[1:2], RECIPE_MODULES)
    options = plain[3:]
    if options.count(ARGS) != 1:
        raise InputError(f"{path}: command must hold {ARGS} once: that is where the parameters go")
    at = options.index(ARGS)
    filled = [_filled(path, word) for word in (*options[:at], *options[at + 1 :])]
    return plain[1], tuple(filled[:at]), tuple(filled[at:])


def _filled(path: Path, word: str) -> str:
    """A word of the command with ``${envvar:NAME}`` replaced, as Weights & Biases does it."""
    filled = word
    for name in re.findall(r"\$\{envvar:([A-Z0-9_]*)\}", word):
        if name not in os.environ:
            raise InputError(f"{path}: command: {word}: set the environment variable {name}")
        filled = filled.replace(f"${{envvar:{name}}}", os.environ[name])
    if "${" in filled:
        raise InputError(f"{path}: command: {word} is not taken; valid are {ARGS} and ${{envvar:NAME}}")
    return filled
