"""What a training really did, measured beside the callbacks under test and without any of their code."""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def norm_in_float64(optimizers: Iterable[Optimizer]) -> float:
    """Euclidean norm of all the gradients that an optimizer's step would use."""
    parameters = (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    squares = [float(p.grad.detach().double().square().sum()) for p in parameters if p.grad is not None]
    return math.sqrt(math.fsum(squares))


class ProbeHooks:
    """Gradient norms before and after clipping, and what callbacks had restored when a training began.

    A script makes its probe of these hooks and of the callback class of its package's own Lightning,
    ``class Probe(ProbeHooks, lightning.pytorch.Callback)``. It depends on no order of callbacks: gradients are read
    right after the backward pass, before any callback sees them, and once more at the end of the batch, where they are
    what the optimizer has just used.

    Args:
        seeded: whether to seed torch before each epoch and each batch by its number, so that a training that goes on
            from a checkpoint draws the dropout masks of one that was not broken off.
        stop_after: at the end of which epoch, counted from 1, to break the training off; None: never.
    """

    def __init__(self, *, seeded: bool = False, stop_after: int | None = None) -> None:
        self.seeded = seeded
        self.stop_after = stop_after
        self.before: list[float] = []
        self.after: list[float] = []
        self.restored: dict[str, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        states = {type(other).__name__: other.state_dict() for other in trainer.callbacks if other is not self}
        self.restored = copy.deepcopy(states)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self.seeded:
            torch.manual_seed(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.seeded:
            torch.manual_seed(trainer.global_step)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.before.append(norm_in_float64(trainer.optimizers))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.after.append(norm_in_float64(trainer.optimizers))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch + 1 == self.stop_after:
            trainer.should_stop = True


def same(one: Any, other: Any) -> bool:
    """Whether two nests of dicts, lists, tensors and plain values are equal, tensors bit by bit (NaN equals NaN)."""
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.dtype != other.dtype or one.shape != other.shape:
            return False
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """How far two sets of weights are apart, as a share of the length of the first."""
    if one.keys() != other.keys():
        return math.inf
    apart = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)
    return math.sqrt(apart / sum(float(weight.double().square().sum()) for weight in one.values()))
