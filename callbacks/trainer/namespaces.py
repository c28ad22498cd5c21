"""The two packages that Lightning is installed as, `lightning` and `pytorch_lightning`: the same, as other classes.

Whoever has the first has both, so what is installed tells nothing. Base classes here are of both, and all else is known
by its class's name, whichever package that is in.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias, Union

from lightning_utilities.core import rank_zero

PACKAGES = ("lightning", "pytorch_lightning", "lightning_fabric")

if TYPE_CHECKING:
    import lightning.fabric.utilities.exceptions as fabric_exceptions
    import lightning.pytorch as lightning_pytorch
    import lightning_fabric.utilities.exceptions as pytorch_fabric_exceptions
    import pytorch_lightning

    Trainer: TypeAlias = lightning_pytorch.Trainer | pytorch_lightning.Trainer
    LightningModule: TypeAlias = lightning_pytorch.LightningModule | pytorch_lightning.LightningModule

    class Callback(lightning_pytorch.Callback, pytorch_lightning.Callback):  # type: ignore[misc]
        """As below."""

    class MisconfigurationException(
        fabric_exceptions.MisconfigurationException, pytorch_fabric_exceptions.MisconfigurationException
    ):
        """As below."""

else:
    HALVES = (("lightning.pytorch", "lightning.fabric"), ("pytorch_lightning", "lightning_fabric"))
    HERE = [names for names in HALVES if find_spec(names[0].partition(".")[0])]
    _log = vars(rank_zero).get("log")  # each sets it as it is imported: the user's own stays
    PARTS = [import_module(name) for name, _ in HERE]
    EXCEPTIONS = [import_module(f"{name}.utilities.exceptions").MisconfigurationException for _, name in HERE]
    if _log is not None:
        rank_zero.log = _log
    Trainer = Union[tuple(part.Trainer for part in PARTS)]  # noqa: UP007
    LightningModule = Union[tuple(part.LightningModule for part in PARTS)]  # noqa: UP007

    class Callback(*(part.Callback for part in PARTS)):
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
