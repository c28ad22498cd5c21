import math

import pytest
import torch
from lightnings import LightningModule
from small_trainings import (
    GradientIsBatch,
    Regression,
    Remember,
    fit_module,
    norms_as_batches,
    regression_batches,
)
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05, weight_decay=0.1)


def norm(tensors):
    return float(torch.cat([tensor.double().flatten() for tensor in tensors]).norm())


class Remembers(Regression):
    """Keeps its weights as they are after each batch."""

    def __init__(self, *args):
        super().__init__(*args)
        self.weights = [self.copy()]

    def copy(self):
        return {name: p.detach().clone() for name, p in self.named_parameters()}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.weights.append(self.copy())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_of_weights_and_of_updates_are_those_of_a_copy_by_hand(accumulate):
    module, logger = Remembers(adam), Remember()
    monitor = GradientNormMonitor(updates=True, depth=2)
    fit_module(module, regression_batches(4), monitor, logger=logger, accumulate_grad_batches=accumulate)
    assert len(logger.rows) == 4 // accumulate
    for k, (_, row) in enumerate(logger.rows):
        before, after = module.weights[k * accumulate], module.weights[(k + 1) * accumulate]
        expected = {}
        for name in ("total", "net.0", "net.2"):
            keys = [key for key in before if name == "total" or key.startswith(name)]
            weight, update = norm(before[key] for key in keys), norm(after[key] - before[key] for key in keys)
            expected |= {f"weight_norm/{name}": weight, f"update_norm/{name}": update}
            expected[f"update_ratio/{name}"] = update / weight
        logged = {key: value for key, value in row.items() if not key.startswith("grad_norm")}
        assert_close(logged, expected, rtol=1e-6, atol=0)


def test_updates_are_compared_on_logging_steps_only():
    logger = Remember()
    monitor = GradientNormMonitor(updates=True)
    fit_module(Regression(adam), regression_batches(7), monitor, logger=logger, log_every_n_steps=3)
    assert list(logger.column("update_norm/total")) == [2, 5]
    assert monitor._due == {}


@pytest.mark.parametrize("clipping_first", [True, False])
def test_a_skipped_update_has_norm_zero_and_a_clipped_one_its_clipped_norm(clipping_first):
    logger = Remember()
    callbacks = [AdaptiveGradientClipping(Fixed(2.0)), GradientNormMonitor(updates=True)]
    batches = [*norms_as_batches([1.0, 8.0]), torch.full((4,), math.nan)]
    module = GradientIsBatch(make_optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    with pytest.warns(UserWarning, match="the update is skipped"):
        fit_module(module, batches, *callbacks[:: 1 if clipping_first else -1], logger=logger)
    assert_close(list(logger.column("update_norm/total").values()), [0.1, 0.2, 0.0], rtol=1e-5, atol=0)
    assert_close(list(logger.column("weight_norm/total").values()), [2.0, 1.9, 1.7], rtol=1e-5, atol=0)


def test_weights_of_zero_have_no_ratio():
    module, logger = GradientIsBatch(), Remember()
    nn.init.zeros_(module.weight)
    fit_module(module, norms_as_batches([1.0]), GradientNormMonitor(updates=True), logger=logger)
    [(_, row)] = logger.rows
    assert row["weight_norm/total"] == 0
    assert "update_ratio/total" not in row
    assert row["update_norm/total"] > 0


class TwoOptimizers(LightningModule):
    """Two parts with an optimizer each; the first steps three times a batch, and the last time is what is logged."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.many, self.one = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(9))

    def training_step(self, batch, batch_idx):
        many, one = self.optimizers()
        for k in range(1, 4):
            many.zero_grad()
            self.manual_backward((self.many * k * batch).sum())
            many.step()
        one.zero_grad()
        self.manual_backward((self.one * batch).sum())
        one.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([self.many], lr=0.1), torch.optim.SGD([self.one], lr=0.01)]


def test_several_optimizers_each_have_their_own_and_of_several_steps_the_last():
    logger = Remember()
    fit_module(TwoOptimizers(), [torch.tensor(2.0)], GradientNormMonitor(updates=True), logger=logger)
    [(_, row)] = logger.rows
    expected = {
        "grad_norm/total/optimizer_0": 3 * 2 * 2,
        "update_norm/total/optimizer_0": 0.1 * 3 * 2 * 2,
        "weight_norm/many/optimizer_0": 2 * abs(1 - 0.1 * (2 + 4)),
        "update_norm/total/optimizer_1": 0.01 * 2 * 3,
        "weight_norm/total/optimizer_1": 3.0,
    }
    assert_close({name: row[name] for name in expected}, {k: float(v) for k, v in expected.items()}, rtol=1e-5, atol=0)
    assert not [name for name in row if name.endswith(("weight_norm/one/optimizer_0", "update_norm/many/optimizer_1"))]
