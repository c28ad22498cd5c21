"""What is remembered of one optimizer's clipping: the policy's history and counts, all on the device."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from rnn_blocks.callbacks.clipping.policies import Clip, ClippingPolicy, History
from rnn_blocks.callbacks.measuring.norms import total_norm
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

    Attributes:
        history: the policy's.
        weight_norms: norm of the weights before the first step, by parameter group: ``()`` or ``(its units,)`` each.
        coefficient: what the last step's gradients are multiplied by, S; 0 where the gradient was not finite.
        scale: which weights are scale-invariant.
        told: when the last report was taken: the steps made by then, and how many of them for each reason.
        flags: whether the last step's gradient was (not finite, to be clipped anywhere), ``(2,)``, bool.
    """

    def __init__(self) -> None:
        self.history: History = {}
        self.weight_norms: list[Tensor] = []
        self.told: tuple[int, tuple[int, ...]] = (0, ())
        self.scale = ScaleInvariance()
        self._pairs = 0
        self._counts = {name: torch.zeros((), dtype=torch.int64) for name in COUNTS}
        self._by_reason: Tensor | None = None
        self._culprit = torch.full((), -1)
        self._num_gradients = 0
        self._initial_weight_norm: Tensor | None = None
        self.threshold = torch.full((), math.nan)  # of no step yet
        self.coefficient = torch.ones(())

    def to(self, device: torch.device) -> None:
        """Move everything to the norms' device; free when it is there."""
        if self._counts["run"].device == device and all(norm.device == device for norm in self.weight_norms):
            return
        self.history = {name: value.to(device) for name, value in self.history.items()}
        self.weight_norms = [norm.to(device) for norm in self.weight_norms]
        self._counts = {name: value.to(device) for name, value in self._counts.items()}
        self._culprit = self._culprit.to(device)
        self._by_reason = None if self._by_reason is None else self._by_reason.to(device)
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
        self._initial_weight_norm = None

    @property
    def initial_weight_norm(self) -> Tensor:
        """‖W₀‖, S; in the scope "global" over all groups."""
        if self._initial_weight_norm is None:
            self._initial_weight_norm = join_groups(self.weight_norms)
        return self._initial_weight_norm

    def count(self, norm: Tensor, clip: Clip, nonfinite: Tensor, units: int, num_reasons: int = 0) -> None:
        """Work out what this step's gradients are to be multiplied by, and count the step.

        Args:
            norm: norms of the units, S; NaN where a unit has no gradient.
            clip: the policy's answer.
            nonfinite: whether any gradient is not finite, ``()``.
            units: how many units have a gradient.
            num_reasons: how many the policy has.
        """
        clipped = (norm > clip.threshold) & ~nonfinite
        self.threshold = clip.threshold
        self.coefficient = torch.where(clipped, clip.target / norm, 1.0).masked_fill(nonfinite, 0.0)
        anywhere, number = (clipped, clipped) if norm.ndim == 0 else (clipped.any(), clipped.sum())
        self.flags = torch.stack([nonfinite, anywhere])
        counts = self._counts
        run = (counts["run"] + 1) * nonfinite
        self._counts = {
            "clipped": counts["clipped"] + number,
            "clipped_steps": counts["clipped_steps"] + anywhere,
            "skipped": counts["skipped"] + nonfinite,
            "run": run,
            "longest_run": torch.maximum(counts["longest_run"], run),
        }
        self._pairs += units
        if num_reasons:
            self._count_reasons(clipped, clip.reason, num_reasons)

    def _count_reasons(self, clipped: Tensor, reason: Tensor | None, number: int) -> None:
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

    def read_run(self) -> int:
        """How many steps in a row have had a non-finite gradient; waits for the device."""
        return int(self._counts["run"])

    def take_report(self, afresh: bool = True) -> Tensor:
        """What to read, ``(7 + reasons,)``; counting since the last report starts `afresh`."""
        pairs = max(self._pairs, 1)
        counts = self._counts
        kind = self.coefficient.dtype
        alone = self.coefficient.ndim == 0
        fields = [
            self.threshold if alone else self.coefficient.new_full((), math.nan),
            torch.cat([self.coefficient.reshape(-1), self.coefficient.new_ones(1)]).min(),  # of rows there may be none
            counts["clipped"].to(kind) / pairs,
            counts["skipped"],
            counts["longest_run"],
            self._culprit,
            counts["clipped_steps"],
            *([] if self._by_reason is None else self._by_reason),
        ]
        read = ("clipped", "longest_run") if afresh else ("longest_run",)
        self._counts = counts | {name: torch.zeros_like(counts[name]) for name in read}
        self._pairs = 0 if afresh else self._pairs
        return torch.stack([field.to(kind) for field in fields])

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, lists and dicts; a copy, which later steps leave alone."""
        return {
            "history": {name: value.clone() for name, value in self.history.items()},
            "weight_norms": [norm.clone() for norm in self.weight_norms],
            "counts": {name: value.clone() for name, value in self._counts.items()},
            "by_reason": None if self._by_reason is None else self._by_reason.clone(),
            "pairs": self._pairs,
            "scale": self.scale.state_dict(),
            "told": [self.told[0], *self.told[1]],
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The record that `state_dict` was taken of."""
        record = cls()
        record.history = {name: value.clone() for name, value in state["history"].items()}
        record.weight_norms = [norm.clone() for norm in state["weight_norms"]]
        counts = state["counts"]  # older ones have neither all of these nor reasons
        record._counts = {name: counts.get(name, torch.zeros_like(counts["run"])).clone() for name in COUNTS}
        if state.get("by_reason") is not None:
            record._by_reason = state["by_reason"].clone()
        record._pairs = state["pairs"]
        if "scale" in state:  # older ones do not have it
            record.scale.load_state_dict(state["scale"])
        steps, *reasons = state.get("told", [0])
        record.told = steps, tuple(reasons)
        return record


def join_groups(norms: Sequence[Tensor]) -> Tensor:
    """Norms of all units, S, of those by parameter group: the norm over all groups, or one after the other."""
    return torch.cat(list(norms)) if norms[0].ndim else total_norm(torch.stack(list(norms)))


def read_reports(records: list[ClippingRecord], afresh: bool = True) -> list[Report]:
    """The reports of several optimizers, in one transfer; not `afresh`: what is counted since the last one goes on."""
    device = records[0].coefficient.device
    taken = [record.take_report(afresh).to(device) for record in records]
    values = torch.cat(taken).tolist()
    reports = []
    for report in taken:
        row, values = values[: len(report)], values[len(report) :]
        run, culprit, clipped, *by_reason = map(int, row[4:])
        reports.append(Report(row[0], row[1], row[2], row[3], run, culprit, clipped, tuple(by_reason)))
    return reports
