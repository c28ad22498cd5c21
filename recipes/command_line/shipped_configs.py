"""The shipped configurations, called by bare name."""

import difflib
from importlib.resources import files
from pathlib import Path

import yaml

from rnn_blocks.recipes import InputError

DEFAULT = "default"


def shipped_configs(recipe: str) -> dict[str, Path]:
    """The configurations of a recipe, by name.

    >>> "default" in shipped_configs("language-model")
    True
    """
    folder = Path(str(files("rnn_blocks.recipes"))) / recipe.replace("-", "_") / "configs"
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"), key=lambda path: path.stem)}


def config_path(recipe: str, given: str) -> Path:
    """The file that ``--config`` means: a path, or the name of a shipped configuration.

    Raises:
        InputError: where it is neither, with the names that are near; where it holds no options in YAML.

    >>> config_path("language-model", "default").name
    'default.yaml'
    >>> config_path("language-model", "defalt")  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: --config defalt: no such file or shipped configuration; did you mean
    'default'?
    """
    path = named_file(given, shipped_configs(recipe), "shipped configuration", option="--config ")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"--config {given}: not text in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {given}: not YAML: {error}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"{type(content).__name__} {str(content)[:40]!r}"
        raise InputError(f"--config {given}: holds {found}; it must hold options, such as data: {{batch_size: 20}}")
    return path


def named_file(given: str, shipped: dict[str, Path], kind: str, option: str = "") -> Path:
    """The file that a path or a shipped name means.

    Args:
        given: the path or the name.
        shipped: files by name.
        kind: what they are.
        option: that it was given by.

    Raises:
        InputError: where it is neither, with the names that are near.

    >>> named_file("small", {"small": Path("configs/small.yaml")}, "shipped configuration").name
    'small.yaml'
    """
    path = Path(given)
    if path.is_file():
        return path
    if given in shipped:
        return shipped[given]
    near = difflib.get_close_matches(given, shipped, n=3, cutoff=0.5)
    meant = " or ".join(repr(name) for name in near)
    hint = f"did you mean {meant}?" if near else f"shipped are {', '.join(shipped)}"
    raise InputError(f"{option}{given}: no such file or {kind}; {hint}")
