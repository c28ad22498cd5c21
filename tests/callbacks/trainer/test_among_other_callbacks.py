"""Beside callbacks and loggers of somebody else's: what they do counts, and what fails in them ends no training."""

import copy
import warnings
from functools import cache

import pytest
import torch
from lightnings import Callback
from small_trainings import Regression, Remember, fit_module, regression_batches
from torch.testing import assert_close

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    ClippingAdvisor,
    Fixed,
    GradientNormMonitor,
    Unitwise,
)


class Changes(Callback):
    """Changes gradients right before the step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for place, parameter in enumerate(pl_module.parameters()):
            self.change(parameter, place, trainer.global_step)


class Scales(Changes):
    def change(self, parameter, place, step):
        parameter.grad.mul_(0.01)


class ScalesBehindTheVersion(Changes):
    def change(self, parameter, place, step):
        parameter.grad.data.mul_(0.01)


class Repairs(Changes):
    def change(self, parameter, place, step):
        parameter.grad = (parameter.grad * (torch.inf if step == 2 else 1)).nan_to_num(0, 0, 0)


class DropsOne(Changes):
    def change(self, parameter, place, step):
        parameter.grad = None if place == 0 else parameter.grad


class DropsAll(Changes):
    def change(self, parameter, place, step):
        parameter.grad = None if step % 3 == 1 else parameter.grad


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def weights_after(*callbacks, **options):
    module = Regression(sgd)
    fit_module(module, regression_batches(8), *callbacks, **options)
    return dict(module.named_parameters())


READERS = {
    "monitor": GradientNormMonitor,
    "histograms": lambda: GradientNormMonitor(histogram_every_n_steps=3, check_applied=True),
    "advisor": lambda: ClippingAdvisor(steps=100),
    "another clipper": lambda: AdaptiveGradientClipping(Fixed(1e9), name="other"),
}
POLICIES = {"whole": Fixed(0.02), "by unit": Unitwise(0.0005)}


@cache
def weights_without_the_reader(changes, policy):
    options = {"log_every_n_steps": 3}
    without = weights_after(changes(), **options)
    clipped = weights_after(changes(), AdaptiveGradientClipping(POLICIES[policy]), **options)
    assert any(not torch.equal(clipped[name], without[name]) for name in clipped)
    return clipped


@pytest.mark.filterwarnings("ignore:.*(check_applied|not finite|ClippingAdvisor)")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("changes", [Scales, ScalesBehindTheVersion, Repairs, DropsOne, DropsAll])
@pytest.mark.parametrize("reader", READERS)
def test_gradients_are_clipped_as_they_are_whoever_has_measured_them_before(reader, changes, policy, tmp_path):
    callbacks = [READERS[reader](), changes(), AdaptiveGradientClipping(POLICIES[policy])]
    weights = weights_after(*callbacks, log_every_n_steps=3, default_root_dir=tmp_path)
    assert_close(weights, weights_without_the_reader(changes, policy), rtol=0, atol=0)


@pytest.mark.parametrize("changes", [Scales, DropsOne])
def test_the_norm_is_told_as_it_comes_and_as_it_goes(changes):
    logger = Remember()
    weights_after(changes(), AdaptiveGradientClipping(Fixed(1e9)), GradientNormMonitor(), logger=logger)
    total, clipped = logger.column("grad_norm/total"), logger.column("grad_norm/clipped")
    assert set(total) == set(clipped) == set(range(8))
    if changes is Scales:
        assert_close(clipped, {step: 0.01 * norm for step, norm in total.items()})
    else:
        assert all(0 < clipped[step] < total[step] for step in total)


class Fails(Remember):
    def log_metrics(self, metrics, step=None):
        super().log_metrics(metrics, step)
        raise ConnectionError("the server is gone")


def test_a_logger_that_fails_ends_no_training_and_is_told_once():
    callbacks = [GradientNormMonitor(), AdaptiveGradientClipping(Fixed(1e9))]
    failing, other = Fails(), Remember()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        weights = weights_after(*copy.deepcopy(callbacks), logger=[failing, other])
    assert_close(weights, weights_after(), rtol=0, atol=0)
    assert set(other.column("grad_norm/total")) == set(other.column("grad_clip/coefficient")) == set(range(8))
    messages = [str(one.message) for one in told if "the server is gone" in str(one.message)]
    assert len(messages) == 1
    assert messages[0].startswith("Fails did not take grad_norm/total, ")
    assert messages[0].endswith("ConnectionError: the server is gone")
