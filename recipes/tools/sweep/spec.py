"""A sweep file: what is varied, how, and what is run; the file that ``wandb sweep`` takes."""

import difflib
import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.tools.sweep.distributions import check_parameter

Method = Literal["grid", "random"]
KEYS = {  # of Weights & Biases
    *("program", "command", "method", "metric", "parameters", "name", "description", "run_cap", "early_terminate"),
    *("project", "entity"),
}
ARGS = "${args}"
LAUNCHERS = ("${env}", "${interpreter}", "${program}")


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep file says.

    Args:
        name: the file's, without its ending.
        recipe: the recipe that is trained.
        before: arguments of ``fit`` before the parameters.
        after: those after them.
        parameters: by the option's dotted name.
        metric: what tells how good a run is.
        goal: whether low or high is good.
        method: the file's.
        run_cap: at most so many runs.
    """

    name: str
    recipe: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    parameters: dict[str, dict[str, Any]]
    metric: str
    goal: Literal["minimize", "maximize"]
    method: str
    run_cap: int | None


def shipped_sweeps() -> dict[str, Path]:
    """The sweep files that come with the package, by name.

    >>> "language-model-default" in shipped_sweeps()
    True
    """
    folder = Path(str(files("rnn_blocks.recipes"))) / "tools" / "sweep" / "shipped"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def sweep_path(given: str) -> Path:
    """The file that a path or the name of a shipped sweep means.

    Raises:
        InputError: where it is neither, with the names that are near.

    >>> sweep_path("ptb-small-clipping").name
    'ptb-small-clipping.yaml'
    """
    path = Path(given)
    if path.is_file():
        return path
    shipped = shipped_sweeps()
    if given in shipped:
        return shipped[given]
    near = difflib.get_close_matches(given, shipped, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped are {', '.join(shipped)}"
    raise InputError(f"{given}: no such file or shipped sweep; {hint}")


def read_sweep(path: Path, recipes: list[str]) -> SweepSpec:
    """Read a sweep file.

    Args:
        path: the file.
        recipes: those that can be swept.

    Raises:
        InputError: naming the file, the key at fault and what is valid.

    >>> read_sweep(sweep_path("language-model-default"), ["language-model"]).metric
    'val/loss'
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a sweep: it must be a mapping with {', '.join(sorted(KEYS))}")
    unknown = sorted(set(map(str, content)) - KEYS)
    if unknown:
        raise InputError(f"{path}: {', '.join(unknown)} is no key of a sweep; valid are {', '.join(sorted(KEYS))}")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise InputError(f"{path}: parameters: name at least one option and its values")
    for name, parameter in parameters.items():
        check_parameter(str(path), name, parameter)
    metric = content.get("metric")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise InputError(f"{path}: metric: give name: (such as val/loss) and goal: minimize or maximize")
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise InputError(f"{path}: metric: goal must be minimize or maximize, got {goal!r}")
    run_cap = content.get("run_cap")
    if run_cap is not None and (not isinstance(run_cap, int) or run_cap < 1):
        raise InputError(f"{path}: run_cap must be at least 1, got {run_cap!r}")
    recipe, before, after = _command(path, content.get("command"), recipes)
    return SweepSpec(
        name=path.stem,
        recipe=recipe,
        before=before,
        after=after,
        parameters=parameters,
        metric=metric["name"],
        goal=cast(Literal["minimize", "maximize"], goal),
        method=str(content.get("method", "grid")),
        run_cap=run_cap,
    )


def local_method(spec: SweepSpec, given: str | None) -> Method:
    """How this machine chooses the points: as asked for, else as the file says.

    Raises:
        InputError: for what needs Weights & Biases.

    >>> spec = read_sweep(sweep_path("translation-default"), ["translation"])
    >>> local_method(spec, None), local_method(spec, "random")
    ('grid', 'random')
    """
    method = given or spec.method
    if method == "bayes":
        raise InputError(
            f"{spec.name}: method bayes is chosen by Weights & Biases, run by run: use `wandb sweep` and `wandb "
            "agent`, or give --method grid or --method random to run it here"
        )
    if method not in ("grid", "random"):
        raise InputError(f"{spec.name}: method must be grid or random, got {method!r}")
    return cast(Method, method)


def _command(path: Path, command: Any, recipes: list[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    example = "command: [rnn-blocks, language-model, fit, --config=default, ${args}]"
    if not isinstance(command, list):
        raise InputError(f"{path}: it has no command; for example {example}")
    words = [str(word) for word in command]
    plain = [word for word in words if word not in LAUNCHERS]
    if plain[:1] != ["rnn-blocks"] or plain[2:3] != ["fit"]:
        got = " ".join(words)
        raise InputError(f"{path}: command must be rnn-blocks RECIPE fit …, got {got}; for example {example}")
    if plain[1] not in recipes:
        raise InputError(f"{path}: command: {plain[1]!r} is no recipe with fit; valid are {', '.join(recipes)}")
    options = plain[3:]
    if options.count(ARGS) != 1:
        raise InputError(f"{path}: command must hold {ARGS} once: that is where the parameters go")
    at = options.index(ARGS)
    filled = [_filled(path, word) for word in (*options[:at], *options[at + 1 :])]
    return plain[1], tuple(filled[:at]), tuple(filled[at:])


def _filled(path: Path, word: str) -> str:
    """A word of the command with ``${envvar:NAME}`` replaced, as Weights & Biases does it."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise InputError(f"{path}: command: {word}: set the environment variable {match[1]}")
        return found

    filled = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", value, word)
    if "${" in filled:
        raise InputError(f"{path}: command: {word} is not taken; valid are {ARGS} and ${{envvar:NAME}}")
    return filled
