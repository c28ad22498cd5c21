"""Histograms of gradients and parameters, against numpy's counts of a loop written out by hand."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed
from rnn_blocks.recipes.run.weights_and_biases.logger import WandbRun
from rnn_blocks.recipes.run.weights_and_biases.watch import BINS, WatchHistograms, histogram

STEPS, ACCUMULATED = 6, 2


class Model(pl.LightningModule):
    """A layer, and one that nothing reaches."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(30, 20)
        self.unused = nn.Linear(2, 2)
        self._fused = fused

    def training_step(self, batch: Tensor, batch_idx: int = 0) -> Tensor:
        return self.layer(batch).tanh().square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01, fused=self._fused)


class Rows(WandbRun):
    """Keeps what is logged, by step."""

    def __init__(self) -> None:
        super().__init__("disabled", project="p")
        self._experiment = SimpleNamespace()  # type: ignore[assignment]
        self.rows: dict[int, dict[str, Any]] = {}

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        assert step is not None
        self.rows.setdefault(step, {}).update(metrics)


def _batches() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(8, 30, generator=draw) for _ in range(STEPS * ACCUMULATED)]


def _fit(model: Model, watched: Any, every: int, **trainer: Any) -> dict[int, dict[str, Any]]:
    logger, callbacks = Rows(), [AdaptiveGradientClipping(Fixed(1e-3)), WatchHistograms(watched, every)]
    pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        accumulate_grad_batches=ACCUMULATED,
        callbacks=callbacks,
        logger=logger,
        log_every_n_steps=4,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    ).fit(model, DataLoader(_batches(), batch_size=None))  # type: ignore[arg-type]
    return {
        step: {name: value for name, value in row.items() if name.startswith(("gradients/", "parameters/"))}
        for step, row in logger.rows.items()
    }


PRECISIONS = ["32-true", "bf16-mixed", "16-mixed", "16-mixed, fused"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_histograms_are_of_whole_unscaled_unclipped_gradients_at_every_precision(precision: str) -> None:
    """Scaled gradients are 1024 times as large; clipped ones have a norm of 0.001."""
    model, dtype = Model(fused="fused" in precision), None
    if precision.startswith("16"):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
        settings: dict[str, Any] = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}
        dtype = torch.float16
    else:
        settings = {"precision": precision}
        dtype = torch.bfloat16 if precision == "bf16-mixed" else None
    rows = _fit(model, "all", 2, **settings)
    assert {step for step, row in rows.items() if row} == {1, 3, 5}

    by_hand = Model()
    optimizer = by_hand.configure_optimizers()
    for step in range(STEPS):
        optimizer.zero_grad()
        for batch in _batches()[step * ACCUMULATED : (step + 1) * ACCUMULATED]:
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                loss = by_hand.training_step(batch) / ACCUMULATED
            (loss * (2.0**10 if dtype is torch.float16 else 1)).backward()
        for parameter in by_hand.layer.parameters():
            assert parameter.grad is not None
            parameter.grad /= 2.0**10 if dtype is torch.float16 else 1
        if step % 2:
            for name, parameter in by_hand.layer.named_parameters():
                assert parameter.grad is not None
                for kind, tensor in (("gradients", parameter.grad), ("parameters", parameter.detach())):
                    _assert_counted(rows[step][f"{kind}/layer.{name}"], tensor)
            assert len(rows[step]) == 4, "what has no gradient has no histogram"
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1e-3)
        optimizer.step()


def _assert_counted(histogram: Any, tensor: Tensor) -> None:
    """The same bins but for rounding, and the same counts but for values that it moves over an edge."""
    counts, edges = np.histogram(tensor.numpy(), BINS)
    assert sum(histogram.histogram) == tensor.numel()
    np.testing.assert_allclose(histogram.bins, edges, rtol=1e-3, atol=1e-3 * np.abs(edges).max())
    assert np.abs(np.array(histogram.histogram) - counts).sum() <= 2 + tensor.numel() // 50


@pytest.mark.parametrize("watched", ["gradients", "parameters"])
def test_one_kind_alone_can_be_watched(watched: str) -> None:
    rows = _fit(Model(), watched, 3)
    assert {step for step, row in rows.items() if row} == {2, 5}
    assert rows[2].keys() == {f"{watched}/layer.weight", f"{watched}/layer.bias"}


TENSORS = {
    "usual": torch.randn(1000, generator=torch.Generator().manual_seed(2)),
    "bfloat16": torch.randn(1000, generator=torch.Generator().manual_seed(2)).bfloat16(),
    "on the edges": torch.arange(65.0),
    "of two dimensions": torch.arange(12.0).view(3, 4),
    "tiny": torch.tensor([1e-45, 3e-45, 1e-44]),
    "huge": torch.tensor([-3e38, 0.0, 3e38]),
    "one value": torch.full((5,), 2.0),
    "one huge value": torch.full((5,), 1e30),
    "sparse": torch.sparse_coo_tensor([[1, 1, 4]], torch.tensor([1.0, 2.0, -1.0]), (6,), check_invariants=True),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_histogram_counts_as_numpy_does(kind: str) -> None:
    tensor = TENSORS[kind]
    values = (tensor.to_dense() if tensor.is_sparse else tensor).double().numpy().ravel()
    found = histogram(tensor)
    assert found is not None
    counts, edges = found
    assert counts.tolist() == np.histogram(values, edges)[0].tolist()
    assert len(counts) == BINS
    assert counts.sum() == values.size
    if "one" not in kind:
        assert (edges[0], edges[-1]) == (values.min(), values.max())


def test_values_that_are_not_finite_are_in_no_bin() -> None:
    found = histogram(torch.tensor([1.0, float("nan"), 2.0, float("inf"), float("-inf")]))
    assert found is not None
    assert (found[0].sum(), found[1][0], found[1][-1]) == (2, 1.0, 2.0)
    assert histogram(torch.tensor([float("nan")])) is None
    assert histogram(torch.zeros(0)) is None
