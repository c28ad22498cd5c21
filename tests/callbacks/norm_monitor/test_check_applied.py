"""`GradientNormMonitor(check_applied=True)`: the norm that the update used, and a word where another was measured."""

import re
import warnings

import pytest
import torch
from lightnings import Callback, MixedPrecision
from small_trainings import GradientIsBatch, Regression, Remember, fit_module, norms_as_batches, regression_batches
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor

NORMS = [5.0, 0.5, 2.0, 8.0]


def monitored(module, *callbacks, norms=NORMS, **options):
    """What was logged, and what was said."""
    logger = Remember()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = GradientNormMonitor(check_applied=True)
        fit_module(module, norms_as_batches(norms), *callbacks, monitor, logger=logger, **options)
    said = [str(w.message) for w in caught if "check_applied" in str(w.message)]
    return logger, said


def applied(logger):
    return list(logger.column("grad_norm/applied").values())


class ByHand(GradientIsBatch):
    automatic_optimization = False

    def __init__(self, clip=False):
        super().__init__()
        self.clip = clip

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        optimizer.step()


class InTheirHook(GradientIsBatch):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)


class BeforeBackward(GradientIsBatch):
    def training_step(self, batch, batch_idx):
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        return super().training_step(batch, batch_idx)


class AfterBackward(GradientIsBatch):
    def on_after_backward(self):
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)


class ClipsLater(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        nn.utils.clip_grad_norm_(pl_module.parameters(), 1.0)


class PutsBack(GradientIsBatch):
    """As an optimizer does that has gradients of its own."""

    def on_after_backward(self):
        self.kept = self.weight.grad.clone()

    def on_before_optimizer_step(self, optimizer):
        self.weight.grad = self.kept


CLIPPED = [min(norm, 1.0) for norm in NORMS]


def nesterov(parameters):
    """It changes the gradients in place, in its update."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("module", [GradientIsBatch(), ByHand(), GradientIsBatch(make_optimizer=nesterov)])
def test_it_is_silent_where_nothing_is_changed(module):
    logger, said = monitored(module)
    assert said == []
    assert_close(applied(logger), NORMS)


@pytest.mark.parametrize("module", [GradientIsBatch, ByHand])
def test_it_knows_of_the_clipping_beside_it(module):
    logger, said = monitored(module(), AdaptiveGradientClipping(Fixed(1.0)))
    assert said == []
    assert_close(applied(logger), CLIPPED)
    assert_close(applied(logger), list(logger.column("grad_norm/clipped").values()))


def test_it_shows_what_the_trainer_clips_without_a_word():
    logger, said = monitored(GradientIsBatch(), gradient_clip_val=1.0)
    assert said == []
    assert_close(applied(logger), CLIPPED, rtol=1e-5, atol=0)
    assert_close(list(logger.column("grad_norm/total").values()), NORMS)


@pytest.mark.parametrize(
    ("module", "callbacks", "message", "norms"),
    [
        (ByHand(clip=True), [], r"between the backward pass \(norm 5\) and the monitor's hook \(norm 1\)", CLIPPED),
        (AfterBackward(), [], r"between the backward pass \(norm 5\) and the monitor's hook \(norm 1\)", CLIPPED),
        (InTheirHook(), [], "their norm was 5 there, and 1 in the update", CLIPPED),
        (GradientIsBatch(), [ClipsLater()], "their norm was 5 there, and 1 in the update", CLIPPED),
        (BeforeBackward(), [], "changed inside `training_step`, before the backward.*no effect", NORMS),
        (
            PutsBack(),
            [AdaptiveGradientClipping(Fixed(2.5))],
            "no effect: it brought the norm down from 5 to 2.5, and the update used gradients of norm 5",
            NORMS,
        ),
    ],
    ids=["in training_step", "on_after_backward", "configure", "callback", "before backward", "put back"],
)
def test_it_says_once_what_is_wrong(module, callbacks, message, norms):
    logger, said = monitored(module, *callbacks)
    assert len(said) == 1, said
    assert re.search(message, said[0])
    assert_close(applied(logger), norms, rtol=1e-5, atol=0)


def test_two_optimizers_by_hand_of_which_the_second_backward_leaves_gradients_with_the_first():
    class Adversaries(GradientIsBatch):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.other = nn.Parameter(torch.ones(4))

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward((self.weight * self.other * batch).sum())
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD([weight], lr=1e-4) for weight in (self.weight, self.other)]

    logger, said = monitored(Adversaries())
    assert said == []
    for place in (0, 1):
        suffix = f"/optimizer_{place}"
        assert_close(logger.column("grad_norm/applied" + suffix), logger.column("grad_norm/total" + suffix))


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_scaler_norms_are_compared_unscaled(fused):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    module = Regression(lambda p: torch.optim.AdamW(p, lr=0.01, fused=fused))
    logger = Remember()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*check_applied")
        fit_module(
            module,
            regression_batches(4),
            GradientNormMonitor(check_applied=True),
            AdaptiveGradientClipping(Fixed(1.0)),
            plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
            logger=logger,
        )
    assert_close(applied(logger), list(logger.column("grad_norm/clipped").values()), rtol=1e-3, atol=0)


def test_accumulation_and_skipped_updates_are_no_findings():
    norms = [1.0, 2.0, float("nan"), 1.0, 3.0, 1.0]
    logger, said = monitored(GradientIsBatch(), AdaptiveGradientClipping(Fixed(9.0)), norms=norms)
    assert said == []
    assert_close(applied(logger), [1.0, 2.0, 0.0, 1.0, 3.0, 1.0])
    logger, said = monitored(GradientIsBatch(), norms=[1.0, 3.0, 2.0, 2.0], accumulate_grad_batches=2)
    assert said == []
    assert_close(applied(logger), [2.0, 2.0])


def test_the_training_is_the_same_and_the_optimizer_has_no_hook_left():
    batches = regression_batches(6)
    make_optimizer = lambda p: torch.optim.Adam(p, lr=0.1)  # noqa: E731
    module, expected = Regression(make_optimizer), Regression(make_optimizer)
    trainer = fit_module(module, batches, GradientNormMonitor(check_applied=True))
    fit_module(expected, batches)
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=0, atol=0)
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
