"""The base of the callbacks."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from rnn_blocks.callbacks.trainer.namespaces import EitherCallback


class Callback(EitherCallback):
    """A callback to the trainers of `lightning.pytorch` and of `pytorch_lightning`.

    It can be pickled and copied in the middle of a fit, as packages do that keep a trainer's arguments among the
    hyperparameters of a model: the copy has its settings and its history, and nothing of the fit.

    Attributes:
        of_a_fit: the attributes that belong to a running fit, and what they are where there is none.
    """

    of_a_fit: ClassVar[Mapping[str, Callable[[], Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A fit hands every callback its module's `log` and `log_dict`, and so the module.
        own = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        return own | {name: empty() for name, empty in self.of_a_fit.items()}
