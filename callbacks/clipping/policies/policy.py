"""What a clipping policy is: it turns the norms seen so far into a threshold, as a pure function of its history."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rnn_blocks.callbacks.measuring.numbers import Number

History = dict[str, Tensor]
"""What a policy remembers: tensors by name, on the device of the norms. Saved in checkpoints as it is."""


Scope = Literal["global", "group", "parameter", "unit"]
"""What is measured and clipped as one: all the optimizer's gradients, those of a parameter group, of a parameter, or of
one output unit (a row of a matrix, the rest of a convolution's; a bias or other vector as a whole)."""

SCOPES: tuple[Scope, ...] = get_args(Scope)


class Step(NamedTuple):
    """What a policy is told of the step about to be made.

    Everything is elementwise over a shape S: ``()`` in the scope "global", ``(units,)`` in the others.

    Attributes:
        norm: norm of the gradients, S; may be non-finite, and is NaN where there is no gradient in this step. Such a
            unit is neither observed nor clipped.
        learning_rate: length of the update that a lasting gradient of norm 1 makes, lr·(1−dampening)/(1−momentum) with
            SGD, a number or S; None where the update does not scale with the gradient (Adam and its kin).
        initial_weight_norm: ‖W₀‖, the norm of the weights before the first step, S.
        weight_norm: norm of the weights as they are now, S; None unless the policy `uses_weights`.
        loss: that the gradients are of, ``()``, mean over accumulated batches and over ranks; None unless the policy
            `uses_loss`, and where there is none that says how well the training is.
        sensitive_norm: norm of the gradients without those of scale-invariant weights (see `ScaleInvariance`), ``()``;
            None where there is no loss, and in every scope but "global".
        momentum: SGD's, the highest of the parameter groups that have a gradient, where `Clip.restart` is heeded; 0
            elsewhere.

    >>> import torch
    >>> Step(norm=torch.tensor(6.0), learning_rate=None, initial_weight_norm=torch.tensor(1.0)).norm
    tensor(6.)
    """

    norm: Tensor
    learning_rate: float | Tensor | None
    initial_weight_norm: Tensor
    weight_norm: Tensor | None = None
    loss: Tensor | None = None
    sensitive_norm: Tensor | None = None
    momentum: float = 0.0


class Clip(NamedTuple):
    """A policy's answer: a gradient whose norm is above `threshold` is brought down to `target`.

    Attributes:
        threshold: S, the shape of `Step.norm`; infinite where nothing is known yet.
        target: S, never above the threshold.
        reason: which of the policy's `reasons` the threshold has, int64, S; None: it has but one.
        restart: whether SGD is to forget its velocity before this step, bool, ``()``; None: no. Heeded in the scope
            "global", where the host reads at each step what is to be done: on a CPU, and elsewhere unless `nonfinite`
            is "zero" or gradients are scaled.

    >>> import torch
    >>> Clip(threshold=torch.tensor(5.0), target=torch.tensor(5.0)).threshold
    tensor(5.)
    """

    threshold: Tensor
    target: Tensor
    reason: Tensor | None = None
    restart: Tensor | None = None


class ClippingPolicy(ABC):
    """A rule for the clipping threshold; subclass it to write your own.

    A policy holds its settings and nothing else. What it remembers goes in and comes out, so that it can be fed numbers
    in a test and saved in a checkpoint. Every method works on tensors of the norms' device and must not read them (no
    ``item()``, no ``if`` on a tensor), or the training waits for the device at every step. They work elementwise over
    the norms' shape S, so that one policy serves every scope; everything in a history has S as its last dimensions. A
    checkpoint finds its policy again by its ``repr``: the class and its attributes, unless the policy says another.

    Attributes:
        default_scope: the scope that the rule was made for.
        uses_weights: whether the rule needs `Step.weight_norm`, which costs a pass over the weights at every step.
        uses_loss: whether the rule needs `Step.loss`, which under several ranks costs the mean of one number a step.
        takes_numbers: whether `clip` and `observe` also work on Python's numbers in the place of tensors, and on a list
            in that of one dimension more, in history, step and answer. On a CPU they then get these in the scope
            "global", for torch takes microseconds for what Python does in tens of nanoseconds.
        reasons: what a step may be clipped for, in words for metrics, such as ``"outlier"``.
        longest_update: how long the updates of an optimizer other than SGD may be, as a share of the initial weights
            (see `Auto`); None: they are not bounded.

    >>> import torch
    >>> class HalfTheLast(ClippingPolicy):
    ...     def initial_history(self, norm):
    ...         return {"last": torch.full_like(norm, torch.inf)}
    ...     def clip(self, history, step):
    ...         return Clip(history["last"] / 2, history["last"] / 2)
    ...     def observe(self, history, step):
    ...         return {"last": torch.where(step.norm.isfinite(), step.norm, history["last"])}
    >>> policy, step = HalfTheLast(), Step(torch.tensor(6.0), None, torch.tensor(1.0))
    >>> policy
    HalfTheLast()
    >>> history = policy.observe(policy.initial_history(step.norm), step)
    >>> policy.clip(history, step).threshold
    tensor(3.)
    """

    default_scope: ClassVar[Scope] = "global"
    uses_weights: ClassVar[bool] = False
    uses_loss: ClassVar[bool] = False
    takes_numbers: ClassVar[bool] = False
    reasons: ClassVar[tuple[str, ...]] = ()
    longest_update: float | None = None

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"

    def needs_loss(self, scales: bool) -> bool:
        """Whether `Step.loss` is looked at with an optimizer whose update scales with the gradient, or with another."""
        return self.uses_loss

    def initial_history(self, norm: Tensor) -> History:
        """What is remembered before the first step, on the device, of the dtype and over the shape S of `norm`."""
        return {}

    @abstractmethod
    def clip(self, history: History, step: Step) -> Clip:
        """Where to clip this step, knowing only the steps before it (and its own norm)."""

    def observe(self, history: History, step: Step) -> History:
        """The history with this step's norm, as it was before clipping, in it. Keep non-finite norms out."""
        return history


def usable(norm: Tensor) -> Tensor:
    """Which of the norms tell something of the gradients' scale, bool, S: those that are finite and not 0."""
    return (norm > 0) & (norm < math.inf)


def put_into_ring(ring: Number, count: Number, value: Number, takes: Number) -> Number:
    """A ring with a value in the place of its oldest.

    Args:
        ring: ``(window, *S)``, or a list of numbers; then the others are numbers too.
        count: how many values it has been given before, S, int64.
        value: S.
        takes: where the value is taken at all, bool, S.

    >>> import torch
    >>> ring, count = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(4)
    >>> put_into_ring(ring, count, torch.tensor(9.0), torch.tensor(True))
    tensor([1., 9., 3.])
    """
    if isinstance(ring, list):
        place = count % len(ring)
        return [*ring[:place], value, *ring[place + 1 :]] if takes else ring
    places = torch.arange(len(ring), device=ring.device).view(-1, *[1] * count.ndim)
    return torch.where((places == count % len(ring)) & takes, value, ring)
