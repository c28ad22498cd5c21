"""Clipping one optimizer's gradients by a threshold that follows them, in any training loop: torch alone."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import ASGD, LBFGS, SGD, Optimizer, Rprop

from rnn_blocks.callbacks.clipping.nonfinite import NonFiniteGradients, forget_flag, leaves_out_updates
from rnn_blocks.callbacks.clipping.policies import Clip, ClippingPolicy, Scope, Step
from rnn_blocks.callbacks.clipping.record import ClippingRecord, Report, join_groups, read_reports
from rnn_blocks.callbacks.clipping.rows import ByRow
from rnn_blocks.callbacks.clipping.settings import checked_settings, listed, refuse_other_settings
from rnn_blocks.callbacks.clipping.units import ByGroup, ByParameter, Units, Whole
from rnn_blocks.callbacks.clipping.update_bound import UpdateBound
from rnn_blocks.callbacks.clipping.update_length import forget_velocity, highest_momentum
from rnn_blocks.callbacks.measuring import numbers
from rnn_blocks.callbacks.measuring.optimizers import behind_handle, innermost
from rnn_blocks.callbacks.measuring.parameters import Chosen
from rnn_blocks.callbacks.measuring.step import ChosenGradients, StepGradients, forget_steps, shared_step

UNITS: dict[Scope, type[Units]] = {"global": Whole, "group": ByGroup, "parameter": ByParameter, "unit": ByRow}


class OtherParametersError(ValueError):
    """A history is of other parameters than those that there are.

    Args:
        found: what is told of both, with a full stop.
        advice: for whoever has to end there.
    """

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found} {advice}")
        self.found = found


class GradientClipper:
    """Clips the gradients of one optimizer to a threshold that nobody has to set, in any training loop.

    What `AdaptiveGradientClipping` does for every optimizer of a Lightning Trainer, without a Trainer, to the bit::

        clipper = GradientClipper(optimizer)
        for batch in batches:
            loss = model.loss(batch)
            loss.backward()
            clipper.clip(loss)  # before every optimizer.step()
            optimizer.step()
            optimizer.zero_grad()

    The loss is what `Auto` needs for its bound on SGD's steps; without one, or with one that does not say how well the
    training is (of a GAN, of a policy gradient), call `clip` without, and outliers alone are clipped.

    See there for scopes, non-finite gradients, metrics and cost. Where gradients accumulate, `clip` is called once
    before the step, as `optimizer.step` is. Under DDP and FSDP2 (`fully_shard`) every rank has its own, and all of them
    act alike.

    The optimizer is the one that you step, be it as Lightning Fabric or Accelerate return it, or a wrapper such as
    Lookahead, whose kind and learning rates are those of what it wraps.

    Args:
        optimizer: whose gradients to clip. Every optimizer has a clipper of its own.
        policy: how the threshold is found: ``"auto"`` for `Auto()`, or any `ClippingPolicy`.
        scope: what has a threshold of its own; None: the scope that the policy was made for.
        nonfinite: what to do about a gradient with NaN or infinity: ``"skip"``, ``"zero"`` or ``"raise"``.
        max_nonfinite: so many steps in a row with a non-finite gradient end the training.
        include: names of the parameters and modules to clip, with ``*`` for anything; None: all parameters. Gradients
            with NaN or infinity are looked for in all of them, and acted on for the whole step.
        exclude: names of those to leave as they are.
        model: what names parameters, in messages and for `include` and `exclude`; not needed where the optimizer was
            made of ``model.named_parameters()``.
        scaler: the gradient scaler of a mixed-precision training. Gradients are unscaled before they are clipped,
            unless that has been done; overflows are left to it.
        name: what metrics begin with.

    Raises:
        ValueError: a setting is not one of its choices, or a name matches no parameter.

    >>> from rnn_blocks.callbacks import Fixed
    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> clipper = GradientClipper(optimizer, Fixed(1.0))
    >>> model(torch.full((1, 3), 100.0)).sum().backward()
    >>> norm = clipper.clip()
    >>> round(norm.item(), 1), round(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item(), 3)
    (173.2, 1.0)
    >>> clipper.metrics()["grad_clip/clipped_fraction"]
    1.0
    """

    called: ClassVar[str] = "GradientClipper"

    def __init__(
        self,
        optimizer: Optimizer,
        policy: ClippingPolicy | Literal["auto"] = "auto",
        *,
        scope: Scope | None = None,
        nonfinite: Literal["skip", "zero", "raise"] = "skip",
        max_nonfinite: int = 25,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] = (),
        model: nn.Module | None = None,
        scaler: torch.amp.GradScaler | None = None,
        name: str = "grad_clip",
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{self.called} needs an optimizer of torch, got {type(optimizer).__name__}")
        self.given, self.optimizer = optimizer, innermost(optimizer)
        self.policy, self.scope = checked_settings(self.called, policy, scope, name)
        self.name = name
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._nonfinite = NonFiniteGradients(self.called, nonfinite, max_nonfinite)
        named, left_out = listed(self.called, "include", include), listed(self.called, "exclude", exclude)
        try:
            self._chosen = Chosen(self.optimizer, model, include=named, exclude=left_out or ())
        except ValueError as error:
            raise ValueError(f"{self.called}: {error}") from None
        if isinstance(self.optimizer, LBFGS):
            raise ValueError(
                f"{self.called} cannot be used with LBFGS: it evaluates several gradients a step, and its line search "
                "needs them as they are"
            )
        self._stepped = False
        self._units: Units | None = None
        self._record: ClippingRecord | None = None
        self._steps = 0
        self._bound: UpdateBound | None = None
        if self.policy.longest_update is not None and not isinstance(self.optimizer, SGD | ASGD | Rprop):
            chosen = None if self._chosen.all else self._chosen
            self._bound = UpdateBound(self.optimizer, self.policy.longest_update, chosen)
            self._bound.attach()

    def clip(self, loss: Tensor | None = None) -> Tensor | None:
        """Put the step's norm into the history, and clip; to be called once before every step of the optimizer.

        Args:
            loss: that the gradients are of, one element, unscaled; where gradients accumulate, its mean over their
                batches. Several ranks must all hand in theirs, or none: their mean counts.

        Returns:
            Norm of the gradients to be clipped, before clipping, ``()``, on their device; None where the optimizer has
            no gradient.

        Raises:
            NonFiniteGradientError: see `nonfinite` and `max_nonfinite`.
            ValueError: the history is of other parameters, or the loss is no tensor, or one of several elements.
        """
        if loss is not None and not isinstance(loss, Tensor):
            raise ValueError(f"{self.called}.clip: loss is {loss!r}; it must be the tensor that backward was called of")
        if loss is not None and loss.numel() != 1:
            raise ValueError(f"{self.called}.clip: loss has shape {tuple(loss.shape)}; it must have one element")
        whole = shared_step(self.given, self, self._scaler)
        step, self._steps = self._steps, self._steps + 1
        gradients = whole if self._chosen.all else ChosenGradients(whole, self._chosen)
        if not whole.parameters:
            return None
        self._stepped = True
        units = self._current_units()
        chosen = bool(gradients.parameters)
        norm = units.norms(gradients) if chosen else whole.norms.new_full((), math.nan)
        total = gradients.clipped_total
        if self.needs_loss and loss is not None:
            loss = self._mean_over_ranks(loss.detach().reshape(()).to(norm))
        else:
            loss = None
        record = (
            self._record_step(whole, gradients, units, norm, loss) if chosen else self._record_unclipped(whole, norm)
        )
        scaled = self._scaler is not None
        if self._reads_flags(norm.device):
            nonfinite, clipped, restart = record.read_flags()
            changed = nonfinite or clipped
            if restart and forget_velocity(self.optimizer, self._chosen.groups()):
                record.restarted = step
            if clipped:
                units.multiply_(gradients, numbers.in_tensors(record.coefficient), read=True)
            if nonfinite:
                self._nonfinite.act(whole, self._chosen.names(), run=record.read_run(), step=step, scaled=scaled)
        else:
            record.remember_culprit(whole.norms)
            if chosen:
                units.multiply_(gradients, record.coefficient, read=False)
            self._nonfinite.act_on_device(self.optimizer, whole, record.flags[0], scaled=scaled)
            changed = True
        if chosen:
            gradients.note_clipped(
                units.clipped_norms(gradients, norm, record.coefficient) if changed else gradients.current_norms
            )
        return total

    @property
    def needs_loss(self) -> bool:
        """Whether `clip` looks at the loss, with this policy and this optimizer."""
        return self.policy.needs_loss(isinstance(self.optimizer, SGD | ASGD))

    def metrics(self) -> dict[str, float]:
        """What `AdaptiveGradientClipping` logs, of the last step and of all since `metrics` was called before.

        Waits for the device; to be called when something is logged, and not at every step. Tells of non-finite
        gradients that it has not told of. Empty before the first step.

        Raises:
            NonFiniteGradientError: as `clip`, where it could not tell.
        """
        return read_metrics([self])[0]

    def summary(self) -> str:
        """What has been done since the first step, in one line; waits for the device.

        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        >>> GradientClipper(optimizer).summary()
        '0 of 0 steps clipped'
        """
        if self._record is None:
            return f"0 of {self._steps:,} steps clipped"
        [report] = read_reports([self._record], afresh=False)
        self._nonfinite.tell(self._chosen.names(), report, step=self._steps, scaled=self._scaler is not None)
        line = f"{report.clipped_steps:,} of {self._steps:,} steps clipped"
        counts = zip(report.by_reason, self.policy.reasons, strict=False)
        why = [f"{count:,} {reason}{'' if count == 1 else 's'}" for count, reason in counts if count]
        skipped = f"; {report.skipped_steps:,.0f} had non-finite gradients" if report.skipped_steps else ""
        restarted = self._record.restarted
        afresh = "" if restarted < 0 else f"; the momentum began afresh at step {restarted:,}"
        return line + (f" ({', '.join(why)})" if why else "") + skipped + afresh

    def detach(self) -> None:
        """Leave the optimizer as it was: nothing bounds its updates any more, and it has no hook."""
        forget_steps([self.optimizer])
        forget_flag(self.optimizer)
        if self._bound is not None:
            self._bound.detach()

    def state_dict(self) -> dict[str, Any]:
        """History and counts: dicts, lists, numbers, strings and tensors only."""
        return {
            "policy": repr(self.policy),
            "scope": self.scope,
            "steps": self._steps,
            "record": None if self._record is None else self._record_state(self._record),
            "updates": None if self._bound is None else self._bound.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's history.

        Raises:
            ValueError: it is of another policy or scope, or of other parameters.
        """
        refuse_other_settings(self.called, state_dict, self.policy, self.scope)
        record = None if state_dict["record"] is None else ClippingRecord.from_state_dict(state_dict["record"])
        if record is not None:
            self._refuse_other_units(record, self._current_units())
            self._refuse_other_counts(state_dict["record"].get("parameters", []))  # older ones do not have it
        self._steps, self._record, self._stepped = state_dict["steps"], record, False
        if state_dict["updates"] is not None and self._bound is not None:
            self._bound.load_state_dict(state_dict["updates"])

    def _mean_over_ranks(self, loss: Tensor) -> Tensor:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return loss
        loss = loss.clone()
        dist.all_reduce(loss)
        return loss / dist.get_world_size()

    def _current_units(self) -> Units:
        groups = self._chosen.groups()
        if self._units is None or not self._units.fits(groups):
            self._units = UNITS[self.scope](groups)
        return self._units

    def _record_step(
        self, whole: StepGradients, gradients: StepGradients, units: Units, norm: Tensor, loss: Tensor | None
    ) -> ClippingRecord:
        if self._record is None:
            self._record = ClippingRecord()
        record, groups = self._record, self._chosen.groups()
        if len(record.weight_norms) < len(units.sizes):
            record.take_place(norm.device, False, False)
            fresh = units.weight_norms(groups[len(record.weight_norms) :])
            record.add_groups([norms.to(norm) for norms in fresh], self.policy)
        self._refuse_other_units(record, units)
        counts_read = numbers.is_one_on_a_cpu(norm)
        read = counts_read and self.policy.takes_numbers
        record.take_place(norm.device, counts_read, read)
        nonfinite = ~(whole.clipped_total < math.inf)  # NaN too, in a quarter of the operations of `isfinite`
        if norm.ndim or whole is not gradients:  # kept out of the histories, though some of its units may be finite
            norm = norm.masked_fill(nonfinite, math.nan)
        step = Step(norm, units.learning_rate(self.optimizer, gradients), record.initial_weight_norm, loss=loss)
        if not norm.ndim and self._reads_flags(norm.device):  # else nothing could be restarted
            step = step._replace(momentum=highest_momentum(self.optimizer, gradients))
        if loss is not None and not norm.ndim:
            step = step._replace(sensitive_norm=record.scale.sensitive_norm(gradients, groups))
        if self.policy.uses_weights:
            now = [norms.to(norm, non_blocking=True) for norms in units.weight_norms(groups)]
            step = step._replace(weight_norm=join_groups(now))
        if read:
            step = Step(*map(numbers.in_numbers, step))
        clip = self.policy.clip(record.history, step)
        record.history = self.policy.observe(record.history, step)
        counted = (norm, clip, nonfinite)
        if counts_read:
            counted = (numbers.in_numbers(norm), Clip(*map(numbers.in_numbers, clip)), numbers.in_numbers(nonfinite))
        record.count(*counted, units.count(gradients), len(self.policy.reasons))
        return record

    def _record_unclipped(self, whole: StepGradients, norm: Tensor) -> ClippingRecord:
        """A step in which nothing that is chosen has a gradient: what is not finite counts all the same."""
        record = self._record = self._record or ClippingRecord()
        record.take_place(norm.device, False, False)
        record.count(norm, Clip(norm.new_full((), math.inf), norm), ~(whole.clipped_total < math.inf), units=0)
        return record

    def _refuse_other_units(self, record: ClippingRecord, units: Units) -> None:
        if record.sizes != units.sizes[: len(record.sizes)]:
            raise OtherParametersError(
                f"{self.called}(scope={self.scope!r}) has the history of an optimizer whose parameter groups have "
                f"{record.sizes} units, but here they have {units.sizes}.",
                "Use a new instance for a new model, or the checkpoint of this one; give parameters that are added "
                "later a group of their own.",
            )

    def _record_state(self, record: ClippingRecord) -> dict[str, Any]:
        return record.state_dict() | {"parameters": self._counts()[: len(record.sizes)]}

    def _refuse_other_counts(self, counts: list[list[int]]) -> None:
        here = self._counts()[: len(counts)]
        if counts != here:  # though there may be as many units: in the scope "global" there is one
            then, now = (
                ", ".join(f"{number:,} parameters of {elements:,} elements" for number, elements in own)
                for own in (counts, here)
            )
            raise OtherParametersError(
                f"{self.called}(scope={self.scope!r}) has the history of an optimizer whose parameter groups have "
                f"{then}, but here they have {now}.",
                "Use a new instance for a new model, or the checkpoint of this one.",
            )

    def _counts(self) -> list[list[int]]:
        """Of each parameter group, how many parameters are clipped, and how many elements they have."""
        return [
            [len(group), sum(0 if is_lazy(parameter) else parameter.numel() for parameter in group)]
            for group in self._chosen.groups()
        ]

    def _reads_flags(self, device: torch.device) -> bool:
        # Reading is free on a CPU. Elsewhere it makes the host wait, and is done only where nothing else can be right:
        # an update on zero gradients is not a skipped update, for momentum and weight decay act in it.
        if device.type == "cpu":
            return True
        if self._nonfinite.choice == "zero" or self._scaler is not None:
            return False
        return not leaves_out_updates(behind_handle(self.given))  # a wrapper looks at what its inner one skips

    def _told(self, report: Report) -> dict[str, float]:
        scaled = self._scaler is not None
        self._nonfinite.tell(self._chosen.names(), report, step=self._steps, scaled=scaled)
        metrics = {} if not math.isfinite(report.threshold) else {f"{self.name}/threshold": report.threshold}
        for name in ("coefficient", "clipped_fraction", "skipped_steps"):
            metrics[f"{self.name}/{name}"] = getattr(report, name)
        record = self._record
        assert record is not None
        steps_then, counts_then = record.told
        for reason, count, then in zip(
            self.policy.reasons, report.by_reason, counts_then or (0,) * len(report.by_reason), strict=False
        ):
            metrics[f"{self.name}/{reason}_fraction"] = (count - then) / max(self._steps - steps_then, 1)
        record.told = self._steps, report.by_reason
        if self._bound is not None:
            metrics[f"{self.name}/update_coefficient"] = self._bound.coefficient
        return metrics


def read_metrics(clippers: Sequence[GradientClipper]) -> list[dict[str, float]]:
    """The `metrics` of several clippers, read in one transfer from the device."""
    stepped = [(place, clipper._record) for place, clipper in enumerate(clippers) if clipper._stepped]
    records = {place: record for place, record in stepped if record is not None}
    reports = dict(zip(records, read_reports(list(records.values())), strict=True)) if records else {}
    return [clipper._told(reports[place]) if place in reports else {} for place, clipper in enumerate(clippers)]
