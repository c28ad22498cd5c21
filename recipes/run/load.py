"""What is read from a checkpoint: which recipe wrote it, the configuration of its run, the trained model."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import yaml
from tokenizers import Tokenizer
from torch import Tensor

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.checkpoints import read_checkpoint
from rnn_blocks.recipes.run.folder import run_of_checkpoint

Model = TypeVar("Model", bound=pl.LightningModule)

KEY = "rnn_blocks"  # of a checkpoint
# Of a checkpoint, too: what the data modules of the recipes keep there.
DATA_STATES = {
    "language-model": "TextDataModule",
    "translation": "ParallelDataModule",
    "cloze": "ClozeDataModule",
    "long-range": "LongRangeData",
}
TOKENIZERS = ("tokenizer", "source_tokenizer", "target_tokenizer")


@dataclass(frozen=True)
class Configuration:
    """The options of the run that a checkpoint is of.

    Attributes:
        values: the options, as nested plain data.
        place: where they were read, for messages.
        directory: the folder in which the run was started, which its relative paths are of; None where nobody knows.
    """

    values: dict[str, Any]
    place: str
    directory: Path | None


def carried(config: str) -> dict[str, Any]:
    """What the checkpoints of a run carry.

    Args:
        config: the resolved configuration, as YAML.

    >>> carried("seed_everything: 1")["rnn_blocks"]["config"]
    'seed_everything: 1'
    """
    return {KEY: {"config": config, "directory": str(Path.cwd())}}


def has_configuration(checkpoint: Mapping[str, Any], path: Path) -> bool:
    """Whether a checkpoint carries a configuration, or lies in its run's folder.

    >>> has_configuration({}, Path("elsewhere/best.ckpt"))
    False
    """
    return KEY in checkpoint or run_of_checkpoint(path) is not None


def configuration_of(checkpoint: Mapping[str, Any], path: Path) -> Configuration:
    """The configuration that comes with a checkpoint.

    In its run's folder it is that of the folder, which goes on where a run is resumed; alone the one that it carries.

    Args:
        checkpoint: what the file holds.
        path: the file.

    Raises:
        InputError: where there is none, or it cannot be read.

    >>> held = carried("data: {seed: 1}")
    >>> configuration_of(held, Path("elsewhere/best.ckpt")).values
    {'data': {'seed': 1}}
    """
    run = run_of_checkpoint(path)
    held = checkpoint.get(KEY)
    if not has_configuration(checkpoint, path):
        raise InputError(
            f"{path}: carries no configuration, as it was written before checkpoints did, and lies in no run's folder: "
            "put it back into RUN/checkpoints, or give the configuration of its run by --config RUN/config.yaml"
        )
    place = f"{path}: its configuration" if run is None else str(run.config)
    try:
        if run is not None and held is not None and not _holds_options(run.config):
            sys.stderr.write(f"{run.config}: cannot be read; the configuration in {path} takes its place\n")
            run, place = None, f"{path}: its configuration"
        text = held["config"] if run is None and held is not None else run.config.read_text(encoding="utf-8")  # type: ignore[union-attr]
        directory = None if held is None else Path(held["directory"])
        values = yaml.safe_load(text)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(f"{place} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{place} cannot be read: it holds a {type(values).__name__}, not options by name")
    if not isinstance(values.get("data"), dict):
        raise InputError(f"{place} holds no options of the data")
    return Configuration(values, place, directory)


def _holds_options(config: Path) -> bool:
    """Whether it holds any: a power cut may leave a file empty, or in part."""
    try:
        return isinstance(yaml.safe_load(config.read_text(encoding="utf-8")), dict)
    except (yaml.YAMLError, UnicodeDecodeError):
        return False


def check_recipe(checkpoint: Mapping[str, Any], path: Path, recipe: str) -> dict[str, Any]:
    """Make sure that a checkpoint is one of a recipe.

    Args:
        checkpoint: what the file holds.
        path: the file.
        recipe: the recipe's name.

    Returns:
        The state of the recipe's data.

    Raises:
        InputError: telling what it is in place of that.

    >>> check_recipe({"weight": Tensor([0.0])}, Path("weights.pt"), "cloze")  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: weights.pt: holds no tokenizer: not a checkpoint of the cloze recipe, but a state
    dict: weights alone
    """
    state = checkpoint.get(DATA_STATES[recipe])
    lacking = "task" if recipe == "long-range" else "tokenizer"
    if not isinstance(state, dict) or not any(state.get(name) for name in (*TOKENIZERS, "task")):
        known = _what_it_is(checkpoint, recipe)
        why = "" if any(key in checkpoint for key in DATA_STATES.values()) else f"holds no {lacking}: "
        raise InputError(f"{path}: {why}not a checkpoint of the {recipe} recipe{known}")
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise InputError(f"{path}: holds no weights ('state_dict'): not a checkpoint of the {recipe} recipe")
    for name in TOKENIZERS:
        try:
            if state.get(name) is not None:
                Tokenizer.from_str(state[name])
        except Exception as error:  # of no narrower class
            raise InputError(f"{path}: its {name.replace('_', ' ')} cannot be read: {error}") from error
    return state


def _what_it_is(checkpoint: Mapping[str, Any], recipe: str) -> str:
    for other, key in DATA_STATES.items():
        if other != recipe and key in checkpoint:
            return f", but one of {other}"
    if "pytorch-lightning_version" in checkpoint:
        return ", but one that Lightning wrote of something else"
    if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        return ", but a state dict: weights alone"
    return ""


def load_model(path: Path, model_class: type[Model], recipe: str) -> tuple[Model, dict[str, Any]]:
    """A model in evaluation mode on the CPU, and its data module's state.

    Args:
        path: a checkpoint that the recipe wrote.
        model_class: the recipe's model.
        recipe: the recipe's name.

    Raises:
        InputError: where it is not one, or holds no tokenizer.

    >>> from rnn_blocks.modules import LanguageModel
    >>> load_model(Path("no.ckpt"), LanguageModel, "language-model")
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: no.ckpt: no such checkpoint
    """
    checkpoint = read_checkpoint(path)
    state = check_recipe(checkpoint, path, recipe)
    try:
        model = model_class.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: the model cannot be made from it: {error}") from error
    return model.eval(), state
