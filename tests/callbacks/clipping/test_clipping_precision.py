import math

import pytest
import torch
from lightnings import MixedPrecision
from small_trainings import GradientIsBatch, Regression, Remember, clip_by_hand, fit_module, regression_batches
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor, NonFiniteGradientError


def optimizer_maker(fused: bool):
    return lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=fused)


def scaled_precision(init_scale: float = 2.0**10) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=1000)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


def test_bf16_mixed_trains_the_same_parameters_as_a_hand_written_loop():
    batches = regression_batches(16)
    module, expected = Regression(optimizer_maker(False)), Regression(optimizer_maker(False))
    fit_module(module, batches, AdaptiveGradientClipping(Fixed(1.0)), precision="bf16-mixed")
    optimizer = expected.configure_optimizers()
    norms = []
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = expected.loss(batch)
        loss.backward()
        norms.append(clip_by_hand(list(expected.parameters()), 1.0))
        optimizer.step()
    assert sum(norm > 1.0 for norm in norms) > 3
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-5, atol=1e-6)


def test_bfloat16_parameters_are_measured_in_float32():
    logger = Remember()
    module = GradientIsBatch(10_000).bfloat16()
    fit_module(module, [torch.full((10_000,), 1.0).bfloat16()], GradientNormMonitor(), logger=logger)
    assert logger.column("grad_norm/total") == {0: 100.0}  # a bfloat16 sum stops at 256


@pytest.mark.parametrize("fused", [True, False])
def test_with_a_gradient_scaler_gradients_are_clipped_unscaled_fused_optimizer_or_not(fused):
    """Trap 3: with a fused optimizer gradients are still scaled in the hook."""
    batches, logger = regression_batches(16), Remember()
    module, expected = Regression(optimizer_maker(fused)), Regression(optimizer_maker(False))
    fit_module(
        module,
        batches,
        GradientNormMonitor(),
        AdaptiveGradientClipping(Fixed(1.0)),
        plugins=[scaled_precision()],
        logger=logger,
    )
    optimizer = expected.configure_optimizers()
    norms = []
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = expected.loss(batch)
        (loss * 2.0**10).backward()
        for parameter in expected.parameters():
            parameter.grad /= 2.0**10
        norms.append(clip_by_hand(list(expected.parameters()), 1.0))
        optimizer.step()
    assert sum(norm > 1.0 for norm in norms) > 3
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-4, atol=1e-5)
    assert_close(list(logger.column("grad_norm/total").values()), norms, rtol=1e-3, atol=0)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("nonfinite", ["skip", "zero", "raise"])
def test_a_gradient_scaler_still_sees_its_overflow(fused, nonfinite):
    module = GradientIsBatch(make_optimizer=optimizer_maker(fused))
    expected = GradientIsBatch(make_optimizer=optimizer_maker(False))
    good, bad = torch.full((4,), 0.5), torch.tensor([1.0, math.inf, 1.0, 1.0])
    plugin, clipping = scaled_precision(), AdaptiveGradientClipping(nonfinite=nonfinite)
    trainer = fit_module(module, [good, bad, good], clipping, plugins=[plugin])
    fit_module(expected, [good, good], AdaptiveGradientClipping())
    assert plugin.scaler.get_scale() == 2.0**9
    assert_close(module.weight, expected.weight, rtol=1e-5, atol=0)
    assert trainer.callback_metrics["grad_clip/skipped_steps"] == 1


def test_a_scaler_that_finds_no_scale_ends_in_an_error():
    with pytest.raises(NonFiniteGradientError, match="not finite for 4 steps in a row"):
        fit_module(
            GradientIsBatch(),
            [torch.full((4,), math.nan)] * 10,
            AdaptiveGradientClipping(max_nonfinite=4),
            plugins=[scaled_precision()],
        )


@pytest.mark.parametrize("fused", [True, False])
def test_two_optimizers_under_one_scaler_are_each_measured_by_their_own_unscaled_gradients(fused):
    """Trap 4: of the module only the stepping optimizer's gradients are unscaled."""

    class TwoByHand(GradientIsBatch):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.second = nn.Parameter(torch.ones(4))

        def training_step(self, batch, batch_idx):
            self.manual_backward((self.weight * batch + 100 * self.second * batch).sum())
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self):
            return [optimizer_maker(fused)([self.weight]), optimizer_maker(fused)([self.second])]

    logger = Remember()
    fit_module(TwoByHand(), [torch.full((4,), 0.5)], GradientNormMonitor(), plugins=[scaled_precision()], logger=logger)
    assert logger.column("grad_norm/total/optimizer_0") == {0: 1.0}
    assert_close(logger.column("grad_norm/total/optimizer_1"), {0: 100.0}, rtol=1e-3, atol=0)
