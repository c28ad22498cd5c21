"""Callbacks pickled and copied in the middle of a fit, as by packages whose checkpoints keep a trainer's arguments."""

import copy
import io
import pickle

import pytest
import torch
from flow_trainings import LastStep, batches, torch_lstm
from lightnings import Callback
from small_trainings import Regression, fit_module, regression_batches
from torch import nn

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    ClippingAdvisor,
    Fixed,
    GradientFlowMonitor,
    GradientNormMonitor,
    NonMonotonicAveraging,
)


class Copies(Callback):
    def __init__(self, callback):
        self.callback = callback

    def on_train_epoch_end(self, trainer, pl_module):
        self.state = copy.deepcopy(self.callback.state_dict())
        self.copies = [copy.deepcopy(self.callback), pickle.loads(pickle.dumps(self.callback))]
        file = io.BytesIO()
        torch.save(self.callback, file)
        self.size = len(file.getvalue())


CALLBACKS = [
    AdaptiveGradientClipping(),
    AdaptiveGradientClipping(Fixed(1.0), exclude="net.0"),
    GradientNormMonitor(updates=True, gates=True, check_applied=True, histogram_every_n_steps=4),
    ClippingAdvisor(steps=4),
]


@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda callback: type(callback).__name__)
@pytest.mark.filterwarnings("ignore:.*matplotlib")
def test_a_copy_has_the_settings_and_the_history_and_nothing_of_the_fit(callback, tmp_path):
    wide = nn.Sequential(nn.Linear(3, 30_000), nn.Linear(30_000, 1))
    module = Regression(lambda p: torch.optim.Adam(p, lr=1e-4), wide)
    copies = Copies(callback)
    fit_module(module, regression_batches(6), callback, copies, log_every_n_steps=4, default_root_dir=tmp_path)
    assert copies.size < 50_000  # and not the 480 kB of the weights
    for other in copies.copies:
        assert str(other.state_dict()) == str(copies.state)
        assert other.state_key == callback.state_key
        trainer = fit_module(Regression(module.make_optimizer), regression_batches(2), other, default_root_dir=tmp_path)
        assert trainer.global_step == 2


def test_of_the_flow_monitor_whose_history_comes_along():
    callback = GradientFlowMonitor(every_n_steps=1, figures=False)
    copies = Copies(callback)
    fit_module(LastStep(torch_lstm()), batches(3), callback, copies)
    assert copies.size < 10_000
    for other in copies.copies:
        assert other.state_dict()["history"].keys() == copies.state["history"].keys() == {"net"}
        fit_module(LastStep(torch_lstm()), batches(2), other)
        assert other.history["net"].seen == 2


@pytest.mark.filterwarnings("ignore:NonMonotonicAveraging begins to average once")
def test_of_the_averages():
    callback = NonMonotonicAveraging()
    copies = Copies(callback)
    fit_module(Regression(lambda p: torch.optim.SGD(p, lr=0.1)), regression_batches(2), callback, copies)
    for other in copies.copies:
        assert other.state_dict() == copies.state
