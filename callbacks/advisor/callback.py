"""A fixed clipping threshold, recommended from the norms that a training shows without clipping."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from rnn_blocks.callbacks.advisor.advice import ClippingAdvice
from rnn_blocks.callbacks.clipping.callback import AdaptiveGradientClipping
from rnn_blocks.callbacks.figures import can_draw, told_without
from rnn_blocks.callbacks.measuring.norm_buffer import NormBuffer
from rnn_blocks.callbacks.measuring.step import forget_steps, shared_step
from rnn_blocks.callbacks.measuring.transfer import read_together
from rnn_blocks.callbacks.settings import whole_number
from rnn_blocks.callbacks.trainer import (
    Callback,
    LightningModule,
    Trainer,
    callbacks_of,
    go_first,
    gradient_scaler,
    index_of,
    is_fitting,
    log_figure,
    log_metrics,
    makes_step,
    metric_suffix,
    note_backward,
    rank_zero_warn,
    refuse_unsupported_optimizer,
    refuse_unsupported_strategy,
)

PATIENCE = 10


class ClippingAdvisor(Callback):
    """Watches a training without clipping it, and recommends a fixed threshold for those who want a constant.

    After `steps` steps of every optimizer, or when the fit ends or is broken off before, by whatever exception, it
    prints a table of candidate thresholds and how many of the steps each would have clipped, logs the same, and draws
    the norms with the candidates (``plots/clipping_advice.png`` below the run's folder, and the loggers that take
    pictures; left out where matplotlib is missing). The norms are those before any clipping, wherever it is listed
    among the callbacks: it goes first by itself.

    What it recommends is the average norm without spikes, after Pascanu, Mikolov and Bengio 2013, "On the difficulty of
    training recurrent neural networks", section 3.2: the average over a sufficiently large number of updates is a good
    start, and from half to ten times of it trainings still converge. To use it, put in this callback's place::

        AdaptiveGradientClipping(Fixed(advisor.recommendation.threshold))

    =======================================  ==================================================================
    `clipping_advice/threshold`              the recommended threshold
    `clipping_advice/percentile_<percent>`   percentile of the norms: 50, 90, 95, 99
    `clipping_advice/spikes`                 steps whose norm stands far out from its neighbours'
    `clipping_advice/nonfinite_steps`        steps whose norm was NaN or infinite
    =======================================  ==================================================================

    Logged once, each name ending in `/optimizer_0`, … where there are several optimizers: each gets its own advice. An
    optimizer that lags behind, or never has a gradient, is waited for until another has made ten times `steps`. Then
    the advice on it is on what it made, and if that is nothing, a warning says so.

    *Cost.* One norm over all gradients a step, shared with the other callbacks here, until it has seen enough; then
    nothing. Norms wait on the device and are read once.

    Args:
        steps: how many steps of each optimizer to watch; those without a gradient do not count.
        stop: whether to end the training after them.

    Raises:
        ValueError: `steps` is below 1, or no whole number.
        MisconfigurationException: at the start of a fit, if gradients cannot be read there (DeepSpeed, FSDP1, LBFGS).

    >>> from lightning.pytorch import Trainer
    >>> advisor = ClippingAdvisor(steps=200, stop=True)
    >>> trainer = Trainer(callbacks=[advisor], logger=False, enable_checkpointing=False, accelerator="cpu")
    >>> advisor.recommendation is None  # before trainer.fit(...)
    True
    """

    def __init__(self, steps: int = 500, *, stop: bool = False) -> None:
        if not whole_number(steps) >= 1:
            raise ValueError(f"ClippingAdvisor: steps is {steps!r}; it must be at least 1, a whole number")
        self.steps = steps
        self.stop = stop
        self.recommendations: dict[int, ClippingAdvice] = {}
        """The advice for each optimizer, by its index; empty before it has been given."""
        self._norms: dict[int, NormBuffer] = {}
        self._made: dict[int, int] = {}
        self._reported = False

    @property
    def recommendation(self) -> ClippingAdvice | None:
        """The advice for the (first) optimizer; None before it has been given."""
        return self.recommendations[min(self.recommendations)] if self.recommendations else None

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps the norms: two instances of different settings each have their own."""
        return self._generate_state_key(steps=self.steps, stop=self.stop)

    def state_dict(self) -> dict[str, Any]:
        """By optimizer index the norms seen and the steps made; and whether the advice on them has been given."""
        norms = {str(index): buffer.state_dict() for index, buffer in self._norms.items()}
        made = {str(index): count for index, count in self._made.items()}
        return {"optimizers": norms, "made": made, "reported": self._reported}

    def _continue_from(self, state_dict: dict[str, Any]) -> None:
        """Go on watching where a checkpoint left off."""
        self._norms = {
            int(index): NormBuffer.from_state_dict(state, self.steps)
            for index, state in state_dict["optimizers"].items()
        }
        self._made = {int(index): count for index, count in state_dict["made"].items()}
        self._reported = state_dict["reported"]
        self.recommendations = self._advice() if self._reported else {}

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse strategies whose gradients cannot be read; warn of a training that is clipped, and go before it."""
        refuse_unsupported_strategy(trainer, "ClippingAdvisor")
        if not can_draw():
            rank_zero_warn(told_without("ClippingAdvisor"))
        clippers = [
            type(callback).__name__
            for callback in callbacks_of(trainer)
            if isinstance(callback, AdaptiveGradientClipping)
        ]
        if trainer.gradient_clip_val:
            clippers.append(f"Trainer(gradient_clip_val={trainer.gradient_clip_val!r})")
        if clippers:
            rank_zero_warn(
                f"ClippingAdvisor watches a training that {' and '.join(clippers)} clips: its norms are measured "
                "before clipping, but the weights are those that a clipped training reaches, and what it would do "
                "without may look different. For advice on a training without clipping, remove the other."
            )
        if trainer.global_step == 0:
            self._norms.clear()
            self._made.clear()
            self.recommendations = {}
            self._reported = False
        go_first(trainer, self)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers whose steps have no one gradient."""
        refuse_unsupported_optimizer(trainer, "ClippingAdvisor")
        forget_steps(trainer.optimizers)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note that there is one: a batch may be left out."""
        note_backward(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note the norm, on the device."""
        if not makes_step(trainer, pl_module):
            return
        if self._reported:
            return
        step = shared_step(optimizer, self, gradient_scaler(trainer))
        if step.parameters:
            index = index_of(trainer, optimizer)
            norms = self._norms.setdefault(index, NormBuffer(self.steps))
            if norms.count < self.steps:
                norms.append(step.total)
            self._made[index] = self._made.get(index, 0) + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Advise, once every optimizer has made its steps, or has been waited for long enough."""
        if self._reported:
            return
        made = [self._made.get(index, 0) for index in range(len(trainer.optimizers))]
        if min(made, default=0) >= self.steps or max(made, default=0) >= PATIENCE * self.steps:
            self._report(trainer)
            self._reported = True
            if self.stop:
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advise on what was seen, if the training ends early."""
        if not self._reported:
            self._report(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Advise on what was seen, if the user or an error ends the training."""
        if self._reported or not is_fitting(trainer):
            return
        try:
            self._report(trainer)
        except Exception as failure:  # of a device that cannot be read any more, say: it must not hide the cause
            rank_zero_warn(f"ClippingAdvisor could not report on the training that broke off: {failure}")

    def _advice(self) -> dict[int, ClippingAdvice]:
        norms = read_together([buffer.norms() for buffer in self._norms.values()])
        return {index: ClippingAdvice(own) for index, own in zip(self._norms, norms, strict=True)}

    def _report(self, trainer: Trainer) -> None:
        self.recommendations = self._advice()
        metrics: dict[str, float] = {}
        for index, advice in self.recommendations.items():
            suffix = metric_suffix(trainer, index)
            metrics |= {f"clipping_advice/{name}{suffix}": value for name, value in advice.metrics().items()}
            if trainer.is_global_zero:
                print(f"\n{advice.table(suffix.removeprefix('/'))}")  # noqa: T201
                if can_draw():
                    log_figure(trainer, "clipping_advice" + suffix, advice.draw(suffix.removeprefix("/")))
        log_metrics(trainer, metrics)
        silent = [str(index) for index in range(len(trainer.optimizers)) if index not in self.recommendations]
        if silent and self.recommendations:
            rank_zero_warn(f"ClippingAdvisor has no advice on optimizer {', '.join(silent)}: it had no gradient")
