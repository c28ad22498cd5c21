"""Histograms of gradients and parameters: a light ``wandb.watch`` that sees gradients as the update does."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.optim import Optimizer

from rnn_blocks.callbacks.measuring.norms import widest
from rnn_blocks.callbacks.measuring.parameters import parameter_names
from rnn_blocks.callbacks.measuring.step import StepGradients
from rnn_blocks.callbacks.trainer import go_first, gradient_scaler, logged_step, refuse_sharded_parameters

Watched: TypeAlias = Literal["gradients", "parameters", "all"]

BINS = 64


class WatchHistograms(Callback):
    """Every so many optimizer steps, a histogram of each parameter and of its gradient, in the row of the step.

    Gradients are whole (accumulated), unscaled, and not clipped yet; parameters are those that they were computed at.
    Nothing is done in the steps between: there are no hooks in the model.

    Args:
        watched: ``"gradients"``, ``"parameters"`` or ``"all"``.
        every_n_steps: optimizer steps from one to the next; the first is the one of this number.

    Raises:
        MisconfigurationException: at the start of a fit whose strategy shards the parameters.

    >>> WatchHistograms("all", every_n_steps=100).state_key
    'WatchHistograms'
    """

    def __init__(self, watched: Watched, every_n_steps: int) -> None:
        self._watched = watched
        self._every = every_n_steps

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Go before whatever changes gradients."""
        if stage == "fit":
            refuse_sharded_parameters(trainer, "--watch")
            go_first(trainer, self)  # type: ignore[arg-type]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure and log."""
        step = logged_step(trainer)
        if (step + 1) % self._every:
            return
        gradients = StepGradients(optimizer, gradient_scaler(trainer))  # unscaled on every rank
        if not trainer.is_global_zero:
            return
        names = parameter_names(pl_module)
        tensors: dict[str, Tensor] = {}
        for parameter in gradients.parameters:
            name, gradient = names.get(parameter, "other"), parameter.grad
            if self._watched != "parameters" and gradient is not None:
                tensors[f"gradients/{name}"] = gradient
            if self._watched != "gradients":
                tensors[f"parameters/{name}"] = parameter
        _log(trainer, tensors, step)


def _log(trainer: pl.Trainer, tensors: Mapping[str, Tensor], step: int) -> None:
    import wandb

    counted = {name: histogram(tensor) for name, tensor in tensors.items()}
    found: dict[str, Any] = {
        name: wandb.Histogram(np_histogram=counts_and_edges)
        for name, counts_and_edges in counted.items()
        if counts_and_edges is not None
    }
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and found:
            logger.log_metrics(found, step=step)


@torch.no_grad()
def histogram(tensor: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    """How a tensor's finite values are spread over bins of one width, from the lowest to the highest.

    Args:
        tensor: of any shape, floating dtype and device; sparse too, whose values that are not stored are zeros.

    Returns:
        How many are in each bin, ``(BINS,)``, and the bins' edges, ``(BINS + 1,)``; None where no value is finite.

    >>> counts, edges = histogram(torch.tensor([0.0, 1.0, 1.0, float("inf")]))
    >>> counts.tolist() == [1] + 62 * [0] + [2], edges[[0, -1]].tolist()
    (True, [0.0, 1.0])
    """
    values = (tensor.to_dense() if tensor.is_sparse else tensor).flatten()
    values = values[values.isfinite()].to(widest(values.device))
    if not values.numel():
        return None
    low, high = torch.stack(torch.aminmax(values)).tolist()
    edges = np.linspace(low, high, BINS + 1)
    if not (edges[:-1] < edges[1:]).all():  # all but one value: around it
        margin = max(0.5, 1e-6 * abs(high))
        low, high = low - margin, high + margin
        edges = np.linspace(low, high, BINS + 1)
    if values.device.type == "cpu":  # numpy is right at the edges, too
        return np.histogram(values.numpy(), BINS, (low, high))[0], edges
    return torch.histc(values, BINS, low, high).long().cpu().numpy(), edges
