"""Gradients with NaN or infinity: kept out of the weights, told of, and an error when there are too many."""

import warnings
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Optimizer
from torch.utils.hooks import RemovableHandle

from rnn_blocks.callbacks.clipping.record import Report
from rnn_blocks.callbacks.measuring.norms import stored_values
from rnn_blocks.callbacks.measuring.step import StepGradients
from rnn_blocks.callbacks.settings import whole_number

CHOICES = ("skip", "zero", "raise")


class NonFiniteGradientError(RuntimeError):
    """A gradient held NaN or infinity: with ``nonfinite="raise"`` once, else `max_nonfinite` times in a row."""


class NonFiniteGradients:
    """What a `GradientClipper` does about them; see there.

    Args:
        owner: who does it, for messages.
        choice: ``"skip"``, ``"zero"`` or ``"raise"``.
        most: so many steps in a row end the training.

    Raises:
        ValueError: a setting is not one of its choices.
    """

    def __init__(self, owner: str, choice: Literal["skip", "zero", "raise"], most: int) -> None:
        if choice not in CHOICES:
            raise ValueError(f"{owner}: nonfinite is {choice!r}; choose one of {', '.join(map(repr, CHOICES))}")
        if not whole_number(most) >= 1:
            raise ValueError(f"{owner}: max_nonfinite is {most!r}; it must be at least 1, a whole number")
        self.owner = owner
        self.choice = choice
        self.most = most
        self.deferred: list[Tensor] | None = None
        """The parameters of the last step, where steps have been acted on, but perhaps not told of."""

    def act(self, gradients: StepGradients, names: dict[Tensor, str], *, run: int, step: int, scaled: bool) -> None:
        """Act on a step that is known to be non-finite.

        Args:
            gradients: the step's.
            names: of the parameters, as far as they are known.
            run: of how many such steps in a row this is the last.
            step: its number, for messages.
            scaled: whether a gradient scaler has seen it too, and skips the update by itself.
        """
        culprit = int(gradients.norms.isfinite().int().argmin())
        happened = f"the gradient of {_name(names, gradients.parameters, culprit)} is not finite"
        self._stop_after(run, happened)
        if scaled:
            return
        happened += f" at step {step}"
        if self.choice == "raise":
            raise NonFiniteGradientError(f"{self.owner}(nonfinite='raise'): {happened}")
        if self.choice == "skip":
            for parameter in gradients.parameters:
                parameter.grad = None  # an optimizer passes over such a parameter and its state
            rank_zero_warn(f"{self.owner}: {happened}; the update is skipped")
        else:
            for gradient in gradients.gradients:
                stored_values(gradient).zero_()
            rank_zero_warn(f"{self.owner}: {happened}; all gradients of this step are set to zero")

    def act_on_device(self, optimizer: Optimizer, gradients: StepGradients, nonfinite: Tensor, *, scaled: bool) -> None:
        """Act where only the device knows whether the step is `nonfinite`, ``()``, and tell of it later."""
        self.deferred = gradients.parameters
        if scaled:
            return
        if self.choice == "zero":
            for gradient in gradients.gradients:  # NaN times 0 is NaN
                values = stored_values(gradient)
                values.masked_fill_(nonfinite.to(values.device, non_blocking=True), 0.0)
        else:
            _set_for_one_step(optimizer, nonfinite.float())

    def tell(self, names: dict[Tensor, str], report: Report, *, step: int, scaled: bool) -> None:
        """Tell of the steps acted on unseen, of which the report was read before step number `step`."""
        parameters, self.deferred = self.deferred, None
        if parameters is None or report.longest_run == 0:
            return
        happened = f"the gradient of {_name(names, parameters, report.culprit)} was not finite"
        self._stop_after(report.longest_run, happened)
        if scaled:
            return
        happened += f", last seen before step {step}; {report.skipped_steps:.0f} such steps so far"
        if self.choice == "raise":
            raise NonFiniteGradientError(f"{self.owner}(nonfinite='raise'): {happened}")
        done = "were skipped" if self.choice == "skip" else "were made with gradients of zero"
        rank_zero_warn(f"{self.owner}: {happened}; these updates {done}")

    def _stop_after(self, run: int, happened: str) -> None:
        if run >= self.most:
            raise NonFiniteGradientError(
                f"{self.owner}: gradients were not finite for {run} steps in a row (max_nonfinite="
                f"{self.most}), and {happened}. The training does not come back from this by itself: lower the "
                "learning rate, look for NaN in the data or the loss, or go back to an earlier checkpoint."
            )


def leaves_out_updates(optimizer: Optimizer) -> bool:
    """Whether the optimizer's kernel itself makes no update when the device finds its `found_inf` set."""
    if isinstance(optimizer, SGD) and any(group["momentum"] for group in optimizer.param_groups):
        return False  # leaving out the first update, torch's fused SGD keeps an uninitialised momentum buffer
    return isinstance(optimizer, SGD | Adam | Adagrad) and getattr(optimizer, "_step_supports_amp_scaling", False)


def rank_zero_warn(message: str) -> None:
    """Warn on the first rank."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank()):
        warnings.warn(message, stacklevel=3)


_flags: WeakKeyDictionary[Optimizer, tuple[Tensor, RemovableHandle]] = WeakKeyDictionary()


def _set_for_one_step(optimizer: Optimizer, found_inf: Tensor) -> None:
    """Hand torch's fused kernels the flag that they read, and take it away when the step has been made."""
    vars(optimizer)["found_inf"] = found_inf
    handle = _flags[optimizer][1] if optimizer in _flags else optimizer.register_step_post_hook(_take_flag)
    _flags[optimizer] = found_inf, handle


def _take_flag(optimizer: Optimizer, *_: Any) -> None:
    flag, _handle = _flags[optimizer]
    if vars(optimizer).get("found_inf") is flag:  # and not that of a gradient scaler, which takes it away itself
        del vars(optimizer)["found_inf"]


def forget_flag(optimizer: Optimizer) -> None:
    """Leave the optimizer as it was."""
    if optimizer in _flags:
        _take_flag(optimizer)
        _flags.pop(optimizer)[1].remove()


def _name(names: dict[Tensor, str], parameters: list[Tensor], index: int) -> str:
    name = names.get(parameters[index]) if 0 <= index < len(parameters) else None
    return "a parameter" if name is None else f"parameter {name!r}"
