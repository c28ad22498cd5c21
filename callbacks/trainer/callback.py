"""The base of the callbacks."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from rnn_blocks.callbacks.trainer.namespaces import EitherCallback, LightningModule, Trainer


class Callback(EitherCallback):
    """A callback to the trainers of `lightning.pytorch` and of `pytorch_lightning`.

    It can be pickled and copied in the middle of a fit, as packages do that keep a trainer's arguments among the
    hyperparameters of a model: the copy has its settings and its history, and nothing of the fit.

    Attributes:
        of_a_fit: the attributes that belong to a running fit, and what they are where there is none.
    """

    of_a_fit: ClassVar[Mapping[str, Callable[[], Any]]] = {}
    _fits = True  # in a fit, or under no trainer's control

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare for a fit; an evaluation is left alone."""
        self._fits = stage == "fit"
        if self._fits:
            self._begin(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a checkpoint's history; that of a checkpoint that is only evaluated is left aside."""
        if self._fits:
            self._continue_from(state_dict)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """From here on under no trainer's control."""
        self._fits = True

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot work before anything has run, and forget an earlier training."""

    def _continue_from(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""

    def __getstate__(self) -> dict[str, Any]:
        # A fit hands every callback its module's `log` and `log_dict`, and so the module.
        own = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        return own | {name: empty() for name, empty in self.of_a_fit.items()}
