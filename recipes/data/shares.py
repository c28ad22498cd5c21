"""What part of the data is this process's, and how much of it an epoch reads."""

from lightning.pytorch import Trainer


def place_among_ranks(trainer: Trainer | None) -> tuple[int, int]:
    """The place of this process among those that share the data, and how many they are."""
    # Not the trainer's own rank: with model parallelism several processes read the same data.
    sharing = trainer.distributed_sampler_kwargs if trainer is not None else None
    return (sharing["rank"], sharing["num_replicas"]) if sharing else (0, 1)


def batches_of_an_epoch(batches: int, trainer: Trainer | None) -> int:
    """How many of a training loader's batches the trainer reads before it ends the epoch."""
    limit = trainer.limit_train_batches if trainer is not None else None
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else limit
