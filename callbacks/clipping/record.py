"""What is remembered of one optimizer's clipping: the policy's history and counts, on the device or in numbers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from rnn_blocks.callbacks.clipping.policies import Clip, ClippingPolicy
from rnn_blocks.callbacks.measuring.norms import total_norm
from rnn_blocks.callbacks.measuring.numbers import Number, divided, in_numbers, in_tensors, maximum, where
from rnn_blocks.callbacks.measuring.scale_invariance import ScaleInvariance

COUNTS = ("clipped", "clipped_steps", "skipped", "run", "longest_run")


class Report(NamedTuple):
    """What happened since the last report, read from the device in one transfer.

    Attributes:
        threshold: of the last step; NaN where there are several units, which have each their own.
        coefficient: of the last step, the lowest of all units.
        clipped_fraction: share of the units of all steps since the last report that were clipped.
        skipped_steps: steps with a non-finite gradient since the first.
        longest_run: most non-finite steps in a row since the last report (a row may have begun before it).
        culprit: place of a non-finite gradient among those of its step; -1: none, or not known.
        clipped_steps: steps in which anything was clipped, since the first.
        by_reason: of these, how many for each of the policy's `reasons`; one may have several.
    """

    threshold: float
    coefficient: float
    clipped_fraction: float
    skipped_steps: float
    longest_run: int
    culprit: int
    clipped_steps: int
    by_reason: tuple[int, ...]


class ClippingRecord:
    """History and counts of one optimizer. S is the shape of what there is of each unit: ``()`` or ``(units,)``.

    What is of the steps is in tensors, or where it can be read without waiting in Python's numbers: see `take_place`.

    Attributes:
        history: the policy's, in tensors, or in numbers where the policy takes them.
        weight_norms: norm of the weights before the first step, by parameter group: ``()`` or ``(its units,)`` each.
        coefficient: what the last step's gradients are multiplied by, S; 0 where the gradient was not finite.
        scale: which weights are scale-invariant.
        told: when the last report was taken: the steps made by then, and how many of them for each reason.
        restarted: the step before which the optimizer forgot its velocity; -1: none so far.
        flags: whether the last step's gradient was not finite, whether it was to be clipped anywhere, and whether the
            optimizer is to forget its velocity.
    """

    def __init__(self) -> None:
        self.history: dict[str, Number] = {}
        self.weight_norms: list[Tensor] = []
        self.told: tuple[int, tuple[int, ...]] = (0, ())
        self.scale = ScaleInvariance()
        self.restarted = -1
        self._pairs = 0
        self.flags: tuple[Number, Number, Number] = (False, False, False)
        self._counts: dict[str, Number] = dict.fromkeys(COUNTS, 0)
        self._by_reason: Number | None = None
        self._culprit = torch.full((), -1)
        self._num_gradients = 0
        self._initial_weight_norm: Tensor | None = None
        self.threshold: Number = math.nan  # of no step yet
        self.coefficient: Number = 1.0
        self._place: tuple[torch.device, bool, bool] | None = None

    def take_place(self, device: torch.device, counts_in_numbers: bool, history_in_numbers: bool) -> None:
        """Put everything where the next step is; free when it is there.

        Args:
            device: of the step's norms.
            counts_in_numbers: whether the counts are Python's numbers: there is one norm, on a CPU.
            history_in_numbers: whether the history is too, for a policy that takes them.
        """
        if self._place == (device, counts_in_numbers, history_in_numbers):
            return
        self._place = device, counts_in_numbers, history_in_numbers

        def placed(value: Number, as_number: bool) -> Number:
            return in_numbers(value) if as_number else in_tensors(value).to(device)

        self.history = {name: placed(value, history_in_numbers) for name, value in self.history.items()}
        self.weight_norms = [norm.to(device) for norm in self.weight_norms]
        self._counts = {name: placed(value, counts_in_numbers) for name, value in self._counts.items()}
        self._culprit = self._culprit.to(device)
        self._by_reason = None if self._by_reason is None else placed(self._by_reason, counts_in_numbers)
        self._initial_weight_norm = None

    @property
    def sizes(self) -> list[int]:
        """Number of units in each parameter group that is known."""
        return [norm.numel() for norm in self.weight_norms]

    def add_groups(self, weight_norms: list[Tensor], policy: ClippingPolicy) -> None:
        """Note the initial weights of parameter groups seen for the first time, whose units have no history yet."""
        if not self.weight_norms:
            norm = weight_norms[0] if weight_norms[0].ndim == 0 else torch.cat(weight_norms)
            self.history = policy.initial_history(norm)
        elif weight_norms[0].ndim:
            fresh = policy.initial_history(torch.cat(weight_norms))
            self.history = {name: torch.cat([value, fresh[name]], dim=-1) for name, value in self.history.items()}
        self.weight_norms += weight_norms
        self._initial_weight_norm = self._place = None

    @property
    def initial_weight_norm(self) -> Tensor:
        """‖W₀‖, S; in the scope "global" over all groups."""
        if self._initial_weight_norm is None:
            self._initial_weight_norm = join_groups(self.weight_norms)
        return self._initial_weight_norm

    def count(self, norm: Number, clip: Clip, nonfinite: Number, units: int, num_reasons: int = 0) -> None:
        """Work out what this step's gradients are to be multiplied by, and count the step.

        Args:
            norm: norms of the units, S; NaN where a unit has no gradient.
            clip: the policy's answer.
            nonfinite: whether any gradient is not finite, ``()``.
            units: how many units have a gradient.
            num_reasons: how many the policy has.
        """
        clipped = (norm > clip.threshold) & (nonfinite ^ True)
        self.threshold = clip.threshold
        self.coefficient = where(nonfinite, 0.0, where(clipped, divided(clip.target, norm), 1.0))
        several = isinstance(norm, Tensor) and norm.ndim > 0
        anywhere, number = (clipped.any(), clipped.sum()) if several else (clipped, clipped)
        restart = (False if clip.restart is None or several else clip.restart) & (nonfinite ^ True)
        self.flags = nonfinite, anywhere, restart
        counts = self._counts
        run = (counts["run"] + 1) * nonfinite
        self._counts = {
            "clipped": counts["clipped"] + number,
            "clipped_steps": counts["clipped_steps"] + anywhere,
            "skipped": counts["skipped"] + nonfinite,
            "run": run,
            "longest_run": maximum(counts["longest_run"], run),
        }
        self._pairs += units
        if num_reasons:
            self._count_reasons(clipped, clip.reason, num_reasons)

    def _count_reasons(self, clipped: Number, reason: Number | None, number: int) -> None:
        if not isinstance(clipped, Tensor):
            before = self._by_reason or [0] * number
            self._by_reason = [count + (clipped and place == (reason or 0)) for place, count in enumerate(before)]
            return
        if self._by_reason is None:
            self._by_reason = torch.zeros(number, dtype=torch.int64, device=clipped.device)
        which = torch.zeros_like(clipped, dtype=torch.int64) if reason is None else reason
        reasons = torch.arange(number, device=clipped.device)
        found = (reasons.view(-1, *[1] * clipped.ndim) == which) & clipped
        self._by_reason = self._by_reason + (found.flatten(1).any(1) if clipped.ndim else found)

    def remember_culprit(self, norms: Tensor) -> None:
        """Note on the device which of the gradients with these norms ``(gradients,)`` is not finite, if one is."""
        if len(norms) != self._num_gradients:
            self._num_gradients = len(norms)
            self._culprit = torch.full_like(self._culprit, -1)
        self._culprit = torch.where(self.flags[0], norms.isfinite().int().argmin(), self._culprit)

    def read_flags(self) -> list[bool]:
        """The flags, in one transfer; waits for the device."""
        return torch.stack(self.flags).tolist() if isinstance(self.flags[0], Tensor) else list(self.flags)

    def read_run(self) -> int:
        """How many steps in a row have had a non-finite gradient; waits for the device."""
        return int(self._counts["run"])

    def take_report(self, afresh: bool = True) -> Tensor:
        """What to read, ``(7 + reasons,)``; counting since the last report starts `afresh`."""
        pairs = max(self._pairs, 1)
        counts = self._counts
        coefficient = in_tensors(self.coefficient)
        kind, device = coefficient.dtype, coefficient.device
        fields = [
            self.threshold if coefficient.ndim == 0 else coefficient.new_full((), math.nan),
            torch.cat([coefficient.reshape(-1), coefficient.new_ones(1)]).min(),  # of rows there may be none
            in_tensors(counts["clipped"]).to(kind) / pairs,
            counts["skipped"],
            counts["longest_run"],
            self._culprit,
            counts["clipped_steps"],
            *([] if self._by_reason is None else self._by_reason),
        ]
        read = ("clipped", "longest_run") if afresh else ("longest_run",)
        self._counts = counts | {name: counts[name] * 0 for name in read}
        self._pairs = 0 if afresh else self._pairs
        return torch.stack([in_tensors(field, device).to(kind) for field in fields])

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, lists and dicts; a copy, which later steps leave alone."""
        return {
            "history": {name: in_tensors(value).clone() for name, value in self.history.items()},
            "weight_norms": [norm.clone() for norm in self.weight_norms],
            "counts": {name: in_tensors(value).clone() for name, value in self._counts.items()},
            "by_reason": None if self._by_reason is None else in_tensors(self._by_reason).clone(),
            "pairs": self._pairs,
            "scale": self.scale.state_dict(),
            "told": [self.told[0], *self.told[1]],
            "restarted": self.restarted,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The record that `state_dict` was taken of."""
        record = cls()
        record.history = {name: value.clone() for name, value in state["history"].items()}
        record.weight_norms = [norm.clone() for norm in state["weight_norms"]]
        counts = state["counts"]  # older ones have neither all of these nor reasons
        record._counts = {name: in_tensors(counts.get(name, 0)).to(counts["run"]).clone() for name in COUNTS}
        if state.get("by_reason") is not None:
            record._by_reason = state["by_reason"].clone()
        record._pairs = state["pairs"]
        if "scale" in state:  # older ones do not have it
            record.scale.load_state_dict(state["scale"])
        steps, *reasons = state.get("told", [0])
        record.told = steps, tuple(reasons)
        record.restarted = state.get("restarted", -1)
        return record


def join_groups(norms: Sequence[Tensor]) -> Tensor:
    """Norms of all units, S, of those by parameter group: the norm over all groups, or one after the other."""
    return torch.cat(list(norms)) if norms[0].ndim else total_norm(torch.stack(list(norms)))


def read_reports(records: list[ClippingRecord], afresh: bool = True) -> list[Report]:
    """The reports of several optimizers, in one transfer; not `afresh`: what is counted since the last one goes on."""
    taken = [record.take_report(afresh) for record in records]
    values = torch.cat([report.to(taken[0].device) for report in taken]).tolist()
    reports = []
    for report in taken:
        row, values = values[: len(report)], values[len(report) :]
        run, culprit, clipped, *by_reason = map(int, row[4:])
        reports.append(Report(row[0], row[1], row[2], row[3], run, culprit, clipped, tuple(by_reason)))
    return reports
