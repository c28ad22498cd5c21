"""Gradients with NaN or infinity: kept out of the weights, told of, and an error when there are too many."""

from typing import Literal

from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Optimizer

from rnn_blocks.callbacks.clipping.record import Report
from rnn_blocks.callbacks.measuring.norms import stored_values
from rnn_blocks.callbacks.measuring.step import StepGradients
from rnn_blocks.callbacks.trainer import LightningModule, Trainer, gradient_scaler, parameter_names, rank_zero_warn

CHOICES = ("skip", "zero", "raise")


class NonFiniteGradientError(RuntimeError):
    """A gradient held NaN or infinity: with ``nonfinite="raise"`` once, else `max_nonfinite` times in a row."""


class NonFiniteGradients:
    """What `AdaptiveGradientClipping` does about them; see there.

    Args:
        choice: ``"skip"``, ``"zero"`` or ``"raise"``.
        most: so many steps in a row end the training.

    Raises:
        ValueError: a setting is not one of its choices.
    """

    def __init__(self, choice: Literal["skip", "zero", "raise"], most: int) -> None:
        if choice not in CHOICES:
            raise ValueError(
                f"AdaptiveGradientClipping: nonfinite is {choice!r}; choose one of {', '.join(map(repr, CHOICES))}"
            )
        if most < 1:
            raise ValueError(f"AdaptiveGradientClipping: max_nonfinite is {most!r}; it must be at least 1")
        self.choice = choice
        self.most = most
        self._deferred: dict[int, list[Tensor]] = {}

    @property
    def deferred(self) -> list[int]:
        """Optimizers with steps that have been acted on, but not told of."""
        return sorted(self._deferred)

    def clear(self) -> None:
        """Forget what has not been told of."""
        self._deferred.clear()

    def act(self, trainer: Trainer, module: LightningModule, gradients: StepGradients, run: int) -> None:
        """Act on a step that is known to be non-finite, the last of `run` in a row."""
        culprit = int(gradients.norms.isfinite().int().argmin())
        happened = f"the gradient of {_name(module, gradients.parameters, culprit)} is not finite"
        self._stop_after(run, happened)
        if gradient_scaler(trainer) is not None:  # it has seen it too, skips the update and lowers its scale
            return
        happened += f" at step {trainer.global_step}"
        if self.choice == "raise":
            raise NonFiniteGradientError(f"AdaptiveGradientClipping(nonfinite='raise'): {happened}")
        if self.choice == "skip":
            for parameter in gradients.parameters:
                parameter.grad = None  # an optimizer passes over such a parameter and its state
            rank_zero_warn(f"AdaptiveGradientClipping: {happened}; the update is skipped")
        else:
            for gradient in gradients.gradients:
                stored_values(gradient).zero_()
            rank_zero_warn(f"AdaptiveGradientClipping: {happened}; all gradients of this step are set to zero")

    def act_on_device(
        self, trainer: Trainer, optimizer: Optimizer, gradients: StepGradients, nonfinite: Tensor, index: int
    ) -> None:
        """Act where only the device knows whether the step is `nonfinite`, ``()``, and tell of it later."""
        self._deferred[index] = gradients.parameters
        if gradient_scaler(trainer) is not None:
            return
        if self.choice == "zero":
            for gradient in gradients.gradients:  # NaN times 0 is NaN
                values = stored_values(gradient)
                values.masked_fill_(nonfinite.to(values.device, non_blocking=True), 0.0)
        else:
            optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]  # read by torch's fused kernels

    def tell(self, trainer: Trainer, module: LightningModule, reports: dict[int, Report]) -> None:
        """Tell of the steps acted on unseen, from the reports by optimizer."""
        for index, report in reports.items():
            parameters = self._deferred.pop(index, None)
            if parameters is None or report.longest_run == 0:
                continue
            happened = f"the gradient of {_name(module, parameters, report.culprit)} was not finite"
            self._stop_after(report.longest_run, happened)
            if gradient_scaler(trainer) is not None:
                continue
            happened += f", last seen before step {trainer.global_step}; {report.skipped_steps:.0f} such steps so far"
            if self.choice == "raise":
                raise NonFiniteGradientError(f"AdaptiveGradientClipping(nonfinite='raise'): {happened}")
            done = "were skipped" if self.choice == "skip" else "were made with gradients of zero"
            rank_zero_warn(f"AdaptiveGradientClipping: {happened}; these updates {done}")

    def _stop_after(self, run: int, happened: str) -> None:
        if run >= self.most:
            raise NonFiniteGradientError(
                f"AdaptiveGradientClipping: gradients were not finite for {run} steps in a row (max_nonfinite="
                f"{self.most}), and {happened}. The training does not come back from this by itself: lower the "
                "learning rate, look for NaN in the data or the loss, or go back to an earlier checkpoint."
            )


def leaves_out_updates(optimizer: Optimizer) -> bool:
    """Whether the optimizer's kernel itself makes no update when the device finds its `found_inf` set."""
    if isinstance(optimizer, SGD) and any(group["momentum"] for group in optimizer.param_groups):
        return False  # leaving out the first update, torch's fused SGD keeps an uninitialised momentum buffer
    return isinstance(optimizer, SGD | Adam | Adagrad) and getattr(optimizer, "_step_supports_amp_scaling", False)


def _name(module: LightningModule, parameters: list[Tensor], index: int) -> str:
    name = parameter_names(module).get(parameters[index]) if 0 <= index < len(parameters) else None
    return "a parameter" if name is None else f"parameter {name!r}"
