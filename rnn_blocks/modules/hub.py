"""Trained models in a folder, on disk or on the Hugging Face Hub."""

import difflib
import inspect
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from typing_extensions import Self

from rnn_blocks.modules.described import CLASS, NotDescribableError, class_path, describe, rebuilt_arguments

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
NEEDED = ("huggingface_hub", "safetensors")
_NOT_KEPT = ("detokenize", "_instantiator")
_FOR_TRAINING = ("optimizer", "lr_scheduler")

if TYPE_CHECKING or (find_spec("huggingface_hub") and find_spec("safetensors")):
    from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
    from safetensors import SafetensorError
else:

    class ModelHubMixin:  # in its place where it is not installed, which is no reason not to train
        """Says what to install."""

        def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
            """Raises an error."""
            check_installed()

        push_to_hub = save_pretrained
        from_pretrained = classmethod(save_pretrained)


def check_installed() -> None:
    """Make sure that what reads and writes such folders is there.

    Raises:
        ImportError: naming what is not, and how to install it.

    >>> check_installed()
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)}: not installed; this needs pip install 'rnn-blocks[export]'")


class Pretrained(ModelHubMixin):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub``, of huggingface_hub's ``ModelHubMixin``.

    A folder holds ``model.safetensors`` with the weights, ``config.json`` with the constructor's arguments, and a model
    card. The arguments are those that Lightning saved as hyperparameters; layers that were made in Python are described
    by their class and what they were made of, see :func:`~rnn_blocks.modules.described.describe`, and so are an
    optimizer and a schedule that are ``functools.partial`` of a class (others are left out, and given again to
    ``from_pretrained`` for more training).

    ``from_pretrained(folder_or_name, trust=(), map_location="cpu", **arguments)`` takes, beside what huggingface_hub's
    does, arguments in place of the kept ones, such as ``layer=…``. It gives the model in evaluation mode. A folder from
    elsewhere runs no code of its own: no classes are made but rnn_blocks' and torch's, and those of the packages named
    in ``trust``.

    >>> import tempfile, torch, rnn_blocks
    >>> model = rnn_blocks.LanguageModel(rnn_blocks.GRU(4, 4), vocab_size=9).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.save_pretrained(folder)
    ...     again = rnn_blocks.LanguageModel.from_pretrained(folder)
    >>> inputs = torch.tensor([[3, 1, 4]])
    >>> torch.equal(again(inputs)[0], model(inputs)[0])
    True
    """

    hub_parts: ClassVar[Mapping[str, str]] = {}
    """Where arguments that are layers lie, if not under their own names."""

    hub_task: ClassVar[str | None] = None
    """What the Hub calls the model's task."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Any object's: the mixin's would keep the arguments here, too."""
        return object.__new__(cls)

    def configuration(self) -> dict[str, Any]:
        """The class and the arguments that make such a model, as plain data.

        Where an argument cannot be told, ``left_out`` says why, by its name.
        """
        hparams: Mapping[str, Any] = getattr(self, "hparams", {})
        config: dict[str, Any] = {CLASS: class_path(type(self))}
        left_out: dict[str, str] = {}
        for name in list(inspect.signature(type(self).__init__).parameters)[1:]:
            if name in _NOT_KEPT:
                continue
            where = f"_make_{name}.function" if name in _FOR_TRAINING else self.hub_parts.get(name, name)
            try:
                config[name] = _plain(hparams[name]) if name in hparams else describe(attrgetter(where)(self))
            except (NotDescribableError, AttributeError) as error:
                if name not in _FOR_TRAINING:
                    left_out[name] = str(error)
        return config | ({"left_out": left_out} if left_out else {})

    def _save_pretrained(self, save_directory: Path) -> None:
        check_installed()
        from safetensors.torch import save_model

        assert isinstance(self, nn.Module)
        config = self.configuration()
        for name, reason in config.get("left_out", {}).items():
            warnings.warn(
                f"the argument {name!r} is not kept: {reason}. Read the folder with from_pretrained(folder, {name}=…)",
                stacklevel=3,
            )
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights = save_directory / f".{WEIGHTS}.tmp"
        save_model(self, str(weights), metadata={"format": "pt"})  # tied weights are written once
        os.replace(weights, save_directory / WEIGHTS)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        trust: Sequence[str] = (),
        map_location: str = "cpu",
        **arguments: Any,
    ) -> Self:
        check_installed()
        from safetensors.torch import load_model

        if config is None:
            raise ValueError(f"{model_id}: holds no {CONFIG}: not a folder that save_pretrained wrote")
        _check_class(cls, config.get(CLASS), model_id)
        _check_names(cls, arguments)
        for name, reason in config.get("left_out", {}).items():
            if name not in arguments:
                raise ValueError(f"{model_id}: give from_pretrained {name}=…: it could not be kept, as {reason}")
        if os.path.isdir(model_id):
            weights = os.path.join(model_id, WEIGHTS)
            if not os.path.isfile(weights):
                raise ValueError(f"{model_id}: holds no {WEIGHTS}: not a folder that save_pretrained wrote")
        else:
            weights = hf_hub_download(
                model_id,
                WEIGHTS,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        model: Any = cls(**rebuilt_arguments(cls, arguments, trust=trust))
        try:
            load_model(model, weights, device=map_location)
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{model_id}: {WEIGHTS} does not fit the model of its {CONFIG}: {error}") from error
        made: Self = model.to(map_location).eval()
        return made

    def generate_model_card(
        self, *args: Any, metrics: Mapping[str, float] | None = None, **options: Any
    ) -> "ModelCard":
        """The text that the Hub shows.

        Args:
            args: none.
            metrics: what the model reached, by name.
            options: none.
        """
        config = self.configuration()
        assert isinstance(self, nn.Module)
        name = type(self).__name__
        data = ModelCardData(
            library_name="rnn-blocks", pipeline_tag=self.hub_task, tags=["rnn", "pytorch", "lightning"]
        )
        rows = "".join(f"| {metric} | {value:.4g} |\n" for metric, value in (metrics or {}).items())
        count = sum(parameter.numel() for parameter in self.parameters())
        return ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n"
            f"A `{name}` of rnn-blocks, with {count:,} parameters.\n\n"
            f"```python\nfrom rnn_blocks import {name}\n\n"
            f'model = {name}.from_pretrained("FOLDER_OR_NAME")\n```\n\n'
            + (f"## Metrics\n\n| metric | value |\n| --- | --- |\n{rows}\n" if rows else "")
            + f"## Configuration\n\n```json\n{json.dumps(config, indent=2)}\n```\n"
        )


def _check_class(cls: type, path: Any, where: str) -> None:
    # before its public name was kept, a class of ours went by that of the module it was in
    public = f"rnn_blocks.{path.rpartition('.')[2]}" if str(path).startswith("rnn_blocks.") else path
    if public not in map(class_path, cls.__mro__):
        raise ValueError(f"{where}: holds a {path}, which is no {cls.__name__}: read it with that class")


def _check_names(cls: type, arguments: Mapping[str, Any]) -> None:
    known = list(inspect.signature(cls.__init__).parameters)[1:]  # type: ignore[misc]  # of this very class
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, "trust", "map_location"], n=1)
            hint = f"did you mean {near[0]}?" if near else f"valid are {', '.join(known)}, trust and map_location"
            raise ValueError(f"{cls.__name__}.from_pretrained takes no {name!r}; {hint}")


def _plain(value: Any) -> Any:
    """Hyperparameters without the parser's own kind of mapping."""
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return describe(value)
