"""What the gradient callbacks need of a trainer: which ones they can serve, when it logs, what things are called."""

from collections.abc import Mapping

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor
from torch.optim import LBFGS


def refuse_unsupported_strategy(trainer: Trainer, callback: str) -> None:
    """Raise `MisconfigurationException` if the trainer's strategy keeps whole gradients out of a callback's sight."""
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        raise MisconfigurationException(
            f"{callback} cannot be used with DeepSpeed, which keeps its gradients to itself and ignores changes made "
            "to them. Remove the callback and set `gradient_clipping` in DeepSpeed's config, or use another strategy."
        )
    if isinstance(trainer.strategy, FSDPStrategy):
        raise MisconfigurationException(
            f"{callback} cannot be used with FSDPStrategy, whose gradients are shards that look like whole tensors, so "
            "that their norms would be too small. Use ModelParallelStrategy (FSDP2), whose shards know what they are."
        )


def refuse_unsupported_optimizer(trainer: Trainer, callback: str) -> None:
    """Raise `MisconfigurationException` if an optimizer evaluates gradients several times a step."""
    for index, optimizer in enumerate(trainer.optimizers):
        if isinstance(optimizer, LBFGS):
            raise MisconfigurationException(
                f"{callback} cannot be used with LBFGS (optimizer {index}): it evaluates several gradients a step, and "
                "its line search needs them as they are. Remove the callback, or use another optimizer."
            )


def go_first(trainer: Trainer, callback: Callback) -> None:
    """Move a callback before all others, so that it sees gradients before any of them changes them."""
    others = [other for other in trainer.callbacks if other is not callback]  # type: ignore[attr-defined]
    trainer.callbacks = [callback, *others]  # type: ignore[attr-defined]


def is_logging_step(trainer: Trainer) -> bool:
    """Whether the trainer logs at the end of this training batch; the same answer all through the batch."""
    return trainer._logger_connector.should_update_logs


def log_metrics(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Hand metrics to every logger under the training metrics' step number, and to `trainer.callback_metrics`."""
    if not metrics:
        return
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def metric_suffix(trainer: Trainer, optimizer_index: int) -> str:
    """What is added to metric names to tell several optimizers apart; empty where there is one."""
    return f"/optimizer_{optimizer_index}" if len(trainer.optimizers) > 1 else ""


def parameter_names(module: LightningModule) -> dict[Tensor, str]:
    """Name of each parameter, as it is without `torch.compile`."""
    return {parameter: name.replace("_orig_mod.", "") for name, parameter in module.named_parameters()}
