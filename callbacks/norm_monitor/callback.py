"""Gradient norms in the log: of all parameters, of each module, of recurrent weights, gates and single parameters."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rnn_blocks.callbacks.figures import can_draw, told_without
from rnn_blocks.callbacks.measuring.step import forget_steps, shared_step
from rnn_blocks.callbacks.measuring.transfer import read_together
from rnn_blocks.callbacks.norm_monitor.applied import AppliedGradients
from rnn_blocks.callbacks.norm_monitor.histogram import NormHistogram
from rnn_blocks.callbacks.norm_monitor.monitored_step import MonitoredStep
from rnn_blocks.callbacks.settings import whole_number
from rnn_blocks.callbacks.trainer import (
    Callback,
    LightningModule,
    Trainer,
    UnseenSteps,
    go_first,
    gradient_scaler,
    index_of,
    is_fitting,
    is_logging_step,
    log_figure,
    log_histogram,
    log_metrics,
    logs_steps,
    logs_this_step,
    makes_step,
    metric_suffix,
    note_backward,
    rank_zero_warn,
    refuse_unsupported_optimizer,
    refuse_unsupported_strategy,
)


class GradientNormMonitor(Callback):
    """Logs gradient norms, as they are before clipping and, beside `AdaptiveGradientClipping`, after it.

    ==================================  ==========================================================================
    `grad_norm/total`                   norm of all the optimizer's gradients, before clipping
    `grad_norm/clipped`                 the same after clipping; 0 where the update was skipped
    `grad_norm/applied`                 the same as the update really used it, with ``check_applied=True``;
                                        left out where none was made
    `grad_norm/<module>`                norm over one top-level module, before clipping
    `grad_norm/recurrent/<module>`      norm over a recurrent module's recurrent weights: what the last state
                                        comes in by
    `grad_norm/input/<module>`          norm over its input weights
    `grad_norm/gate/<module>/<gate>`    norm over the rows of one of its gates, with ``gates=True``
    `grad_norm/parameter/<name>`        norm of a single parameter's gradient, for the `top_k` largest
    `grad_norm/histogram`               histogram of log₁₀ of `grad_norm/total` over all steps since the last one,
                                        with `histogram_every_n_steps`
    `weight_norm/total`, `/<module>`    norm of the weights that had a gradient, before the step, with
                                        ``updates=True``
    `update_norm/total`, `/<module>`    norm of what the step added to them; 0 where the update was skipped
    `update_ratio/total`, `/<module>`   update norm over weight norm; left out where the weights are 0
    ==================================  ==========================================================================

    With several optimizers each name ends in `/optimizer_0`, `/optimizer_1`, …. Gradients are whole (accumulated) and
    unscaled. They are measured on the trainer's logging steps only (``log_every_n_steps``) and read in one transfer.
    Under manual optimisation, where an optimizer may step when nothing is logged and not when something is, every step
    is measured, and each log shows the last one of each optimizer that has made any since the log before.
    The order in which callbacks are listed does not matter: the monitor goes first by itself. Every logger of the
    trainer gets the metrics, and `trainer.callback_metrics` has the latest. A module that is called `total`, `clipped`,
    `applied` or `histogram` is `grad_norm/module/total`, … there.

    *Recurrent modules* are torch's `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells, this library's cells, and modules
    that name their parameters likewise (`weight_ih…`, `weight_hh…`). Gates are i, f, g, o of an LSTM, r, z, n of a GRU,
    and `Cell.gate_names` of this library's cells. A recurrent norm that shrinks away while the input norm stays tells
    of vanishing gradients; one that towers over it, of exploding ones.

    *Histograms* measure the norm at every step, and not on logging steps only: one more pass over all gradients a step,
    or none where `AdaptiveGradientClipping` stands beside, which measures it anyhow. The norms wait on the device and
    are read with the other values on the first logging step that is so many optimizer steps after the last histogram;
    past 65,536 the oldest are lost. A `WandbLogger` and a `TensorBoardLogger` get each histogram; at the end of the fit
    ``plots/gradient_norm_histogram.png`` below the run's folder shows all of them, and goes to the loggers as well
    (left out where matplotlib is missing).

    *Updates* take a copy of the weights on logging steps, from before the step to the end of the batch: as much memory
    as the optimizer's trainable weights (on each rank its shard of them), and under manual optimisation at every step.
    Where an optimizer steps several times in a batch, norms and updates are those of its last step; what is changed
    afterwards in the batch counts for it.

    *Checks*, with ``check_applied=True``: the norm is measured after the backward pass and in the update, too, and a
    warning says once where gradients were changed in between without the monitor's knowing (clipped inside
    `training_step`, after the hook, by a second mechanism), and where clipping has no effect. Two more passes over the
    gradients on logging steps.

    Args:
        depth: how many parts of a parameter's name make its module: with 1 `decoder.cell.weight` counts for `decoder`,
            with 2 for `decoder.cell`.
        top_k: of how many parameters, those of the largest norms (NaN and infinity first), to log the norm by name.
        max_modules: at most so many modules, and so many recurrent modules, get metrics, first come first served; the
            others share those of `other`.
        gates: whether to log norms by gate.
        updates: whether to log the norms of weights and updates.
        histogram_every_n_steps: how many optimizer steps to gather for a histogram; None: no histograms.
        check_applied: whether to check that the gradients measured are those that the update uses.

    Raises:
        ValueError: a setting is out of its range.
        MisconfigurationException: at the start of a fit, if gradients cannot be read there (DeepSpeed, FSDP1, LBFGS).

    >>> from lightning.pytorch import Trainer
    >>> monitor = GradientNormMonitor(top_k=3, gates=True)
    >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    of_a_fit = {"_due": dict, "_applied": dict, "_unseen": lambda: None}  # noqa: RUF012

    def __init__(
        self,
        *,
        depth: int = 1,
        top_k: int = 0,
        max_modules: int = 32,
        gates: bool = False,
        updates: bool = False,
        histogram_every_n_steps: int | None = None,
        check_applied: bool = False,
    ) -> None:
        every = 1 if histogram_every_n_steps is None else histogram_every_n_steps
        settings = (
            ("depth", depth, 1),
            ("top_k", top_k, 0),
            ("max_modules", max_modules, 1),
            ("histogram_every_n_steps", every, 1),
        )
        for name, value, least in settings:
            if not whole_number(value) >= least:
                raise ValueError(
                    f"GradientNormMonitor: {name} is {value!r}; it must be at least {least}, a whole number"
                )
        self.depth = depth
        self.top_k = top_k
        self.max_modules = max_modules
        self.gates = gates
        self.updates = updates
        self.histogram_every_n_steps = histogram_every_n_steps
        self.check_applied = check_applied
        self._applied: dict[int, AppliedGradients] = {}
        self._said: set[tuple[int, str]] = set()
        self._due: dict[int, MonitoredStep] = {}
        self._histograms: dict[int, NormHistogram] = {}
        self._unseen: UnseenSteps | None = None

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps the histograms: two instances of different settings each have their own."""
        return self._generate_state_key(
            depth=self.depth,
            top_k=self.top_k,
            max_modules=self.max_modules,
            gates=self.gates,
            updates=self.updates,
            histogram_every_n_steps=self.histogram_every_n_steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """The histograms by optimizer index, with the norms not yet read; empty without histograms."""
        if self.histogram_every_n_steps is None:
            return {}
        return {"histograms": {str(index): histogram.state_dict() for index, histogram in self._histograms.items()}}

    def _continue_from(self, state_dict: dict[str, Any]) -> None:
        """Continue a checkpoint's histograms."""
        self._histograms = {
            int(index): NormHistogram.from_state_dict(state) for index, state in state_dict["histograms"].items()
        }

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse strategies whose gradients cannot be read, and go before whatever changes gradients."""
        self._due.clear()
        refuse_unsupported_strategy(trainer, "GradientNormMonitor")
        if self.histogram_every_n_steps is not None and not can_draw():
            rank_zero_warn(told_without("GradientNormMonitor(histogram_every_n_steps=...)"))
        if trainer.global_step == 0:
            self._histograms.clear()
        go_first(trainer, self)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers whose steps have no one gradient."""
        refuse_unsupported_optimizer(trainer, "GradientNormMonitor")
        forget_steps(trainer.optimizers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to follow gradients to their updates, where that is asked for; tell where nothing can be logged."""
        self._unseen = UnseenSteps(trainer, pl_module, "GradientNormMonitor", "nothing is measured")
        if not logs_steps(trainer):
            rank_zero_warn(
                "GradientNormMonitor logs nothing here: the trainer has log_every_n_steps=0, so that no step is; "
                "give it a number of steps"
            )
        if self.check_applied:
            self._said.clear()
            self._applied = {index: AppliedGradients(own) for index, own in enumerate(trainer.optimizers)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note what is left of the last step's gradients."""
        if self._applied and logs_this_step(trainer, pl_module):
            for applied in self._applied.values():
                applied.start()

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """See whether the training step has changed them."""
        if self._applied:
            self._applied[index_of(trainer, optimizer)].before_clearing()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure what the backward pass gives."""
        if self._applied and logs_this_step(trainer, pl_module):
            scaler = gradient_scaler(trainer)
            scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=pl_module.device))
            for applied in self._applied.values():
                applied.after_backward(scale)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note that there is one: a batch may be left out."""
        note_backward(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure, on a logging step; for histograms, on each."""
        index = index_of(trainer, optimizer)
        if self._unseen is not None:
            self._unseen.note(index)
        if not makes_step(trainer, pl_module):
            return
        step = shared_step(optimizer, self, gradient_scaler(trainer))
        if not step.parameters:
            return
        if self.histogram_every_n_steps is not None:
            self._histograms.setdefault(index, NormHistogram()).record(step.total)
        if index in self._applied:
            self._applied[index].at_hook(optimizer)
        if logs_this_step(trainer, pl_module):
            self._due[index] = MonitoredStep.take(
                step, pl_module, gates=self.gates, updates=self.updates, applied=self._applied.get(index)
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log what was measured: only now every clipper has done its work, wherever it is listed."""
        for measured in self._due.values():
            measured.end()
        if not self._due or not is_logging_step(trainer):
            return
        due, self._due = self._due, {}
        tensors = {index: measured.to_read() for index, measured in due.items()}
        every = self.histogram_every_n_steps or 1
        full = [index for index, histogram in self._histograms.items() if histogram.waiting.count >= every]
        values = read_together(
            [tensor for group in tensors.values() for tensor in group]
            + [self._histograms[index].take() for index in full]
        )
        metrics: dict[str, float] = {}
        for index, measured in due.items():
            own, values = values[: len(tensors[index])], values[len(tensors[index]) :]
            named = measured.metrics(own, pl_module, depth=self.depth, max_modules=self.max_modules, top_k=self.top_k)
            metrics |= {name + metric_suffix(trainer, index): value for name, value in named.items()}
            findings = measured.findings(own, clips_later=bool(trainer.gradient_clip_val))
            for kind, finding in findings.items():
                if (index, kind) not in self._said:
                    self._said.add((index, kind))
                    rank_zero_warn(f"GradientNormMonitor(check_applied=True), optimizer {index}: {finding}.")
        log_metrics(trainer, metrics)
        for index, norms in zip(full, values, strict=True):
            self._log_histogram(trainer, index, norms)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the histograms."""
        self._draw_histograms(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw what there is of the histograms: a training that broke off is where they are looked for."""
        fits = is_fitting(trainer)
        self.teardown(trainer, pl_module, "fit")
        if not fits:  # an evaluation
            return
        try:
            self._draw_histograms(trainer)
        except Exception as failure:  # of a device that cannot be read any more, say: it must not hide the cause
            rank_zero_warn(f"GradientNormMonitor could not draw the training that broke off: {failure}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers as they were."""
        super().teardown(trainer, pl_module, stage)
        if self._unseen is not None:
            self._unseen.detach()
        for applied in self._applied.values():
            applied.detach()
        self._applied = {}
        forget_steps(trainer.optimizers)

    def _log_histogram(self, trainer: Trainer, index: int, norms: list[float]) -> None:
        logs = self._histograms[index].add(norms)
        log_histogram(trainer, "grad_norm/histogram" + metric_suffix(trainer, index), logs)

    def _draw_histograms(self, trainer: Trainer) -> None:
        waiting = [index for index, histogram in self._histograms.items() if histogram.waiting.count]
        values = read_together([self._histograms[index].take() for index in waiting])
        for index, norms in zip(waiting, values, strict=True):
            self._log_histogram(trainer, index, norms)
        if not trainer.is_global_zero or not can_draw():
            return
        for index, histogram in self._histograms.items():
            suffix = metric_suffix(trainer, index)
            figure = histogram.draw("Gradient norm" + suffix.replace("/", " of "))
            if figure is not None:
                log_figure(trainer, "gradient_norm_histogram" + suffix, figure)
