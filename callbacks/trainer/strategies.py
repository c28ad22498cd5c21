"""Which trainers a callback can serve: strategies that hide or shard what it needs, optimizers without one gradient."""

from torch.optim import LBFGS, Optimizer

from rnn_blocks.callbacks.trainer.namespaces import MisconfigurationException, Trainer, is_lightnings


def refuse_unsupported_strategy(trainer: Trainer, callback: str) -> None:
    """Raise `MisconfigurationException` if the trainer's strategy keeps whole gradients out of a callback's sight."""
    if is_lightnings(trainer.strategy, "DeepSpeedStrategy"):
        raise MisconfigurationException(
            f"{callback} cannot be used with DeepSpeed, which keeps its gradients to itself and ignores changes made "
            "to them. Remove the callback and set `gradient_clipping` in DeepSpeed's config, or use another strategy."
        )
    if is_lightnings(trainer.strategy, "FSDPStrategy"):
        raise MisconfigurationException(
            f"{callback} cannot be used with FSDPStrategy, whose gradients are shards that look like whole tensors, so "
            "that their norms would be too small. Use ModelParallelStrategy (FSDP2), whose shards know what they are."
        )


def refuse_sharded_parameters(trainer: Trainer, callback: str) -> None:
    """Raise `MisconfigurationException` if no rank has the parameters whole."""
    if is_lightnings(trainer.strategy, "DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy"):
        raise MisconfigurationException(
            f"{callback} cannot be used with {type(trainer.strategy).__name__}, which shards the "
            "parameters. Use DDP or one device."
        )


def refuse_unsupported_optimizer(trainer: Trainer, callback: str) -> None:
    """Raise `MisconfigurationException` if an optimizer is not torch's, or evaluates gradients several times a step."""
    for index, optimizer in enumerate(trainer.optimizers):
        if not isinstance(optimizer, Optimizer):  # Lightning takes whatever looks like one
            raise MisconfigurationException(
                f"{callback} cannot be used with {type(optimizer).__name__} (optimizer {index}), which is no "
                "torch.optim.Optimizer and has no hooks. Derive it from that, or remove the callback."
            )
        if isinstance(optimizer, LBFGS):
            raise MisconfigurationException(
                f"{callback} cannot be used with LBFGS (optimizer {index}): it evaluates several gradients a step, and "
                "its line search needs them as they are. Remove the callback, or use another optimizer."
            )
