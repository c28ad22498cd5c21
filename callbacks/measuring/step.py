"""The gradients of one optimizer step, measured once and shared by every callback that asks."""

from collections.abc import Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from rnn_blocks.callbacks.measuring.norms import tensor_norms, total_norm


class StepGradients:
    """The gradients of one optimizer at one of its steps; measured when first asked for, and never again.

    Attributes:
        groups: the parameters that have a gradient, by parameter group.
        parameters: the same in one list.
        clipped_norms: norm of each parameter's gradient after clipping, ``(parameters,)``, NaN where it was not finite;
            None as long as nobody has clipped.
    """

    def __init__(self, optimizer: Optimizer, scaler: torch.amp.GradScaler | None = None) -> None:
        self.groups: list[list[Tensor]] = [
            [parameter for parameter in group["params"] if parameter.grad is not None]
            for group in optimizer.param_groups
        ]
        self.parameters = [parameter for group in self.groups for parameter in group]
        self.clipped_norms: Tensor | None = None
        self._readers: set[int] = set()
        # A fused optimizer unscales inside `step`; unscaled here, its gradients read and clip as any other's do.
        if scaler is not None and self.parameters and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients as they are now, one for each of `parameters`."""
        # Never kept: a list that outlives `zero_grad` would hold last step's gradients through the next backward.
        return [gradient for parameter in self.parameters if (gradient := parameter.grad) is not None]

    @cached_property
    def norms(self) -> Tensor:
        """Norm of each parameter's gradient before clipping, ``(parameters,)``."""
        return tensor_norms(self.gradients)

    @cached_property
    def total(self) -> Tensor:
        """Norm of all gradients before clipping, ``()``."""
        return total_norm(self.norms)

    @property
    def current_norms(self) -> Tensor:
        """Norm of each parameter's gradient as it is now, ``(parameters,)``."""
        return self.norms if self.clipped_norms is None else self.clipped_norms

    @property
    def clipped_total(self) -> Tensor:
        """Norm of all gradients as they are now, ``()``."""
        if self.clipped_norms is None or self.clipped_norms is self.norms:
            return self.total
        return total_norm(self.clipped_norms)


_steps: WeakKeyDictionary[Optimizer, StepGradients] = WeakKeyDictionary()


def shared_step(optimizer: Optimizer, reader: object, scaler: torch.amp.GradScaler | None = None) -> StepGradients:
    """The step that `optimizer` is about to make: the same object for every reader of it.

    To be called by each reader once before each step, whether it measures or not: a reader that asks for the second
    time is in the next step.

    Args:
        optimizer: whose gradients are there.
        reader: who asks, known by its identity.
        scaler: what the gradients may still be scaled by.
    """
    step = _steps.get(optimizer)
    if step is None or id(reader) in step._readers:
        step = _steps[optimizer] = StepGradients(optimizer, scaler)
    step._readers.add(id(reader))
    return step


def forget_steps(optimizers: Sequence[Optimizer]) -> None:
    """Begin afresh: an optimizer that outlives a fit must not bring its last step into the next one."""
    for optimizer in optimizers:
        _steps.pop(optimizer, None)
