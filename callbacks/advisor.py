"""A fixed clipping threshold, recommended from the norms that a training shows without clipping."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from rnn_blocks.callbacks.clipping import AdaptiveGradientClipping
from rnn_blocks.callbacks.clipping_advice import ClippingAdvice
from rnn_blocks.callbacks.figures import log_figure, require_matplotlib
from rnn_blocks.callbacks.gradient_norms import forget_steps, shared_step
from rnn_blocks.callbacks.norm_buffer import NormBuffer
from rnn_blocks.callbacks.support import (
    log_metrics,
    metric_suffix,
    refuse_unsupported_optimizer,
    refuse_unsupported_strategy,
)
from rnn_blocks.callbacks.transfer import read_together


class ClippingAdvisor(Callback):
    """Watches a training without clipping it, and recommends a fixed threshold for those who want a constant.

    After `steps` steps of every optimizer, or when the fit ends or is broken off before, it prints a table of candidate
    thresholds and how many of the steps each would have clipped, logs the same, and draws the norms with the candidates
    (``plots/clipping_advice.png`` below the run's folder, and the loggers that take pictures; matplotlib is needed).
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

    Logged once, each name ending in `/optimizer_0`, … where there are several optimizers: each gets its own advice.

    *Cost.* One norm over all gradients a step, shared with the other callbacks here, until it has seen enough; then
    nothing. Norms wait on the device and are read once.

    Args:
        steps: how many optimizer steps to watch.
        stop: whether to end the training after them.

    Raises:
        ValueError: `steps` is below 1.
        MisconfigurationException: at the start of a fit, if gradients cannot be read there (DeepSpeed, FSDP1, LBFGS).
        ModuleNotFoundError: at the start of a fit, if matplotlib is missing.

    >>> from lightning.pytorch import Trainer
    >>> advisor = ClippingAdvisor(steps=200, stop=True)
    >>> trainer = Trainer(callbacks=[advisor], logger=False, enable_checkpointing=False, accelerator="cpu")
    >>> advisor.recommendation is None  # before trainer.fit(...)
    True
    """

    def __init__(self, steps: int = 500, *, stop: bool = False) -> None:
        if steps < 1:
            raise ValueError(f"ClippingAdvisor: steps is {steps!r}; it must be at least 1")
        self.steps = steps
        self.stop = stop
        self.recommendations: dict[int, ClippingAdvice] = {}
        """The advice for each optimizer, by its index; empty before it has been given."""
        self._norms: dict[int, NormBuffer] = {}
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
        """The norms seen by each optimizer index, and whether the advice on all of them has been given."""
        norms = {str(index): buffer.state_dict() for index, buffer in self._norms.items()}
        return {"optimizers": norms, "reported": self._reported}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on watching where a checkpoint left off."""
        self._norms = {
            int(index): NormBuffer.from_state_dict(state, self.steps)
            for index, state in state_dict["optimizers"].items()
        }
        self._reported = state_dict["reported"]
        self.recommendations = self._advice() if self._reported else {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies whose gradients cannot be read; warn of a training that is clipped."""
        if stage != "fit":
            return
        refuse_unsupported_strategy(trainer, "ClippingAdvisor")
        require_matplotlib("ClippingAdvisor")
        clippers = [
            type(callback).__name__
            for callback in trainer.callbacks  # type: ignore[attr-defined]
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
            self.recommendations = {}
            self._reported = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers whose steps have no one gradient."""
        refuse_unsupported_optimizer(trainer, "ClippingAdvisor")
        forget_steps(trainer.optimizers)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note the norm, on the device."""
        if self._reported:
            return
        step = shared_step(trainer, optimizer, self)
        if step.parameters:
            norms = self._norms.setdefault(trainer.optimizers.index(optimizer), NormBuffer(self.steps))
            if norms.count < self.steps:
                norms.append(step.total)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Advise, once every optimizer has made its steps."""
        if self._reported:
            return
        counts = [buffer.count for buffer in self._norms.values()]
        if len(counts) == len(trainer.optimizers) and min(counts) >= self.steps:
            self._report(trainer)
            self._reported = True
            if self.stop:
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advise on what was seen, if the training ends early."""
        if not self._reported:
            self._report(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Advise on what was seen, if the user ends the training."""
        if isinstance(exception, KeyboardInterrupt) and not self._reported:
            self._report(trainer)

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
                log_figure(trainer, "clipping_advice" + suffix, advice.draw(suffix.removeprefix("/")))
        log_metrics(trainer, metrics)
