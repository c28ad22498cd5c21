"""The two packages that Lightning is installed as, `lightning` and `pytorch_lightning`: the same, as other classes.

Whoever has the first has both, so what is installed tells nothing. Base classes here are of both, and all else is known
by its class's name, whichever package that is in.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from logging import getLogger
from pkgutil import iter_modules
from typing import TYPE_CHECKING, TypeAlias, Union

from lightning_utilities.core import rank_zero

PACKAGES = ("lightning", "pytorch_lightning", "lightning_fabric")


def _is_here(package: str, part: str) -> bool:
    """Whether there is such a package with such a part in it: it may be one of the user's by the same name.

    Nothing is imported to find that out.

    >>> _is_here("lightning", "pytorch"), _is_here("lightning", "tensorflow"), _is_here("ball_lightning", "pytorch")
    (True, False, False)
    """
    try:
        spec = find_spec(package)
    except ValueError:  # something without one has been put in its place
        return False
    places = spec.submodule_search_locations if spec else None
    return any(found.name == part for found in iter_modules(places or []))


if TYPE_CHECKING:
    import lightning.fabric.utilities.exceptions as fabric_exceptions
    import lightning.pytorch as lightning_pytorch
    import lightning_fabric.utilities.exceptions as pytorch_fabric_exceptions
    import pytorch_lightning

    Trainer: TypeAlias = lightning_pytorch.Trainer | pytorch_lightning.Trainer
    LightningModule: TypeAlias = lightning_pytorch.LightningModule | pytorch_lightning.LightningModule

    class EitherCallback(lightning_pytorch.Callback, pytorch_lightning.Callback):  # type: ignore[misc]
        """As below."""

    class MisconfigurationException(
        fabric_exceptions.MisconfigurationException, pytorch_fabric_exceptions.MisconfigurationException
    ):
        """As below."""

else:
    HALVES = {"lightning.pytorch": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}
    HERE = [name for name in HALVES if _is_here(*f"{name}.callbacks".split(".")[:2])] or list(HALVES)[:1]
    # each lets `rank_zero_info` speak through its own logger as it is imported: the user's stays, or else the first's
    import_module(next((name for name in HERE if name in sys.modules), HERE[0]))
    _said_through = {name: vars(rank_zero)[name] for name in ("log", "rank_zero_deprecation_category")}
    PARTS = [import_module(name) for name in HERE]
    EXCEPTIONS = [import_module(f"{HALVES[name]}.utilities.exceptions").MisconfigurationException for name in HERE]
    vars(rank_zero).update(_said_through)
    if len(HERE) > 1:  # whoever silences either package's messages means those of the trainer at hand
        rank_zero.log.addFilter(lambda record: all(getLogger(name).isEnabledFor(record.levelno) for name in HERE))
    Trainer = Union[tuple(part.Trainer for part in PARTS)]  # noqa: UP007
    LightningModule = Union[tuple(part.LightningModule for part in PARTS)]  # noqa: UP007

    class EitherCallback(*(part.Callback for part in PARTS)):
        """A callback to the trainers of `lightning.pytorch` and of `pytorch_lightning`."""

    class MisconfigurationException(*EXCEPTIONS):
        """What either package raises where settings do not go together; caught as either's."""


def is_lightnings(thing: object, *names: str) -> bool:
    """Whether a thing is an instance of one of Lightning's classes of these names, in either package.

    >>> from lightning.pytorch.callbacks import ModelCheckpoint
    >>> is_lightnings(ModelCheckpoint(), "StochasticWeightAveraging", "Checkpoint"), is_lightnings(1, "Checkpoint")
    (True, False)
    """
    return any(owner.__name__ in names and _is_of_lightning(owner) for owner in type(thing).__mro__)


def is_overridden(method: str, thing: object) -> bool:
    """Whether a method of a module or callback is not Lightning's own, but written by somebody.

    >>> from lightning.pytorch import LightningModule
    >>> class Mine(LightningModule):
    ...     def training_step(self, batch): ...
    >>> is_overridden("training_step", Mine()), is_overridden("configure_gradient_clipping", Mine())
    (True, False)
    """
    if method in vars(thing):
        return True
    owners = [owner for owner in type(thing).__mro__ if method in vars(owner)]
    return bool(owners) and not _is_of_lightning(owners[0])


def _is_of_lightning(owner: type) -> bool:
    return owner.__module__.partition(".")[0] in PACKAGES
