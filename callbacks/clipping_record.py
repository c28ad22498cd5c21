"""What is remembered of one optimizer's clipping: the policy's history and counts, all on the device."""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from rnn_blocks.callbacks.policies import Clip, History

COUNTS = ("clipped", "skipped", "run", "longest_run")


class Report(NamedTuple):
    """What happened since the last report, read from the device in one transfer.

    Attributes:
        threshold: of the last step.
        coefficient: of the last step.
        clipped_fraction: share of the steps since the last report that were clipped.
        skipped_steps: steps with a non-finite gradient since the first.
        longest_run: most non-finite steps in a row since the last report (a row may have begun before it).
        culprit: place of a non-finite gradient among those of its step; -1: none, or not known.
    """

    threshold: float
    coefficient: float
    clipped_fraction: float
    skipped_steps: float
    longest_run: int
    culprit: int


class ClippingRecord:
    """History and counts of one optimizer.

    Attributes:
        history: the policy's.
        weight_norms: norm of the weights of each parameter group before its first step, ``()`` each.
        coefficient: of the last step, ``()``; 0 where the gradient was not finite.
        flags: whether the last step's gradient was (not finite, to be clipped), ``(2,)``, bool.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.weight_norms: list[Tensor] = []
        self._steps = 0
        self._counts = {name: torch.zeros((), dtype=torch.int64) for name in COUNTS}
        self._culprit = torch.full((), -1)
        self._num_gradients = 0
        self._initial_weight_norm: Tensor | None = None

    def to(self, device: torch.device) -> None:
        """Move everything to the norms' device; free when it is there."""
        if self._counts["run"].device == device and all(norm.device == device for norm in self.weight_norms):
            return
        self.history = {name: value.to(device) for name, value in self.history.items()}
        self.weight_norms = [norm.to(device) for norm in self.weight_norms]
        self._counts = {name: value.to(device) for name, value in self._counts.items()}
        self._culprit = self._culprit.to(device)
        self._initial_weight_norm = None

    def add_weight_norms(self, norms: list[Tensor]) -> None:
        """Note the initial weights of parameter groups seen for the first time."""
        self.weight_norms += norms
        self._initial_weight_norm = None

    @property
    def initial_weight_norm(self) -> Tensor:
        """‖W₀‖ over all groups, ``()``."""
        if self._initial_weight_norm is None:
            self._initial_weight_norm = torch.linalg.vector_norm(torch.stack(self.weight_norms))
        return self._initial_weight_norm

    def count(self, norm: Tensor, clip: Clip) -> None:
        """Work out what this step's gradient is to be multiplied by, and count the step."""
        nonfinite = ~norm.isfinite()
        clipped = (norm > clip.threshold) & ~nonfinite
        self.threshold = clip.threshold
        self.coefficient = torch.where(clipped, clip.target / norm, 1.0).masked_fill(nonfinite, 0.0)
        self.flags = torch.stack([nonfinite, clipped])
        counts = self._counts
        run = (counts["run"] + 1) * nonfinite
        self._counts = {
            "clipped": counts["clipped"] + clipped,
            "skipped": counts["skipped"] + nonfinite,
            "run": run,
            "longest_run": torch.maximum(counts["longest_run"], run),
        }
        self._steps += 1

    def remember_culprit(self, norms: Tensor) -> None:
        """Note on the device which of the gradients with these norms ``(gradients,)`` is not finite, if one is."""
        if len(norms) != self._num_gradients:
            self._num_gradients = len(norms)
            self._culprit = torch.full_like(self._culprit, -1)
        self._culprit = torch.where(self.flags[0], norms.isfinite().int().argmin(), self._culprit)

    def read_run(self) -> int:
        """How many steps in a row have had a non-finite gradient; waits for the device."""
        return int(self._counts["run"])

    def take_report(self) -> Tensor:
        """What to read, ``(6,)``; counting starts afresh."""
        steps, self._steps = max(self._steps, 1), 0
        counts = self._counts
        kind = self.coefficient.dtype
        fields = [
            self.threshold,
            self.coefficient,
            counts["clipped"].to(kind) / steps,
            counts["skipped"],
            counts["longest_run"],
            self._culprit,
        ]
        self._counts = counts | {name: torch.zeros_like(counts[name]) for name in ("clipped", "longest_run")}
        return torch.stack([field.to(kind) for field in fields])

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, lists and dicts; a copy, which later steps leave alone."""
        return {
            "history": {name: value.clone() for name, value in self.history.items()},
            "weight_norms": [norm.clone() for norm in self.weight_norms],
            "counts": {name: value.clone() for name, value in self._counts.items()},
            "steps": self._steps,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The record that `state_dict` was taken of."""
        record = cls({name: value.clone() for name, value in state["history"].items()})
        record.weight_norms = [norm.clone() for norm in state["weight_norms"]]
        record._counts = {name: state["counts"][name].clone() for name in COUNTS}
        record._steps = state["steps"]
        return record


def read_reports(records: list[ClippingRecord]) -> list[Report]:
    """The reports of several optimizers, in one transfer."""
    device = records[0].coefficient.device
    rows = torch.stack([record.take_report().to(device) for record in records]).tolist()
    return [Report(row[0], row[1], row[2], row[3], int(row[4]), int(row[5])) for row in rows]
