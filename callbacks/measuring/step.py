"""The gradients of one optimizer step, measured once and shared by every callback that asks."""

from collections.abc import Container, Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rnn_blocks.callbacks.measuring.norms import tensor_norms, total_norm
from rnn_blocks.callbacks.measuring.optimizers import behind_handle, groups_of, innermost


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
            [parameter for parameter in group if parameter.grad is not None] for group in groups_of(optimizer)
        ]
        self.parameters = [parameter for group in self.groups for parameter in group]
        self.clipped_norms: Tensor | None = None
        self._readers: set[int] = set()
        self._may_be_changed = False
        self._before: StepGradients | None = None  # what others, who changed them, found there
        if scaler is not None and self.parameters:
            _unscale(scaler, behind_handle(optimizer))

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

    def note_clipped(self, norms: Tensor) -> None:
        """Take down what `current_norms` are from now on, for the gradients have been changed."""
        self.clipped_norms = norms
        before = self._before
        if before is None or "norms" not in vars(before):  # nobody measured there
            return
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        at = [places.get(id(parameter), len(places)) for parameter in before.parameters]
        if at != list(range(len(places))):
            index = torch.tensor(at, dtype=torch.int64).to(norms.device, non_blocking=True)
            norms = torch.cat([norms, norms.new_zeros(1)])[index]  # a gradient that is gone has none
        before.note_clipped(norms)


class ChosenGradients(StepGradients):
    """Some of the gradients of a step, as if there were no others; what is noted of them is noted of the whole step.

    Args:
        step: the whole.
        chosen: which parameters.
    """

    def __init__(self, step: StepGradients, chosen: Container[Tensor]) -> None:
        self._step = step
        self.groups = [[parameter for parameter in group if parameter in chosen] for group in step.groups]
        self.parameters = [parameter for group in self.groups for parameter in group]
        self._places = [place for place, parameter in enumerate(step.parameters) if parameter in chosen]
        self.clipped_norms = None

    @cached_property
    def _index(self) -> Tensor:
        return torch.tensor(self._places, dtype=torch.int64).to(self._step.norms.device, non_blocking=True)

    @cached_property
    def norms(self) -> Tensor:
        """As of the whole step."""
        return self._step.norms[self._index]

    @property
    def current_norms(self) -> Tensor:
        """As of the whole step."""
        return self._step.current_norms[self._index]

    @property
    def clipped_total(self) -> Tensor:
        """As of the whole step."""
        return total_norm(self.current_norms)

    def note_clipped(self, norms: Tensor) -> None:
        """As of the whole step."""
        self._step.note_clipped(self._step.current_norms.index_copy(0, self._index, norms))


_steps: WeakKeyDictionary[Optimizer, StepGradients] = WeakKeyDictionary()
_ends: WeakKeyDictionary[Optimizer, RemovableHandle] = WeakKeyDictionary()


def shared_step(optimizer: Optimizer, reader: object, scaler: torch.amp.GradScaler | None = None) -> StepGradients:
    """The step that `optimizer` is about to make: the same object for every reader of it, until it has been made.

    A step that is not made, as one that a gradient scaler leaves out, ends when one of its readers asks again.

    Args:
        optimizer: whose gradients are there; a wrapper and what it wraps make one and the same step.
        reader: who asks, known by its identity.
        scaler: what the gradients may still be scaled by.
    """
    inner = innermost(optimizer)
    step = _steps.get(inner)
    if step is None or step._may_be_changed or id(reader) in step._readers:
        before = step if step is not None and id(reader) not in step._readers else None
        step = _steps[inner] = StepGradients(optimizer, scaler)
        step._before = before
        if inner not in _ends:
            _ends[inner] = inner.register_step_post_hook(_end_step)
    step._readers.add(id(reader))
    return step


def measure_anew(optimizer: Optimizer) -> None:
    """Whoever asks next for the step that `optimizer` is about to make gets its gradients as they are then."""
    step = _steps.get(innermost(optimizer))
    if step is not None:
        step._may_be_changed = True


def forget_steps(optimizers: Sequence[Optimizer]) -> None:
    """Begin afresh, or leave optimizers as they were."""
    for optimizer in map(innermost, optimizers):
        _steps.pop(optimizer, None)
        if (hook := _ends.pop(optimizer, None)) is not None:
            hook.remove()


def _end_step(optimizer: Optimizer, *_: object) -> None:
    _steps.pop(optimizer, None)


def _unscale(scaler: torch.amp.GradScaler, optimizer: Optimizer) -> None:
    """Unless that has been done, as by a Trainer, which leaves it to a fused optimizer's `step` all the same."""
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "has already been called" not in str(error):
            raise
