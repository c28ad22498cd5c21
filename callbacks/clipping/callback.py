"""Clipping by a threshold that follows the gradients; non-finite gradients are kept out of the weights."""

import math
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from rnn_blocks.callbacks.clipping.nonfinite import NonFiniteGradients, leaves_out_updates
from rnn_blocks.callbacks.clipping.policies import SCOPES, Auto, ClippingPolicy, Scope, Step
from rnn_blocks.callbacks.clipping.record import ClippingRecord, Report, join_groups, read_reports
from rnn_blocks.callbacks.clipping.rows import Rows
from rnn_blocks.callbacks.clipping.units import Groups, Parameters, Units, Whole
from rnn_blocks.callbacks.clipping.update_bound import UpdateBounds
from rnn_blocks.callbacks.measuring.step import StepGradients, forget_steps, shared_step
from rnn_blocks.callbacks.trainer import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    callbacks_of,
    gradient_scaler,
    is_logging_step,
    is_overridden,
    log_metrics,
    metric_suffix,
    rank_zero_warn,
    refuse_unsupported_optimizer,
    refuse_unsupported_strategy,
)

UNITS: dict[Scope, type[Units]] = {"global": Whole, "group": Groups, "parameter": Parameters, "unit": Rows}


class AdaptiveGradientClipping(Callback):
    """Clips the gradient norms of each optimizer to a threshold that nobody has to set.

    Works on whole (accumulated), unscaled gradients, under automatic and manual optimisation, in any precision that
    Lightning has. Every optimizer has its own history.

    *Scope* is what is measured and clipped as one, with a threshold and a history of its own:

    ==============================  ==============================================================================
    ``"global"``                    all gradients of the optimizer: the direction of the step stays as it is
    ``"group"``                     each of its parameter groups
    ``"parameter"``                 each parameter
    ``"unit"``                      each output unit: row of a matrix, of an embedding or of a convolution's weight;
                                    a bias or other vector as a whole (as in NFNets)
    ==============================  ==============================================================================

    *Learning rate.* With `Auto` and an optimizer other than SGD, updates that would be longer than 5 % of the initial
    weights, in the middle one of the weight matrices, are shortened through the learning rate, for the time of the step
    alone; all else sees the rate you set.

    What has no gradient in a step is neither observed nor clipped, as are rows that a sparse gradient does not store.
    Parameter groups that are added during a training begin a history of their own.

    *Metrics*, logged on the trainer's logging steps, each name ending in `/optimizer_0`, … where there are several
    optimizers:

    ==============================  ==============================================================================
    `grad_clip/threshold`           norm above which this step was clipped; left out while nothing is known, and
                                    in all scopes but ``"global"``
    `grad_clip/coefficient`         what this step's gradient was multiplied by, the lowest of all units; 0 where
                                    it was not finite
    `grad_clip/clipped_fraction`    share of the steps since the last log that were clipped: of all units in all
                                    of these steps
    `grad_clip/update_coefficient`  what this step's learning rate was multiplied by, so that the update of Adam or
                                    its kin is not too long; only with a policy that bounds it (`Auto`)
    `grad_clip/skipped_steps`       steps with a non-finite gradient so far
    ==============================  ==============================================================================

    *Non-finite gradients.* ``"skip"`` leaves out the update: weights and the optimizer's state stay as they are, and a
    warning names a parameter at fault. ``"zero"`` sets every gradient of the step to 0 and makes the update, so that
    momentum and weight decay act. ``"raise"`` stops. None of them enters the history. Under ``precision="16-mixed"``
    all three leave overflows to the gradient scaler, which skips the update and lowers its scale; as long a row of them
    still stops the training. All ranks see the same reduced gradients and so act alike.

    *Cost.* Nothing is read from the device between logging steps, with one exception: to skip an update (or to raise)
    on an accelerator, one flag is read a step, unless the optimizer is fused and can leave out an update by itself.
    There, and with ``"zero"``, warnings and errors wait for the next logging step.
    `Auto` and `Percentile` sort the window of every unit at every step, which in the scope ``"unit"`` is felt: with
    `Auto` on a CPU, 2 to 3 ms for each 1,000 rows. A shorter `window` costs less.

    Args:
        policy: how the threshold is found: ``"auto"`` for `Auto()`, or any `ClippingPolicy`.
        scope: what has a threshold of its own (see above); None: the scope that the policy was made for, which is
            ``"global"`` for all but `EmaRatio` (``"parameter"``) and `Unitwise` (``"unit"``).
        nonfinite: what to do about a gradient with NaN or infinity: ``"skip"``, ``"zero"`` or ``"raise"``.
        max_nonfinite: so many steps in a row with a non-finite gradient end the training. The default is above the 16
            halvings that a gradient scaler may take from its initial scale of 65,536 down to 1.
        name: what metrics begin with. Two instances in one trainer, which clip one after the other, need two names.

    Raises:
        ValueError: a setting is not one of its choices.
        MisconfigurationException: at the start of a fit, if the trainer clips by itself (`gradient_clip_val`), if
            gradients cannot be clipped there (DeepSpeed, FSDP1, LBFGS), if another instance has the same name, or if
            a checkpoint's history is of other parameters.
        NonFiniteGradientError: see above.

    >>> from lightning.pytorch import Trainer
    >>> clipping = AdaptiveGradientClipping()
    >>> trainer = Trainer(callbacks=[clipping], logger=False, enable_checkpointing=False, accelerator="cpu")
    >>> clipping.policy
    Auto(longest_step=0.08, longest_update=0.05, deviations=2.5, window=64)
    """

    def __init__(
        self,
        policy: ClippingPolicy | Literal["auto"] = "auto",
        *,
        scope: Scope | None = None,
        nonfinite: Literal["skip", "zero", "raise"] = "skip",
        max_nonfinite: int = 25,
        name: str = "grad_clip",
    ) -> None:
        if policy != "auto" and not isinstance(policy, ClippingPolicy):
            raise ValueError(
                f"AdaptiveGradientClipping: policy is {policy!r}; it must be 'auto' or a ClippingPolicy, "
                "such as Fixed(5.0)"
            )
        if scope is not None and scope not in SCOPES:
            raise ValueError(
                f"AdaptiveGradientClipping: scope is {scope!r}; choose one of {', '.join(map(repr, SCOPES))}, "
                "or None for the policy's own"
            )
        if not name:
            raise ValueError("AdaptiveGradientClipping: name is ''; it must have a character at least")
        self.policy: ClippingPolicy = Auto() if isinstance(policy, str) else policy
        self.scope: Scope = self.policy.default_scope if scope is None else scope
        self.nonfinite = nonfinite
        self.max_nonfinite = max_nonfinite
        self._nonfinite = NonFiniteGradients(nonfinite, max_nonfinite)
        self.name = name
        self._units: dict[int, Units] = {}
        self._num_ranks = 1
        self._saved_num_ranks: int | None = None
        self._records: dict[int, ClippingRecord] = {}
        self._due: set[int] = set()
        self._updates = UpdateBounds()

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps the history: two instances of different settings each have their own."""
        return self._generate_state_key(name=self.name, policy=self.policy, scope=self.scope, nonfinite=self.nonfinite)

    def state_dict(self) -> dict[str, Any]:
        """History and counts of each optimizer, by its index: dicts, lists, numbers, strings and tensors only."""
        return {
            "policy": repr(self.policy),
            "scope": self.scope,
            "num_ranks": self._num_ranks,
            "optimizers": {str(index): record.state_dict() for index, record in self._records.items()},
            "updates": self._updates.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's history.

        Raises:
            ValueError: the history is of another policy or scope.
        """
        for setting, here in (("policy", repr(self.policy)), ("scope", self.scope)):
            if state_dict[setting] != here:
                raise ValueError(
                    f"AdaptiveGradientClipping: the checkpoint's history is of the {setting} {state_dict[setting]}, "
                    f"and this instance has {here}; give it the same {setting}, or begin without that history"
                )
        self._saved_num_ranks = state_dict["num_ranks"]
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
        others = callbacks_of(trainer, self)
        if any(isinstance(other, AdaptiveGradientClipping) and other.name == self.name for other in others):
            raise MisconfigurationException(
                f"Two callbacks AdaptiveGradientClipping are named {self.name!r} and would log the same metrics. "
                "Remove one, or give it another `name`."
            )
        if pl_module.automatic_optimization and is_overridden("configure_gradient_clipping", pl_module):
            rank_zero_warn(
                f"{type(pl_module).__name__}.configure_gradient_clipping runs after AdaptiveGradientClipping. What it "
                "does to the gradients comes on top, and is in no metric; remove it if it clips."
            )
        self._num_ranks = trainer.world_size
        self._saved_num_ranks = None
        self._units.clear()
        self._due.clear()
        self._nonfinite.clear()
        if trainer.global_step == 0:  # another training's norms and weights say nothing of this one
            self._records.clear()
            self._updates.clear()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers whose gradients must not be changed."""
        refuse_unsupported_optimizer(trainer, "AdaptiveGradientClipping")
        forget_steps(trainer.optimizers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse the history of other optimizers or parameters; tell if it is of another number of ranks."""
        optimizers = trainer.optimizers
        if self._records and max(self._records) >= len(optimizers):
            raise MisconfigurationException(
                f"AdaptiveGradientClipping has the history of an optimizer {max(self._records)}, but there are only "
                f"{len(optimizers)} here. Use a new instance for a new model, or the checkpoint of this one."
            )
        for index, record in self._records.items():
            self._refuse_other_units(index, record, self._units_of(index, optimizers[index]))
        saved, self._saved_num_ranks = self._saved_num_ranks, None
        if saved not in (None, self._num_ranks):
            rank_zero_warn(
                f"AdaptiveGradientClipping: the checkpoint's gradient norms are of a training on {saved} ranks, and "
                f"there are {self._num_ranks} now. If that changes how many samples a gradient is the mean of, it "
                "changes the norms too; the history follows within its window, and until then thresholds may be off."
            )
        self._updates.start(optimizers, self.policy.longest_update)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the threshold, put the norm into the history, and clip."""
        gradients = shared_step(optimizer, self, gradient_scaler(trainer))
        if not gradients.parameters:  # training_step returned None
            return
        index = trainer.optimizers.index(optimizer)
        units = self._units_of(index, optimizer)
        norm = units.norms(gradients)
        record = self._record_step(index, optimizer, gradients, units, norm)
        scaled = gradient_scaler(trainer) is not None
        if self._reads_flags(optimizer, record, scaled):
            nonfinite, clipped = record.flags.tolist()
            changed = nonfinite or clipped
            if clipped:
                units.multiply_(gradients, record.coefficient, read=True)
            if nonfinite:
                self._nonfinite.act(trainer, pl_module, gradients, record.read_run())
        else:
            record.remember_culprit(gradients.norms)
            units.multiply_(gradients, record.coefficient, read=False)
            self._nonfinite.act_on_device(trainer, optimizer, gradients, record.flags[0], index)
            changed = True
        gradients.clipped_norms = (
            units.clipped_norms(gradients, norm, record.coefficient) if changed else gradients.current_norms
        )
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
            by_suffix = {metric_suffix(trainer, index): reports[index] for index in indices}
            log_metrics(trainer, _metrics(self.name, by_suffix))
            updates = {metric_suffix(trainer, index): self._updates.coefficient(index) for index in indices}
            log_metrics(
                trainer, {f"{self.name}/update_coefficient{at}": c for at, c in updates.items() if c is not None}
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell of what has not been told since the last logging step."""
        if self._nonfinite.deferred:
            self._read(trainer, pl_module, self._nonfinite.deferred)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers as they were."""
        self._updates.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers as they were."""
        self._updates.stop()

    def _units_of(self, index: int, optimizer: Optimizer) -> Units:
        units = self._units.get(index)
        if units is None or not units.fits(optimizer):
            units = self._units[index] = UNITS[self.scope](optimizer)
        return units

    def _record_step(
        self, index: int, optimizer: Optimizer, gradients: StepGradients, units: Units, norm: Tensor
    ) -> ClippingRecord:
        record = self._records.get(index)
        if record is None:
            record = self._records[index] = ClippingRecord()
        if len(record.weight_norms) < len(units.sizes):
            known = len(record.weight_norms)
            record.to(norm.device)
            norms = [norms.to(norm) for norms in units.weight_norms(optimizer, first_group=known)]
            record.add_groups(norms, self.policy)
        self._refuse_other_units(index, record, units)
        record.to(norm.device)
        nonfinite = ~(gradients.clipped_total < math.inf)  # NaN too, in a quarter of the operations of `isfinite`
        if norm.ndim:  # the whole step is kept out of the histories, though some of its units may be finite
            norm = norm.masked_fill(nonfinite, math.nan)
        step = Step(norm, units.learning_rate(optimizer, gradients), record.initial_weight_norm)
        if self.policy.uses_weights:
            now = [norms.to(norm, non_blocking=True) for norms in units.weight_norms(optimizer)]
            step = step._replace(weight_norm=join_groups(now))
        clip = self.policy.clip(record.history, step)
        record.history = self.policy.observe(record.history, step)
        record.count(norm, clip, nonfinite, units.count(gradients))
        return record

    def _refuse_other_units(self, index: int, record: ClippingRecord, units: Units) -> None:
        if record.sizes != units.sizes[: len(record.sizes)]:
            raise MisconfigurationException(
                f"AdaptiveGradientClipping(scope={self.scope!r}) has the history of an optimizer {index} whose "
                f"parameter groups have {record.sizes} units, but here they have {units.sizes}. Use a new instance for "
                "a new model, or the checkpoint of this one; give parameters that are added later a group of their own."
            )

    def _reads_flags(self, optimizer: Optimizer, record: ClippingRecord, scaled: bool) -> bool:
        # Reading is free on a CPU. Elsewhere it makes the host wait, and is done only where nothing else can be right:
        # an update on zero gradients is not a skipped update, for momentum and weight decay act in it.
        if record.flags.device.type == "cpu":
            return True
        return self.nonfinite != "zero" and not scaled and not leaves_out_updates(optimizer)

    def _read(self, trainer: Trainer, pl_module: LightningModule, indices: list[int]) -> dict[int, Report]:
        reports = dict(zip(indices, read_reports([self._records[index] for index in indices]), strict=True))
        self._nonfinite.tell(trainer, pl_module, reports)
        return reports


def _metrics(prefix: str, reports: dict[str, Report]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for suffix, report in reports.items():
        if math.isfinite(report.threshold):
            metrics[f"{prefix}/threshold{suffix}"] = report.threshold
        for name in ("coefficient", "clipped_fraction", "skipped_steps"):
            metrics[f"{prefix}/{name}{suffix}"] = getattr(report, name)
    return metrics
