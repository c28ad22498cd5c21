"""Weights averaged over the last part of a training, from where validation no longer improves (NT-ASGD)."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rnn_blocks.callbacks.settings import whole_number
from rnn_blocks.callbacks.trainer import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    averages_weights,
    callbacks_of,
    go_around,
    is_fitting,
    log_metrics,
    rank_zero_info,
    rank_zero_warn,
    refuse_sharded_parameters,
    trained_parameters,
)


def stopped_improving(history: list[float], value: float, n: int, mode: Literal["min", "max"] = "min") -> bool:
    """Whether ``value`` is worse than the best of ``history`` without its last ``n``: algorithm 1's condition.

    With t values before it, that is t > n and value > min(history[0 … t-n-1]). The first ``n`` + 1 never are.

    >>> stopped_improving([5.0, 4.0, 3.0], 4.5, n=1), stopped_improving([5.0, 4.0, 3.0], 4.5, n=2)
    (True, False)
    """
    older = history[: max(0, len(history) - n)]
    if not older:
        return False
    return value > min(older) if mode == "min" else value < max(older)


class NonMonotonicAveraging(Callback):
    r"""Averages the weights of all steps since validation stopped improving: NT-ASGD, with any optimizer.

    SGD with a constant learning rate ends up jumping about a minimum; the mean of where it has been is closer to it
    than where it is. Averaging begins after validation number t where

    .. math:: t > n \quad\text{and}\quad v_t > \min(v_0, …, v_{t-n-1})

    and from then on the average is :math:`\frac{1}{k-T+1} \sum_{i=T}^{k} w_i` over the weights after step i, T being
    the step of that validation and k the last. (Merity, Keskar and Socher 2018, "Regularizing and optimizing LSTM
    language models", section 3 and algorithm 1, whose logging interval L is one validation here; the condition in the
    form in which their code has it.) It begins once and never stops. ``torch.optim.ASGD(t0=0, lambd=0)``, which they
    switch to, leaves the first two of these weights out.

    Training itself does not change: it goes on from the last weights, with the same optimizer and schedule. Put to use
    are the averages: by each validation, in each checkpoint's ``"state_dict"`` (so that a `ModelCheckpoint` keeps those
    of the best validation, and whoever loads it needs nothing of this), and in the module when the fit has ended. The
    last weights lie in the checkpoint beside them, and a resumed training is the undisturbed one bit for bit (in
    the middle of an epoch from Lightning 2.5 on: 2.4 itself begins there a batch early). A module's own
    `on_validation_epoch_end` still sees the averages, its `on_validation_end`, which comes last, the last weights. What
    is changed in them before that is lost to the training, with a warning; a module or callback that puts other weights
    in their place for a validation, such as an average of its own, and puts back what it found, disturbs nothing.

    A further fit of the same Trainer goes on from the last weights. Where other weights have been put into the module
    since, it goes on from those, and averages them alone. A parameter that an optimizer is given later is averaged as
    if it had been what it is from the beginning.

    Only parameters that an optimizer holds are averaged: a copy of the network that is replaced now and then, such as a
    target, stays what it is, and buffers (running statistics of batch normalisation) are those of the last step.
    Weights of 16 bits are averaged in 32. Logged once, as it begins: ``averaging/started_at_step``, the optimizer step.

    *Cost.* From the beginning of averaging, one pass over the parameters a step and a copy of them; another copy during
    validation.

    Args:
        monitor: the logged metric that tells how good a validation was. A value that is not finite does not count.
        n: how many of the last validations to leave out of the comparison.
        mode: whether a good value is low (``"min"``) or high (``"max"``).

    Raises:
        ValueError: a setting is out of its range, or a checkpoint's history is of another metric.
        MisconfigurationException: at the start of a fit, with a strategy that shards the parameters, or beside another
            callback that averages weights; at a validation's end, if the metric was not logged.

    >>> from lightning.pytorch import Trainer
    >>> averaging = NonMonotonicAveraging(monitor="val/loss", n=5)
    >>> trainer = Trainer(callbacks=[averaging], logger=False, enable_checkpointing=False, accelerator="cpu")
    >>> averaging.started_at_step is None
    True
    """

    def __init__(self, monitor: str = "val/loss", n: int = 5, *, mode: Literal["min", "max"] = "min") -> None:
        if not whole_number(n) >= 0:
            raise ValueError(f"NonMonotonicAveraging: n is {n!r}; it must be a whole number, at least 0")
        if mode not in ("min", "max"):
            raise ValueError(f"NonMonotonicAveraging: mode is {mode!r}; it must be 'min' or 'max'")
        self.monitor = monitor
        self.n = n
        self.mode = mode
        self._forget()

    def _forget(self) -> None:
        self._history: list[float] = []
        self._started_at_step: int | None = None
        self._updated_at_step = 0
        self._count = 0
        self._averages: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] | None = None  # the last step's weights, while the module holds the averages
        self._put_back: dict[str, Tensor] | None = None  # the same from a validation's end to the next batch
        self._changed_within = False  # whether somebody changed the averages during that validation
        self._warned = False

    @property
    def started_at_step(self) -> int | None:
        """The optimizer step T after which averaging began; None before."""
        return self._started_at_step

    @property
    def history(self) -> list[float]:
        """What the validations before it gave."""
        return list(self._history)

    def state_dict(self) -> dict[str, Any]:
        """The history, the step at which averaging began, and the averages; tensors, lists and numbers."""
        return {
            "monitor": self.monitor,
            "history": list(self._history),
            "started_at_step": self._started_at_step,
            "updated_at_step": self._updated_at_step,
            "count": self._count,
            "averages": {name: average.clone() for name, average in self._averages.items()},
        }

    def _continue_from(self, state_dict: dict[str, Any]) -> None:
        """Continue a checkpoint's history and averages."""
        if state_dict["monitor"] != self.monitor:
            raise ValueError(
                f"NonMonotonicAveraging: the checkpoint's history is of {state_dict['monitor']!r}, and this instance "
                f"monitors {self.monitor!r}"
            )
        self._history = list(state_dict["history"])
        self._started_at_step = state_dict["started_at_step"]
        self._updated_at_step = state_dict["updated_at_step"]
        self._count = state_dict["count"]
        self._averages = {name: average.clone() for name, average in state_dict["averages"].items()}

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what averaging cannot work with; begin afresh in a new training."""
        refuse_sharded_parameters(trainer, "NonMonotonicAveraging")
        others = [
            other
            for other in callbacks_of(trainer, self)
            if isinstance(other, NonMonotonicAveraging) or averages_weights(other)
        ]
        if others:
            raise MisconfigurationException(
                f"NonMonotonicAveraging and {type(others[0]).__name__} would both average the weights: remove one"
            )
        if trainer.global_step == 0:
            self._forget()
        # around whatever else puts other weights in their place for a validation, and after the checkpoints of a
        # validation, some of which (`save_weights_only`) hold what is in the module
        go_around(trainer, _ToAverages(self), _GoOnFromLast(self))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin afresh where somebody has put other weights in the place of the averages that an earlier fit left."""
        if self._last is not None and not self._is_in(pl_module):
            rank_zero_warn(
                "NonMonotonicAveraging: the module no longer holds the averages that the last fit has left in it. This "
                "one goes on from the weights that it holds, and averages them alone"
            )
            self._last, self._averages, self._count = None, {}, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from the last weights where an earlier fit has left the averages."""
        self.use_last(pl_module)
        if self._started_at_step is None and not trainer.enable_validation:
            rank_zero_warn(
                "NonMonotonicAveraging begins to average once validation has stopped improving, and this training has "
                "no validation: nothing will be averaged"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """See to it that training goes on from the last weights."""
        self._settle(pl_module)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights into the average, if the batch ended with an optimizer step."""
        if self._started_at_step is None or trainer.global_step == self._updated_at_step:
            return
        self._updated_at_step = trainer.global_step
        self._count += 1
        parameters = _averaged_parameters(pl_module, trainer)
        self._put_on_devices(parameters)
        averages = [self._averages[name] for name in parameters]
        weights = [
            parameter.to(average.dtype) for parameter, average in zip(parameters.values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, weights, 1 / self._count)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to average, if validation has stopped improving."""
        if self._started_at_step is not None or not is_fitting(trainer) or trainer.sanity_checking:
            return
        known = trainer.callback_metrics
        if self.monitor not in known:
            raise MisconfigurationException(
                f"NonMonotonicAveraging(monitor={self.monitor!r}): the validation did not log it; it logged "
                f"{', '.join(sorted(known)) or 'nothing'}"
            )
        value = float(trainer.strategy.broadcast(known[self.monitor].item()))  # all ranks begin at once
        if not math.isfinite(value):
            return
        if stopped_improving(self._history, value, self.n, self.mode):
            self._started_at_step = self._updated_at_step = trainer.global_step
            self._count = 1
            self._averages = {
                name: _first_average(parameter) for name, parameter in _averaged_parameters(pl_module, trainer).items()
            }
            rank_zero_info(
                f"NonMonotonicAveraging: averages the weights from step {trainer.global_step} on: {self.monitor} is "
                f"{value:.5g}, and was better {self.n + 1} or more validations ago"
            )
            log_metrics(trainer, {"averaging/started_at_step": float(trainer.global_step)})
        self._history.append(value)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averages in the module."""
        self.use_averages(pl_module, trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint's weights the averages, and keep the last weights beside them."""
        if self._started_at_step is None:
            return
        self._settle(pl_module)
        parameters = _averaged_parameters(pl_module, trainer)
        last = self._last or {name: parameter.detach() for name, parameter in parameters.items()}
        checkpoint["callbacks"][self.state_key]["last_weights"] = last
        names = {parameter: name for name, parameter in parameters.items()}
        averages = checkpoint["callbacks"][self.state_key]["averages"]  # the same tensors, which are written once
        for alias, parameter in pl_module.named_parameters(remove_duplicate=False):  # tied weights have several names
            if names.get(parameter) in averages and alias in checkpoint["state_dict"]:
                checkpoint["state_dict"][alias] = averages[names[parameter]].to(parameter.dtype)

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a training go on from the last weights; all else takes the averages."""
        last = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("last_weights")
        self._last = None if last is None else {name: weight.clone() for name, weight in last.items()}
        if is_fitting(trainer):
            self.use_last(pl_module)

    @torch.no_grad()
    def use_averages(self, module: LightningModule, trainer: Trainer) -> None:
        """Put the averages into the module, and keep the last step's weights; nothing before averaging begins."""
        if self._started_at_step is None or self._last is not None:
            return
        self._settle(module)
        parameters = _averaged_parameters(module, trainer)
        self._put_on_devices(parameters)
        self._last = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.copy_(self._averages[name])

    @torch.no_grad()
    def use_last(self, module: LightningModule) -> None:
        """Put the last step's weights back into the module, if it holds the averages."""
        if self._last is None:
            return
        _put_into(module, self._last)
        self._last = None

    def go_on(self, module: LightningModule) -> None:
        """The same at a validation's end, of which others may not have seen the end yet."""
        self._put_back = self._last
        self._changed_within = self._last is not None and not self._is_in(module)
        self.use_last(module)

    def _settle(self, module: LightningModule) -> None:
        """Where others changed weights during a validation, or put back what they had found, go on as without it."""
        last, self._put_back = self._put_back, None
        if last is None:
            return
        if not _holds_all(module, last):
            if self._is_in(module):  # such as by a module that keeps an average of its own
                _put_into(module, last)
                return
        elif not self._changed_within:
            return
        if self._changed_within and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"NonMonotonicAveraging: weights of {type(module).__name__} were changed during a validation, while it "
                "held the averages. Training goes on from the last step's weights, without that change, unless they "
                "were changed again at the validation's end"
            )

    def _is_in(self, module: LightningModule) -> bool:
        """Whether a module holds the averages."""
        return _holds_all(module, self._averages)

    def _put_on_devices(self, parameters: dict[str, nn.Parameter]) -> None:
        # a checkpoint is loaded before the module goes to its device
        self._averages = {
            name: average.to(parameter.device)
            if (average := self._averages.get(name)) is not None and average.shape == parameter.shape
            else _first_average(parameter)
            for name, parameter in parameters.items()
        }


class _ToAverages(Callback):
    """Lets the averages be validated, before any other callback begins with the validation."""

    def __init__(self, averaging: NonMonotonicAveraging) -> None:
        self._averaging = averaging

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer):
            self._averaging.use_averages(pl_module, trainer)


class _GoOnFromLast(Callback):
    """Puts the last weights back when every other callback is done with a validation."""

    def __init__(self, averaging: NonMonotonicAveraging) -> None:
        self._averaging = averaging

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_fitting(trainer):
            self._averaging.go_on(pl_module)


@torch.no_grad()
def _put_into(module: LightningModule, weights: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])


def _holds_all(module: LightningModule, weights: dict[str, Tensor]) -> bool:
    parameters = dict(module.named_parameters())
    return all(name in parameters and _holds(parameters[name].detach(), own) for name, own in weights.items())


def _first_average(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)


def _holds(weight: Tensor, average: Tensor) -> bool:
    own = average.to(weight)
    return weight.shape == own.shape and bool(((weight == own) | (weight.isnan() & own.isnan())).all())


def _averaged_parameters(module: LightningModule, trainer: Trainer) -> dict[str, nn.Parameter]:
    """Those that are trained: another network's copy, which is replaced now and then, is no point of a path."""
    numbers = {name: p for name, p in module.named_parameters() if p.is_floating_point() or p.is_complex()}
    trained = trained_parameters(trainer)
    held = {name: p for name, p in numbers.items() if p in trained}
    return held or numbers  # where optimizers that are not the trainer's make the steps, or on copies of the weights
