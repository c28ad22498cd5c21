"""Whether the gradients that a monitor saw are those that the backward pass gave, and those that the update used."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from rnn_blocks.callbacks.measuring.before_update import before_update
from rnn_blocks.callbacks.measuring.norms import tensor_norms, total_norm
from rnn_blocks.callbacks.measuring.optimizers import innermost, parameters_of

TOLERANCE = 0.01  # norms that differ by less are the same: gradients may have few digits


class AppliedGradients:
    """Follows the gradients of one optimizer from the backward pass to the update.

    Args:
        optimizer: whose; it gets a hook, until `detach`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._watches = False
        self._before: list[tuple[Tensor, int]] = []
        self._norms_before: Tensor | None = None
        self._changed_in_vain: Tensor | None = None
        self._after_backward: Tensor | None = None
        self._settled: Tensor | None = None
        self._applied: Tensor | None = None
        self._handle = before_update(innermost(optimizer), self._measure_update)

    def start(self) -> None:
        """Begin, before a training step: what is there is left over from the last one."""
        self._watches = True
        self._changed_in_vain = None
        self._after_backward = self._settled = self._applied = None
        gradients = self._gradients()
        self._before = [(gradient, gradient._version) for gradient in gradients]
        self._norms_before = tensor_norms(gradients) if gradients else None

    def before_clearing(self) -> None:
        """See whether the training step has clipped what is about to be cleared.

        It has, where all of it is shorter than it was by one factor: a backward pass of the training step's own, as for
        an adversarial input, changes it otherwise.
        """
        if self._norms_before is not None and any(tensor._version != version for tensor, version in self._before):
            ratios = tensor_norms([tensor for tensor, _ in self._before]) / self._norms_before
            ratios = torch.where(self._norms_before > 0, ratios, ratios.nanmean())
            alike = ratios.max() - ratios.min() < TOLERANCE * ratios.max()
            self._changed_in_vain = alike & (ratios.max() < 1 - TOLERANCE)
        self._before, self._norms_before = [], None

    def after_backward(self, scale: float | Tensor) -> None:
        """Measure what a backward pass has left, which may be scaled."""
        if self._watches:
            norm = self._norm()
            self._after_backward = None if norm is None else norm / scale

    def at_hook(self, optimizer: Optimizer) -> None:
        """Settle what this step's backward pass has left: another one may follow in the same batch."""
        if optimizer is not self._optimizer:  # it has been replaced since
            self._handle.remove()
            self._optimizer, self._watches = optimizer, False
            self._handle = before_update(innermost(optimizer), self._measure_update)
        self._settled = self._after_backward

    def take(self, like: Tensor) -> Tensor:
        """Norm after the backward pass, of the update, and whether gradients were changed in vain, ``(3,)``."""
        self._watches = False
        found = (self._settled, self._applied)
        norms = [like.new_full((), math.nan) if norm is None else norm.to(like) for norm in found]
        in_vain = like.new_zeros(()) if self._changed_in_vain is None else self._changed_in_vain.to(like)
        return torch.stack([*norms, in_vain])

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        self._handle.remove()

    def _measure_update(self) -> None:
        if self._watches:
            norm = self._norm()
            self._applied = torch.zeros(()) if norm is None else norm
            self._after_backward = None  # what another step uses without another backward pass, this one has left

    def _gradients(self) -> list[Tensor]:
        every = parameters_of(self._optimizer)
        return [parameter.grad for parameter in every if parameter.grad is not None]

    def _norm(self) -> Tensor | None:
        gradients = self._gradients()
        return total_norm(tensor_norms(gradients)) if gradients else None


class Norms(NamedTuple):
    """Norms of one step's gradients on their way: NaN where one is not known, or is not finite.

    Attributes:
        after_backward: as the backward pass left them.
        at_hook: as they were when the monitor measured them.
        clipped: the same after the clipping that it knows of.
        applied: as the update used them.
        changed_in_vain: 1 where the training step changed gradients that were cleared afterwards.
    """

    after_backward: float
    at_hook: float
    clipped: float
    applied: float
    changed_in_vain: float

    def findings(self, *, clips_later: bool) -> dict[str, str]:
        """What is wrong, by kind, in words.

        Args:
            clips_later: whether the Trainer is known to clip after the monitor has measured.

        >>> Norms(7.0, 1.0, 1.0, 1.0, 0.0).findings(clips_later=False)["before"][:57]
        'gradients were changed between the backward pass (norm 7)'
        >>> Norms(7.0, 7.0, 7.0, 7.0, 0.0).findings(clips_later=False)
        {}
        """
        found = {}
        if self.changed_in_vain:
            found["in vain"] = (
                "gradients were changed inside `training_step`, before the backward pass: they are those of the step "
                "before and are cleared next, so that clipping there has no effect. Under automatic optimisation clip "
                "by a callback, by Trainer(gradient_clip_val=…) or in `configure_gradient_clipping`"
            )
        if _differ(self.after_backward, self.at_hook):
            found["before"] = (
                f"gradients were changed between the backward pass (norm {self.after_backward:.4g}) and the monitor's "
                f"hook (norm {self.at_hook:.4g}), as by clipping or a division inside `training_step` or in "
                "`on_after_backward`: `grad_norm/…` shows what came of it, and not what the backward pass gave"
            )
        if _differ(self.clipped, self.applied):
            if _differ(self.clipped, self.at_hook) and not _differ(self.at_hook, self.applied):
                found["no effect"] = (
                    f"clipping has no effect: it brought the norm down from {self.at_hook:.4g} to {self.clipped:.4g}, "
                    f"and the update used gradients of norm {self.applied:.4g}. Something puts the gradients back, or "
                    "the optimizer has copies of its own"
                )
            elif not clips_later:
                found["after"] = (
                    f"gradients were changed after the monitor's hook: their norm was {self.clipped:.4g} there, and "
                    f"{self.applied:.4g} in the update (`grad_norm/applied`). A second mechanism is at work, such as "
                    "`configure_gradient_clipping`, another callback or a hook of the optimizer"
                )
        return found


def _differ(first: float, second: float) -> bool:
    """Whether both are known, and not the same."""
    return math.isfinite(first) and math.isfinite(second) and abs(first - second) > TOLERANCE * max(first, second)
