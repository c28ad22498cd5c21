"""The other callbacks of a trainer, and the order that they are called in."""

from itertools import takewhile

from rnn_blocks.callbacks.trainer.callback import Callback
from rnn_blocks.callbacks.trainer.namespaces import EitherCallback, Trainer, is_lightnings, is_overridden


def averages_weights(callback: EitherCallback) -> bool:
    """Whether it is one of Lightning's that average weights."""
    return is_lightnings(callback, "StochasticWeightAveraging", "WeightAveraging")


def callbacks_of(trainer: Trainer, besides: EitherCallback | None = None) -> list[EitherCallback]:
    """All of the trainer's, but for one where it is given, in their order."""
    return [other for other in trainer.callbacks if other is not besides]  # type: ignore[union-attr]


def may_change_gradients(trainer: Trainer, callback: EitherCallback) -> bool:
    """Whether a callback of somebody else's gets each step's gradients before this one does."""
    before = takewhile(lambda other: other is not callback, callbacks_of(trainer))
    others = [other for other in before if not isinstance(other, Callback)]
    return any(is_overridden("on_before_optimizer_step", other) for other in others)


def go_first(trainer: Trainer, callback: EitherCallback) -> None:
    """Move a callback before all others, so that it sees gradients before any of them changes them."""
    trainer.callbacks = [callback, *callbacks_of(trainer, callback)]  # type: ignore[union-attr]


def go_around(trainer: Trainer, first: EitherCallback, last: EitherCallback) -> None:
    """Put two callbacks before and behind all others, in the place of those of their classes that are there."""
    others = [other for other in callbacks_of(trainer) if not isinstance(other, type(first) | type(last))]
    trainer.callbacks = [first, *others, last]  # type: ignore[union-attr]
