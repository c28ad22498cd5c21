"""A trained model from a checkpoint, with what its data module kept there."""

from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.run.checkpoints import read_checkpoint

Model = TypeVar("Model", bound=pl.LightningModule)


def load_model(
    path: Path, model_class: type[Model], data_class: type[pl.LightningDataModule], recipe: str
) -> tuple[Model, dict[str, Any]]:
    """A model in evaluation mode on the CPU, and its data module's state.

    Args:
        path: a checkpoint that the recipe wrote.
        model_class: the recipe's model.
        data_class: the recipe's data module.
        recipe: the recipe's name.

    Raises:
        InputError: where it is not one, or holds no tokenizer.

    >>> from rnn_blocks.modules import LanguageModel
    >>> load_model(Path("no.ckpt"), LanguageModel, pl.LightningDataModule, "language-model")
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: no.ckpt: no such checkpoint
    """
    checkpoint = read_checkpoint(path)
    state: dict[str, Any] = checkpoint.get(data_class.__qualname__) or {}
    if not any(state.get(name) for name in ("tokenizer", "source_tokenizer")):
        raise InputError(f"{path}: holds no tokenizer: not a checkpoint of the {recipe} recipe")
    try:
        model = model_class.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: the model cannot be made from it: {error}") from error
    return model.eval(), state
