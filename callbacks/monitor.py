"""Gradient norms in the log: of all parameters, of each module, and of the largest parameters."""

import math
from collections import defaultdict

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rnn_blocks.callbacks.gradient_norms import StepGradients, forget_steps, shared_step
from rnn_blocks.callbacks.support import (
    is_logging_step,
    log_metrics,
    metric_suffix,
    parameter_names,
    refuse_unsupported_optimizer,
    refuse_unsupported_strategy,
)


class GradientNormMonitor(Callback):
    """Logs gradient norms, as they are before clipping and, beside `AdaptiveGradientClipping`, after it.

    ==============================  ==============================================================
    `grad_norm/total`               norm of all the optimizer's gradients, before clipping
    `grad_norm/clipped`             the same after clipping; 0 where the update was skipped
    `grad_norm/<module>`            norm over one top-level module, before clipping
    `grad_norm/parameter/<name>`    norm of a single parameter's gradient, for the `top_k` largest
    ==============================  ==============================================================

    With several optimizers each name ends in `/optimizer_0`, `/optimizer_1`, …. Gradients are whole (accumulated) and
    unscaled. They are measured on the trainer's logging steps only (``log_every_n_steps``) and read in one transfer;
    the order in which callbacks are listed does not matter. Every logger of the trainer gets the metrics, and
    `trainer.callback_metrics` has the latest.

    Args:
        depth: how many parts of a parameter's name make its module: with 1 `decoder.cell.weight` counts for `decoder`,
            with 2 for `decoder.cell`.
        top_k: of how many parameters, those of the largest norms, to log the norm by name.
        max_modules: at most so many modules get a metric, first come first served; the others share
            `grad_norm/other`.

    Raises:
        ValueError: a setting is out of its range.
        MisconfigurationException: at the start of a fit, if gradients cannot be read there (DeepSpeed, FSDP1, LBFGS).

    >>> from lightning.pytorch import Trainer
    >>> monitor = GradientNormMonitor(top_k=3)
    >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(self, *, depth: int = 1, top_k: int = 0, max_modules: int = 32) -> None:
        for name, value, least in (("depth", depth, 1), ("top_k", top_k, 0), ("max_modules", max_modules, 1)):
            if value < least:
                raise ValueError(f"GradientNormMonitor: {name} is {value!r}; it must be at least {least}")
        self.depth = depth
        self.top_k = top_k
        self.max_modules = max_modules
        self._due: dict[int, StepGradients] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies whose gradients cannot be read."""
        if stage == "fit":
            self._due.clear()
            refuse_unsupported_strategy(trainer, "GradientNormMonitor")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers whose steps have no one gradient."""
        refuse_unsupported_optimizer(trainer, "GradientNormMonitor")
        forget_steps(trainer.optimizers)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure, on a logging step."""
        step = shared_step(trainer, optimizer, self)
        if step.parameters and is_logging_step(trainer):
            step.total  # noqa: B018  (now: later the gradients may be clipped or gone)
            self._due[trainer.optimizers.index(optimizer)] = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log what was measured: only now every clipper has done its work, wherever it is listed."""
        if not self._due:
            return
        steps, self._due = self._due, {}
        names = parameter_names(pl_module)
        values = iter(torch.cat([_values_to_read(step) for step in steps.values()]).tolist())
        metrics: dict[str, float] = {}
        for index, step in steps.items():
            suffix = metric_suffix(trainer, index)
            total, coefficient = next(values), next(values)
            norms = {names.get(parameter, "other"): next(values) for parameter in step.parameters}
            metrics |= {name + suffix: value for name, value in self._metrics(total, norms).items()}
            if step.coefficient is not None:
                metrics["grad_norm/clipped" + suffix] = total * coefficient if coefficient else 0.0
        log_metrics(trainer, metrics)

    def _metrics(self, total: float, norms: dict[str, float]) -> dict[str, float]:
        by_module: dict[str, list[float]] = defaultdict(list)
        for name, norm in norms.items():
            parts = name.split(".")
            module = ".".join(parts[: min(self.depth, len(parts) - 1)]) or name
            known = module in by_module or len(by_module) < self.max_modules
            by_module[module if known else "other"].append(norm)
        metrics = {"grad_norm/total": total}
        metrics |= {f"grad_norm/{module}": math.hypot(*norms) for module, norms in by_module.items()}
        largest = sorted(norms, key=lambda name: norms[name], reverse=True)[: self.top_k]
        return metrics | {f"grad_norm/parameter/{name}": norms[name] for name in largest}


def _values_to_read(step: StepGradients) -> Tensor:
    coefficient = step.total.new_ones(()) if step.coefficient is None else step.coefficient
    return torch.cat([torch.stack([step.total, coefficient]), step.norms])
