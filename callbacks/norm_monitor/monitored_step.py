"""What `GradientNormMonitor` takes of one optimizer step, and the metrics that it makes of it."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from typing_extensions import Self

from rnn_blocks.callbacks.measuring.parameters import parameter_names
from rnn_blocks.callbacks.measuring.recurrent_weights import (
    RecurrentModule,
    gate_norms,
    joint_norm,
    norm_over,
    recurrent_modules,
)
from rnn_blocks.callbacks.measuring.step import StepGradients
from rnn_blocks.callbacks.measuring.weight_updates import WeightsBefore
from rnn_blocks.callbacks.norm_monitor.applied import AppliedGradients, Norms
from rnn_blocks.callbacks.trainer import LightningModule

RESERVED = ("total", "clipped", "applied", "histogram")
"""What is logged beside the modules; a module of such a name is logged below `module/`."""


class MonitoredStep:
    """Norms of one optimizer's step, on the device until they are read.

    Taken before the gradients are clipped; `end` is called when the step has been made, and then `to_read`.
    """

    def __init__(
        self,
        step: StepGradients,
        modules: list[RecurrentModule],
        gates: list[tuple[RecurrentModule, Tensor]],
        weights: WeightsBefore | None,
        applied: AppliedGradients | None,
    ) -> None:
        self._step = step
        self._modules = modules
        self._gates = gates
        self._weights = weights
        self._applied = applied
        self._ended: list[Tensor] | None = None

    @classmethod
    def take(
        cls,
        step: StepGradients,
        model: LightningModule,
        *,
        gates: bool,
        updates: bool,
        applied: AppliedGradients | None = None,
    ) -> Self:
        """Measure what may be changed or gone when the step has been made."""
        step.total  # noqa: B018  (measured now)
        modules = recurrent_modules(model)
        own = set(step.parameters)
        found = [(module, gate_norms(module, own)) for module in modules] if gates else []
        known = [(module, norms) for module, norms in found if norms is not None]
        return cls(step, modules, known, WeightsBefore(step.parameters) if updates else None, applied)

    def end(self) -> None:
        """Measure what the step has done, before another one is made; only the first call does anything."""
        if self._ended is None:
            head = torch.stack([self._step.total, self._step.clipped_total])
            if self._applied is not None:
                head = torch.cat([head, self._applied.take(head)])
            self._ended = [head, *([] if self._weights is None else self._weights.compare())]

    def to_read(self) -> list[Tensor]:
        """Total norm, the clipped one and what was applied; by parameter; by gate, of each module; of updates."""
        self.end()
        assert self._ended is not None
        head, *updates = self._ended
        return [head, self._step.norms, *(norms for _, norms in self._gates), *updates]

    def metrics(
        self, values: list[list[float]], model: LightningModule, *, depth: int, max_modules: int, top_k: int
    ) -> dict[str, float]:
        """The metrics by name, from the values of `to_read`."""
        (total, clipped, *applied), norms, *others = values
        names = parameter_names(model)
        labels = [names.get(parameter, "other") for parameter in self._step.parameters]
        modules = [_module_of(label, depth) for label in labels]
        metrics = {"grad_norm/total": total}
        if self._step.clipped_norms is not None:
            metrics["grad_norm/clipped"] = clipped if math.isfinite(clipped) else 0.0
        if applied and math.isfinite(applied[1]):
            metrics["grad_norm/applied"] = applied[1]
        metrics |= _prefixed("grad_norm/", _joined(zip(modules, norms, strict=True), max_modules))
        metrics |= self._recurrent(norms, max_modules)
        metrics |= self._by_gate(others[: len(self._gates)], max_modules)
        if self._weights is not None:
            weights, updates = (_joined(zip(modules, own, strict=True), max_modules) for own in others[-2:])
            weights["total"], updates["total"] = (joint_norm(own) for own in others[-2:])
            ratios = {name: updates[name] / norm for name, norm in weights.items() if norm}
            for kind, joined in (("weight_norm/", weights), ("update_norm/", updates), ("update_ratio/", ratios)):
                metrics |= _prefixed(kind, joined)
        # No order holds with NaN in it: what is not finite counts as infinite, and comes first.
        largest = sorted(zip(labels, norms, strict=True), key=lambda own: own[1] if own[1] < math.inf else math.inf)
        return metrics | {f"grad_norm/parameter/{name}": norm for name, norm in largest[::-1][:top_k]}

    def findings(self, values: list[list[float]], *, clips_later: bool) -> dict[str, str]:
        """What is wrong with the way of the gradients, by kind, from the values of `to_read`; see `Norms`."""
        (total, clipped, *applied), *_ = values
        if not applied:
            return {}
        after_backward, used, in_vain = applied
        return Norms(after_backward, total, clipped, used, in_vain).findings(clips_later=clips_later)

    def _recurrent(self, norms: list[float], max_modules: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        known = dict(zip(self._step.parameters, norms, strict=True))
        for kind, part in (("recurrent", "recurrent"), ("input", "inputs")):
            found = [(module.name, norm_over(getattr(module, part), known)) for module in self._modules]
            present = [(name, norm) for name, norm in found if norm is not None]
            metrics |= _prefixed(f"grad_norm/{kind}/", _joined(present, max_modules))
        return metrics

    def _by_gate(self, norms: list[list[float]], max_modules: int) -> dict[str, float]:
        by_gate: dict[str, list[tuple[str, float]]] = {}
        for (module, _), own in zip(self._gates, norms, strict=True):
            for gate, norm in zip(module.gates, own, strict=True):
                by_gate.setdefault(gate, []).append((module.name, norm))
        joined = {gate: _joined(found, max_modules) for gate, found in by_gate.items()}
        return {f"grad_norm/gate/{name}/{gate}": norm for gate, own in joined.items() for name, norm in own.items()}


def _module_of(parameter: str, depth: int) -> str:
    parts = parameter.split(".")
    module = ".".join(parts[: min(depth, len(parts) - 1)]) or parameter
    return f"module/{module}" if module in RESERVED else module


def _joined(labelled: Iterable[tuple[str, float]], most: int) -> dict[str, float]:
    """Norm over all that share a label; labels after the first `most` are one, ``other``."""
    joined: dict[str, float] = {}
    for label, norm in labelled:
        known = label if label in joined or len(joined) < most else "other"
        joined[known] = joint_norm((joined.get(known, 0.0), norm))
    return joined


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in values.items()}
