"""How far back in time the gradient reaches: its norm at every hidden state of every recurrence."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rnn_blocks.callbacks.figures import can_draw, told_without
from rnn_blocks.callbacks.gradient_flow.compiled import (
    compiled_around,
    not_measured,
    perhaps_compiled_around,
    runs_eagerly,
)
from rnn_blocks.callbacks.gradient_flow.history import FlowHistory, decay_rate
from rnn_blocks.callbacks.gradient_flow.plot import flow_figure
from rnn_blocks.callbacks.gradient_flow.recorder import FlowRecorder, StatesOf
from rnn_blocks.callbacks.gradient_flow.state_replay import Source
from rnn_blocks.callbacks.gradient_flow.targets import chosen_targets, refuse_nothing_to_measure
from rnn_blocks.callbacks.settings import number, whole_number
from rnn_blocks.callbacks.trainer import (
    Callback,
    LightningModule,
    Trainer,
    gradient_scaler,
    log_figure,
    log_metrics,
    logged_step,
    rank_zero_warn,
    refuse_unsupported_optimizer,
    refuse_unsupported_strategy,
    trained_parameters,
)

SOURCES = ("all", "last")
RECOVERED = 0.8  # an alarm is over where what is left of a gradient is past the limit to this power
ADVICE = {
    "vanishing": (
        "what lies so far back is not learnt. Gated cells started for long times (LSTM with init='chrono(T)'), "
        "orthogonal recurrent weights, skips through time, leaky units or linear recurrences (LRU) keep more of it; so "
        "does `vanishing_gradient_penalty` for Elman layers"
    ),
    "exploding": (
        "single steps can throw the weights away. Clip gradients (AdaptiveGradientClipping), lower the learning rate, "
        "or start with smaller or orthogonal recurrent weights"
    ),
}


class GradientFlowMonitor(Callback):
    """Measures ``‖∂L/∂h_t‖``, the gradient of the loss at every hidden state, and draws it over the training.

    It is the *total* derivative: what the loss takes from step ``t`` itself, and what comes back to it through the
    recurrence. Where it falls off with the distance in time, gradients vanish, and what lies far back is not learnt;
    where it grows, they explode (Pascanu, Mikolov and Bengio 2013, "On the difficulty of training recurrent neural
    networks"). Measured are, under the names that modules have in the LightningModule:

    - `Recurrent` layers of this library, wherever they are: in `LSTM`, `RecurrentStack`, `Bidirectional`, `WeightDrop`,
      …, on any engine (but not where single steps are taken by ``layer.step``);
    - torch's `nn.LSTM`, `nn.GRU` and `nn.RNN`, as `<name>`, or, where there are several, `<name>.l0`,
      `<name>.l0_reverse`, `<name>.l1`, …: batch first or not, bidirectional, with dropout between layers, packed,
      without a batch. Left out with a warning: projections (``proj_size``), dropout between cuDNN's layers, whose masks
      cannot be had, and subclasses that take or give something else;
    - any other module by a function in `states`.

    ======================================  ===========================================================================
    `gradient_flow/<layer>/decay_rate`      factor by which the norm changes with each step back (`decay_rate`); a
                                            figure of the same name without the last part: training step × distance
    ======================================  ===========================================================================

    *Distance* is counted from the end of each sequence, in the direction in which a layer goes through it: for a
    backward layer from the first step. At each distance the norm is that over the whole batch; where sequences have
    different lengths, over those that reach so far, scaled up to the whole batch. Several calls of a layer in one
    training step count as one larger batch, and several backward passes of one as that of the sum of their losses.
    What else is differentiated in a step, such as a penalty's norm, does not count.

    *Loss at every step.* With one loss at the end the curve is that of the textbooks. With a loss at every step (a
    language model) each step's own gradient comes in on the way, and the curve stays level even if none of it reaches
    more than a few steps: it tells what each state is told, and not from how far. ``source="last"`` lets only that
    through which reaches each sequence's last step (and its final state), so that the curve is that of the recurrence
    alone.

    *How.* On a measuring step what goes into and comes out of each layer is recorded and, after the backward pass, its
    recurrence is run again by a plain loop with the same weights, masks and random numbers. The training is, to the
    last bit, the one without this callback. Where the replay differs from the original, the layer is left out with a
    warning. Figures are unscaled under a gradient scaler, and of one micro-batch under accumulation.

    *Cost.* Between measuring steps nothing. On a CPU a measuring step takes 1.2 times an ordinary one for a language
    model of 2 × 200 LSTM units and 10,000 words, 1.4 times for 2 × 650, and 2.0 to 2.4 times where the recurrence is
    all there is (`tests/benchmarks/gradient_flow_cost.py`): with one in 500, less than 0.3 %. For its duration it keeps
    a copy of the recurrent layers' weights, inputs and outputs; the norms are read in one transfer. A figure takes some
    tenths of a second.

    *Under torch.compile* torch's own layers are measured as ever, since its compiler leaves them as they are. This
    library's, and modules of `states`, become a part of what is compiled around them, where no hook sees them: those
    are left out, and a warning tells inside what they run. The training stays the one without this callback; a layer
    that turns out at the first measurement to run compiled has been compiled once more for it. What runs eagerly, by
    ``engine="compiled"`` too, is measured: keep a layer out of the compiled part by `torch.compiler.disable` on the
    forward of the module that calls it, or train some steps without `torch.compile` for the picture.

    *Several devices.* Under DDP and `ModelParallelStrategy` (FSDP2) the first rank measures its own share of the batch,
    and others wait for it at their next exchange. DeepSpeed and FSDP1 are refused; layers whose weights are sharded
    even where they run (tensor parallelism) are left out.

    Args:
        every_n_steps: how many batches that make a step lie between measurements; the first one is measured.
        layers: only these: names of modules, those below them included. By default all.
        states: functions ``(module, args, output) -> states`` by the name of a module: the hidden states of a call of
            it, one tensor ``(batch, …)`` a time step, in order of time. They must be the very tensors that the next
            step reads, not slices of a stacked output.
        source: ``"all"``: the total derivative; ``"last"``: see above. States of `states` are always ``"all"``.
        vanishing: warn where, by the fitted rate, less than this part of the gradient is left at the far end.
        exploding: warn where it has grown to more than this at the far end. A layer is warned about once, and again
            when it had recovered in between, by a fifth of the way to 1 on a logarithmic scale.
        figures: whether to draw: when the history has grown by a quarter, and at the end. Left out, with a warning at
            the start, where matplotlib is missing.
        max_layers: at most so many layers are measured.

    Raises:
        ValueError: a setting is out of its range, or names what is not there.
        MisconfigurationException: at the start of a fit, if there is nothing to measure, or the strategy is refused.

    >>> from lightning.pytorch import Trainer
    >>> monitor = GradientFlowMonitor(every_n_steps=100, source="last")
    >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    of_a_fit = {"_targets": dict, "_recorder": lambda: None}  # noqa: RUF012

    def __init__(
        self,
        *,
        every_n_steps: int = 500,
        layers: Sequence[str] | None = None,
        states: Mapping[str, StatesOf] | None = None,
        source: Source = "all",
        vanishing: float = 1e-5,
        exploding: float = 1e3,
        figures: bool = True,
        max_layers: int = 16,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("max_layers", max_layers)):
            if not whole_number(value) >= 1:
                raise ValueError(f"GradientFlowMonitor: {name} is {value!r}; it must be a whole number of at least 1")
        if source not in SOURCES:
            raise ValueError(f"GradientFlowMonitor: source is {source!r}; choose one of 'all', 'last'")
        if not 0 <= number(vanishing) < 1:
            raise ValueError(f"GradientFlowMonitor: vanishing is {vanishing!r}; it must be at least 0 and below 1")
        if not number(exploding) > 1:
            raise ValueError(f"GradientFlowMonitor: exploding is {exploding!r}; it must be above 1")
        if isinstance(layers, str):
            raise ValueError(f"GradientFlowMonitor: layers is {layers!r}; it must be a list of names")
        self.every_n_steps = every_n_steps
        self.layers = None if layers is None else list(layers)
        self.states = dict(states or {})
        self.source: Source = source
        self.vanishing = vanishing
        self.exploding = exploding
        self.figures = figures
        self.max_layers = max_layers
        self.history: dict[str, FlowHistory] = {}
        self._targets: dict[str, nn.Module] = {}
        self._recorder: FlowRecorder | None = None
        self._went_back = False
        self._measured_at = -1
        self._drawn = 0
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps the history: two instances of different settings each have their own."""
        return self._generate_state_key(
            every_n_steps=self.every_n_steps, layers=self.layers, states=sorted(self.states), source=self.source
        )

    def state_dict(self) -> dict[str, Any]:
        """The history of each layer: dicts, lists, numbers, strings and tensors only."""
        return {
            "history": {name: history.state_dict() for name, history in self.history.items()},
            "measured_at": self._measured_at,
            "drawn": self._drawn,
        }

    def _continue_from(self, state_dict: dict[str, Any]) -> None:
        """Continue a checkpoint's history."""
        self.history = {name: FlowHistory.from_state_dict(history) for name, history in state_dict["history"].items()}
        self._measured_at, self._drawn = state_dict["measured_at"], state_dict["drawn"]

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot work, before anything has run."""
        refuse_unsupported_strategy(trainer, "GradientFlowMonitor")
        if self.figures and not can_draw():
            rank_zero_warn(told_without("GradientFlowMonitor"))
        self._warned.clear()
        if trainer.global_step == 0:
            self.history, self._measured_at, self._drawn = {}, -1, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers whose steps have no one gradient."""
        refuse_unsupported_optimizer(trainer, "GradientFlowMonitor")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers: only now all of them are there."""
        wanted, refused = chosen_targets(pl_module, self.layers, self.states)
        for name, reason in refused.items():
            self._warn_once(name, reason)
        refuse_nothing_to_measure(wanted, pl_module)
        if len(wanted) > self.max_layers:
            rank_zero_warn(
                f"GradientFlowMonitor measures the first {self.max_layers} of {len(wanted)} layers; choose by `layers` "
                "or raise `max_layers`"
            )
        self._targets = dict(list(wanted.items())[: self.max_layers])
        self._leave_out(
            {
                name: around
                for name, module in self._targets.items()
                if (name in self.states or not runs_eagerly(module)) and (around := compiled_around(pl_module, module))
            }
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to record, on a measuring step."""
        step = logged_step(trainer)
        due = step % self.every_n_steps == 0 and step != self._measured_at
        if not due or not self._targets or not trainer.is_global_zero:
            return
        self._stop_recording()
        self._went_back = False
        self._recorder = FlowRecorder(self._targets, self.states, self.source)
        self._recorder.attach()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Forget what else was differentiated, such as a penalty's norm: it is not the loss that is trained."""
        if self._recorder is not None:
            self._recorder.forget_gradients()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run again what gradients have come back through; under manual optimisation more may come."""
        if self._recorder is not None:
            self._went_back = True
            scaler = gradient_scaler(trainer)
            scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=pl_module.device))
            if pl_module.automatic_optimization:  # where Lightning divides the loss
                self._recorder.collect(scale / trainer.accumulate_grad_batches)
            else:
                self._recorder.keep_gradients(scale)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read what was measured, log it, warn, and draw."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        if self._went_back:
            recorder.forget_gradients()
        recorder.collect(1.0)  # else what was differentiated without the Trainer's knowing
        unreached = recorder.unreached()
        recorder.detach()
        step = logged_step(trainer)
        metrics: dict[str, float] = {}
        for name, reason in recorder.problems.items():
            self._warn_once(name, reason)
        self._explain_silence(recorder, trainer, pl_module, step)
        curves = recorder.read()
        for name in sorted(unreached if self._went_back else ()):
            if name not in self.states:
                self._warn_once(name, f"was not measured in step {step}: no gradient came back to what it gave")
        for name in sorted(recorder.again - recorder.reached):
            self._warn_once(
                name,
                "was not measured: it runs again in the backward pass (checkpoint); with use_reentrant=False it is",
            )
        for name in self.states:
            if name in recorder.called and name not in curves:
                self._warn_once(
                    name,
                    "was not measured: no gradient reached the states that its function handed out; they must be the "
                    "very tensors that the next step reads",
                )
        for name, (norms, error) in curves.items():
            self._measured_at = step
            if not error <= _tolerance(pl_module):
                self._warn_once(
                    name,
                    f"was left out: running it again gives other outputs than the training had (off by {error:.2g} of "
                    "their norm)",
                )
                continue
            rate = decay_rate(norms)
            if math.isinf(rate) and gradient_scaler(trainer) is not None:
                continue  # an overflow, which the scaler takes care of
            history = self.history.setdefault(name, FlowHistory())
            history.add(step, norms)
            if not math.isnan(rate):
                metrics[f"gradient_flow/{name}/decay_rate"] = rate
                self._watch(name, history, rate, len(norms) - 1)
        log_metrics(trainer, metrics)
        rows = max((history.seen for history in self.history.values()), default=0)
        if rows >= 1.25 * self._drawn and rows > 1:
            self._draw(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the modules as they were, where the epoch ended before its batch did (on_train_batch_start gave -1)."""
        self._stop_recording()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the whole training."""
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the modules as they were, and draw what there is: it may tell why."""
        self._stop_recording()
        try:
            self._draw(trainer)
        except Exception as failure:  # of a logger whose server is gone, say: it must not hide the cause
            rank_zero_warn(f"GradientFlowMonitor could not draw the training that broke off: {failure}")

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.detach()
            self._recorder = None

    def _watch(self, name: str, history: FlowHistory, rate: float, span: int) -> None:
        reach = rate**span if rate < 1 else math.exp(min(span * math.log(rate), 700.0))
        alarm = "vanishing" if reach < self.vanishing else "exploding" if reach > self.exploding else ""
        if alarm and alarm != history.alarm:
            rank_zero_warn(
                f"GradientFlowMonitor: the gradient through {name!r} is {alarm}: with each step back its norm changes "
                f"by a factor of {rate:.3g}, over {span} steps by {reach:.1e}; {ADVICE[alarm]}."
            )
        if alarm or self.vanishing**RECOVERED < reach < self.exploding**RECOVERED:
            history.alarm = alarm

    def _explain_silence(self, recorder: FlowRecorder, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """Tell of layers whose calls were not seen in a step; a copy that nobody trains need not be called."""
        trained = trained_parameters(trainer)
        silent = [name for name in self._targets if name not in recorder.called]
        perhaps = perhaps_compiled_around(pl_module)
        went_through = self._went_back or bool(recorder.called)
        hidden: dict[str, str] = {}
        for name in silent:
            eager = name not in self.states and runs_eagerly(self._targets[name])
            if recorder.traced(name) or (perhaps and went_through and not eager):
                hidden[name] = perhaps or "a compiled function"
            elif went_through and not trained.isdisjoint(self._targets[name].parameters()):
                ways = "" if eager else ", but neither by its `step` nor in a function that torch.compile compiled"
                self._warn_once(name, f"was not called in step {step}; it is measured in the steps that call it{ways}")
        self._leave_out(hidden)

    def _leave_out(self, hidden: Mapping[str, str]) -> None:
        """Measure layers no more that run compiled: a hook on them would only have them compiled once more."""
        self._targets = {name: module for name, module in self._targets.items() if name not in hidden}
        for around in dict.fromkeys(hidden.values()):
            rank_zero_warn(not_measured([name for name in hidden if hidden[name] == around], around))

    def _warn_once(self, name: str, reason: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            rank_zero_warn(f"GradientFlowMonitor: {name!r} {reason}")

    def _draw(self, trainer: Trainer) -> None:
        rows = max((history.seen for history in self.history.values()), default=0)
        if not self.figures or not can_draw() or not trainer.is_global_zero or rows == self._drawn:
            return
        self._drawn = rows
        for name, history in self.history.items():
            log_figure(trainer, f"gradient_flow/{name}", flow_figure(name, history))


def _tolerance(pl_module: LightningModule) -> float:
    """How far a single step may be off, relative to its size: more where numbers have few digits."""
    half = pl_module.dtype in (torch.float16, torch.bfloat16) or "16" in str(pl_module.trainer.precision)
    return 5e-2 if half else 1e-2
