"""Clipping by a threshold that follows the gradients; non-finite gradients are kept out of the weights."""

import math
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Optimizer

from rnn_blocks.callbacks.clipping_record import ClippingRecord, Report, read_reports
from rnn_blocks.callbacks.gradient_norms import (
    StepGradients,
    forget_steps,
    gradient_scaler,
    scale_,
    shared_step,
    stored_values,
)
from rnn_blocks.callbacks.policies import Auto, ClippingPolicy, Step
from rnn_blocks.callbacks.support import (
    is_logging_step,
    log_metrics,
    metric_suffix,
    parameter_names,
    refuse_unsupported_optimizer,
    refuse_unsupported_strategy,
)
from rnn_blocks.callbacks.update_bound import UpdateBounds
from rnn_blocks.callbacks.update_length import effective_learning_rate, weight_norms

NONFINITE = ("skip", "zero", "raise")


class NonFiniteGradientError(RuntimeError):
    """A gradient held NaN or infinity: with ``nonfinite="raise"`` once, else `max_nonfinite` times in a row."""


class AdaptiveGradientClipping(Callback):
    """Clips the global gradient norm of each optimizer to a threshold that nobody has to set.

    Works on whole (accumulated), unscaled gradients, under automatic and manual optimisation, in any precision that
    Lightning has. Every optimizer has its own history.

    ==============================  ==============================================================================
    `grad_clip/threshold`           norm above which this step was clipped; left out while nothing is known
    `grad_clip/coefficient`         what this step's gradient was multiplied by; 0 where it was not finite
    `grad_clip/clipped_fraction`    share of the steps since the last log that were clipped
    `grad_clip/skipped_steps`       steps with a non-finite gradient so far
    ==============================  ==============================================================================

    Logged on the trainer's logging steps, each name ending in `/optimizer_0`, … where there are several optimizers.

    *Non-finite gradients.* ``"skip"`` leaves out the update: weights and the optimizer's state stay as they are, and a
    warning names a parameter at fault. ``"zero"`` sets every gradient of the step to 0 and makes the update, so that
    momentum and weight decay act. ``"raise"`` stops. None of them enters the history. Under ``precision="16-mixed"``
    all three leave overflows to the gradient scaler, which skips the update and lowers its scale; as long a row of them
    still stops the training. All ranks see the same reduced gradients and so act alike.

    *Cost.* Nothing is read from the device between logging steps, with one exception: to skip an update (or to raise)
    on an accelerator, one flag is read a step, unless the optimizer is fused and can leave out an update by itself.
    There, and with ``"zero"``, warnings and errors wait for the next logging step.

    Args:
        policy: how the threshold is found: ``"auto"`` for `Auto()`, or any `ClippingPolicy`.
        nonfinite: what to do about a gradient with NaN or infinity: ``"skip"``, ``"zero"`` or ``"raise"``.
        max_nonfinite: so many steps in a row with a non-finite gradient end the training. The default is above the 16
            halvings that a gradient scaler may take from its initial scale of 65,536 down to 1.

    Raises:
        ValueError: a setting is not one of its choices.
        MisconfigurationException: at the start of a fit, if the trainer clips by itself (`gradient_clip_val`) or if
            gradients cannot be clipped there (DeepSpeed, FSDP1, LBFGS).
        NonFiniteGradientError: see above.

    >>> from lightning.pytorch import Trainer
    >>> clipping = AdaptiveGradientClipping()
    >>> trainer = Trainer(callbacks=[clipping], logger=False, enable_checkpointing=False, accelerator="cpu")
    >>> clipping.policy
    Auto(update_ratio=0.05, deviations=2.5, window=64)
    """

    def __init__(
        self,
        policy: ClippingPolicy | Literal["auto"] = "auto",
        *,
        nonfinite: Literal["skip", "zero", "raise"] = "skip",
        max_nonfinite: int = 25,
    ) -> None:
        if policy != "auto" and not isinstance(policy, ClippingPolicy):
            raise ValueError(
                f"AdaptiveGradientClipping: policy is {policy!r}; it must be 'auto' or a ClippingPolicy, "
                "such as Fixed(5.0)"
            )
        if nonfinite not in NONFINITE:
            raise ValueError(
                f"AdaptiveGradientClipping: nonfinite is {nonfinite!r}; choose one of {', '.join(map(repr, NONFINITE))}"
            )
        if max_nonfinite < 1:
            raise ValueError(f"AdaptiveGradientClipping: max_nonfinite is {max_nonfinite!r}; it must be at least 1")
        self.policy: ClippingPolicy = Auto() if isinstance(policy, str) else policy
        self.nonfinite = nonfinite
        self.max_nonfinite = max_nonfinite
        self._records: dict[int, ClippingRecord] = {}
        self._due: set[int] = set()
        self._deferred: dict[int, list[Tensor]] = {}
        self._updates = UpdateBounds()

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps the history: two instances of different settings each have their own."""
        return self._generate_state_key(policy=self.policy, nonfinite=self.nonfinite)

    def state_dict(self) -> dict[str, Any]:
        """History and counts of each optimizer, by its index: dicts, lists, numbers and tensors only."""
        return {
            "optimizers": {str(index): record.state_dict() for index, record in self._records.items()},
            "updates": self._updates.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's history."""
        self._records = {
            int(index): ClippingRecord.from_state_dict(state) for index, state in state_dict["optimizers"].items()
        }
        self._updates.load_state_dict(state_dict["updates"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a trainer that clips by itself, and strategies whose gradients cannot be clipped from outside."""
        if stage != "fit":
            return
        refuse_unsupported_strategy(trainer, "AdaptiveGradientClipping")
        if trainer.gradient_clip_val:
            raise MisconfigurationException(
                f"Trainer(gradient_clip_val={trainer.gradient_clip_val!r}) and AdaptiveGradientClipping would clip the "
                "same gradients twice. Remove `gradient_clip_val`; for that threshold in particular use "
                f"AdaptiveGradientClipping(Fixed({trainer.gradient_clip_val!r}))."
            )
        self._due.clear()
        self._deferred.clear()
        if trainer.global_step == 0:  # another training's norms and weights say nothing of this one
            self._records.clear()
            self._updates.clear()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers whose gradients must not be changed."""
        refuse_unsupported_optimizer(trainer, "AdaptiveGradientClipping")
        forget_steps(trainer.optimizers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse the history of another set of optimizers."""
        if self._records and max(self._records) >= len(trainer.optimizers):
            raise MisconfigurationException(
                f"AdaptiveGradientClipping has the history of an optimizer {max(self._records)}, but there are only "
                f"{len(trainer.optimizers)} here. Use a new instance for a new model, or the checkpoint of this one."
            )
        self._updates.start(trainer.optimizers, self.policy.longest_update)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the threshold, put the norm into the history, and clip."""
        gradients = shared_step(trainer, optimizer, self)
        if not gradients.parameters:  # training_step returned None
            return
        index = trainer.optimizers.index(optimizer)
        record = self._record_step(index, optimizer, gradients)
        scaled = gradient_scaler(trainer) is not None
        if self._reads_flags(optimizer, record, scaled):
            nonfinite, clipped = record.flags.tolist()
            if clipped:
                scale_(gradients.gradients, record.coefficient)
            if nonfinite:
                self._act_on_nonfinite(trainer, pl_module, gradients, record, scaled)
        else:
            self._act_on_the_device(optimizer, gradients, record, scaled)
            self._deferred[index] = gradients.parameters
        gradients.clipped_norms = gradients.current_norms * record.coefficient
        if is_logging_step(trainer):
            self._due.add(index)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log, in one transfer from the device."""
        for optimizer in trainer.optimizers:
            vars(optimizer).pop("found_inf", None)
        if self._due:
            indices, self._due = sorted(self._due), set()
            reports = self._read(trainer, pl_module, indices)
            log_metrics(trainer, _metrics({metric_suffix(trainer, index): reports[index] for index in indices}))
            coefficients = {metric_suffix(trainer, index): self._updates.coefficient(index) for index in indices}
            bounded = {f"grad_clip/update_coefficient{at}": c for at, c in coefficients.items() if c is not None}
            log_metrics(trainer, bounded)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell of what has not been told since the last logging step."""
        if self._deferred:
            self._read(trainer, pl_module, sorted(self._deferred))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers as they were; after an error too."""
        self._updates.stop()

    def _record_step(self, index: int, optimizer: Optimizer, gradients: StepGradients) -> ClippingRecord:
        norm = gradients.clipped_total
        record = self._records.get(index)
        if record is None:
            record = self._records[index] = ClippingRecord(self.policy.initial_history(norm))
        if len(record.weight_norms) < len(optimizer.param_groups):
            record.add_weight_norms(weight_norms(optimizer, first_group=len(record.weight_norms)))
        record.to(norm.device)
        step = Step(norm, effective_learning_rate(optimizer, gradients), record.initial_weight_norm)
        clip = self.policy.clip(record.history, step)
        record.history = self.policy.observe(record.history, step)
        record.count(norm, clip)
        return record

    def _reads_flags(self, optimizer: Optimizer, record: ClippingRecord, scaled: bool) -> bool:
        # Reading is free on a CPU. Elsewhere it makes the host wait, and is done only where nothing else can be right:
        # an update on zero gradients is not a skipped update, for momentum and weight decay act in it.
        if record.flags.device.type == "cpu":
            return True
        return self.nonfinite != "zero" and not scaled and not _leaves_out_updates(optimizer)

    def _act_on_nonfinite(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        gradients: StepGradients,
        record: ClippingRecord,
        scaled: bool,
    ) -> None:
        culprit = int(gradients.norms.isfinite().int().argmin())
        happened = f"the gradient of {_name(pl_module, gradients.parameters, culprit)} is not finite"
        self._stop_after(record.read_run(), happened)
        if scaled:  # the scaler has seen it too, skips the update and lowers its scale
            return
        happened += f" at step {trainer.global_step}"
        if self.nonfinite == "raise":
            raise NonFiniteGradientError(f"AdaptiveGradientClipping(nonfinite='raise'): {happened}")
        if self.nonfinite == "skip":
            for parameter in gradients.parameters:
                parameter.grad = None  # an optimizer passes over such a parameter and its state
            rank_zero_warn(f"AdaptiveGradientClipping: {happened}; the update is skipped")
        else:
            for gradient in gradients.gradients:
                stored_values(gradient).zero_()
            rank_zero_warn(f"AdaptiveGradientClipping: {happened}; all gradients of this step are set to zero")

    def _act_on_the_device(
        self, optimizer: Optimizer, gradients: StepGradients, record: ClippingRecord, scaled: bool
    ) -> None:
        record.remember_culprit(gradients.norms)
        scale_(gradients.gradients, record.coefficient)
        nonfinite = record.flags[0]
        if scaled:
            return
        if self.nonfinite == "zero":
            for gradient in gradients.gradients:  # NaN times 0 is NaN
                values = stored_values(gradient)
                values.masked_fill_(nonfinite.to(values.device), 0.0)
        else:
            optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]  # read by torch's fused kernels

    def _read(self, trainer: Trainer, pl_module: LightningModule, indices: list[int]) -> dict[int, Report]:
        reports = dict(zip(indices, read_reports([self._records[index] for index in indices]), strict=True))
        for index, report in reports.items():
            parameters = self._deferred.pop(index, None)
            if parameters is None or report.longest_run == 0:
                continue
            happened = f"the gradient of {_name(pl_module, parameters, report.culprit)} was not finite"
            self._stop_after(report.longest_run, happened)
            if gradient_scaler(trainer) is not None:
                continue
            happened += f", last seen before step {trainer.global_step}; {report.skipped_steps:.0f} such steps so far"
            if self.nonfinite == "raise":
                raise NonFiniteGradientError(f"AdaptiveGradientClipping(nonfinite='raise'): {happened}")
            done = "were skipped" if self.nonfinite == "skip" else "were made with gradients of zero"
            rank_zero_warn(f"AdaptiveGradientClipping: {happened}; these updates {done}")
        return reports

    def _stop_after(self, run: int, happened: str) -> None:
        if run >= self.max_nonfinite:
            raise NonFiniteGradientError(
                f"AdaptiveGradientClipping: gradients were not finite for {run} steps in a row (max_nonfinite="
                f"{self.max_nonfinite}), and {happened}. The training does not come back from this by itself: lower "
                "the learning rate, look for NaN in the data or the loss, or go back to an earlier checkpoint."
            )


def _leaves_out_updates(optimizer: Optimizer) -> bool:
    """Whether the optimizer's kernel itself makes no update when the device finds its `found_inf` set."""
    if isinstance(optimizer, SGD) and any(group["momentum"] for group in optimizer.param_groups):
        return False  # leaving out the first update, torch's fused SGD keeps an uninitialised momentum buffer
    return isinstance(optimizer, SGD | Adam | Adagrad) and getattr(optimizer, "_step_supports_amp_scaling", False)


def _name(module: LightningModule, parameters: list[Tensor], index: int) -> str:
    name = parameter_names(module).get(parameters[index]) if 0 <= index < len(parameters) else None
    return "a parameter" if name is None else f"parameter {name!r}"


def _metrics(reports: dict[str, Report]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for suffix, report in reports.items():
        if math.isfinite(report.threshold):
            metrics[f"grad_clip/threshold{suffix}"] = report.threshold
        for name in ("coefficient", "clipped_fraction", "skipped_steps"):
            metrics[f"grad_clip/{name}{suffix}"] = getattr(report, name)
    return metrics
