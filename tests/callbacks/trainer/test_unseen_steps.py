"""Steps that Lightning's hook does not come before, logs that are never due, and optimizers replaced in the middle."""

import warnings

import pytest
import torch
from lightnings import MixedPrecision
from small_trainings import Around, Regression, Remember, fit_module, regression_batches
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


class Manual(Regression):
    """Steps what `take` gives of it."""

    automatic_optimization = False

    def __init__(self, take, make_optimizer=sgd):
        super().__init__(make_optimizer)
        self.take = take

    def training_step(self, batch, batch_idx):
        optimizer = self.take(self)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


def raw(module):
    return module.optimizers(use_pl_optimizer=False)


def said_in(module, *callbacks, **options):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit_module(module, regression_batches(4), *callbacks, **options)
    return [str(one.message) for one in said if "rnn-blocks" not in str(one.message)]


def test_a_step_of_torchs_own_optimizer_under_manual_optimisation_is_told_of_once():
    module = Manual(raw)
    said = said_in(module, GradientNormMonitor(), AdaptiveGradientClipping(Fixed(1e-3)))
    [monitor] = [one for one in said if one.startswith("GradientNormMonitor: Manual makes a step of optimizer 0 (SGD)")]
    [clipping] = [one for one in said if one.startswith("AdaptiveGradientClipping: Manual makes a step of optimizer 0")]
    assert "nothing is measured in such steps" in monitor
    assert "nothing is clipped in such steps" in clipping
    assert "step what `self.optimizers()` gives" in clipping
    assert not module.trainer.optimizers[0]._optimizer_step_pre_hooks


class OwnStep(Regression):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.optimizer.step(closure=optimizer_closure)


def test_so_is_one_in_an_optimizer_step_of_the_modules_own():
    said = said_in(OwnStep(sgd), AdaptiveGradientClipping())
    assert len([one for one in said if "OwnStep makes a step of optimizer 0 (SGD)" in one]) == 1


@pytest.mark.parametrize("callback", [GradientNormMonitor, AdaptiveGradientClipping])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("make", [lambda: Regression(sgd), lambda: Manual(Manual.optimizers)], ids=["auto", "manual"])
def test_steps_that_lightning_tells_of_are_not(make, scaled, callback):
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler=scaler)] if scaled else []
    assert not [one for one in said_in(make(), callback(), plugins=plugins) if "makes a step of" in one]


def test_nor_are_those_of_what_a_wrapper_wraps():
    said = said_in(Regression(lambda p: Around(sgd(p))), AdaptiveGradientClipping())
    assert not [one for one in said if "makes a step of" in one]


def test_nor_are_those_of_an_optimizer_that_is_not_to_be_clipped():
    class Two(Manual):
        def configure_optimizers(self):
            return [sgd(self.net[0].parameters()), sgd(self.net[2].parameters())]

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            self.manual_backward(self.loss(batch))
            for optimizer in (first, second.optimizer):
                optimizer.step()
                optimizer.zero_grad()

    assert not [one for one in said_in(Two(None), AdaptiveGradientClipping(optimizers=0)) if "makes a step of" in one]
    said = said_in(Two(None), AdaptiveGradientClipping())
    assert len([one for one in said if "makes a step of optimizer 1 (SGD)" in one]) == 1


def test_a_trainer_that_logs_no_step_is_told_of():
    [said] = [one for one in said_in(Regression(sgd), GradientNormMonitor(), log_every_n_steps=0) if "nothing" in one]
    assert said.startswith("GradientNormMonitor logs nothing here: the trainer has log_every_n_steps=0")


class Switches(Regression):
    def __init__(self, make_optimizer, other):
        super().__init__(make_optimizer)
        self.other = other

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.trainer.optimizers = [self.other(self.parameters())]


def test_a_switch_to_lbfgs_goes_on_without_clipping_and_says_so():
    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=2)

    plain, clipped, logger = Switches(sgd, lbfgs), Switches(sgd, lbfgs), Remember()
    fit_module(plain, regression_batches(4), max_epochs=2)
    with pytest.warns(UserWarning, match=r"optimizer 0 is LBFGS from step 4 on, .* 0 of 4 steps clipped\."):
        fit_module(clipped, regression_batches(4), AdaptiveGradientClipping(Fixed(1e9)), logger=logger, max_epochs=2)
    assert_close(clipped.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert sorted(logger.column("grad_clip/threshold")) == [0, 1, 2, 3]


def test_a_switch_to_other_parameters_begins_anew_with_a_warning_and_trains_as_without():
    def one_of_two(parameters):
        return torch.optim.SGD(list(parameters)[:1], lr=0.01)

    plain, clipped = Switches(sgd, one_of_two), Switches(sgd, one_of_two)
    clipping = AdaptiveGradientClipping(Fixed(1e9))
    fit_module(plain, regression_batches(4), max_epochs=2)
    with pytest.warns(UserWarning, match=r"AdaptiveGradientClipping.* It begins anew .*\(optimizer 0\)"):
        fit_module(clipped, regression_batches(4), clipping, max_epochs=2)
    assert_close(clipped.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert clipping.state_dict()["optimizers"]["0"]["parameters"] == [[1, 24]]
