"""`Auto`, and a bound on Adam's updates, on a GPU: half precision under a real scaler, and no waiting for it."""

import contextlib
import math

import pytest
import torch
from auto_by_hand import AutoByHand
from lightnings import MixedPrecision, Trainer
from small_trainings import Regression, regression_batches
from torch.testing import assert_close
from torch.utils.data import DataLoader

from rnn_blocks.callbacks import AdaptiveGradientClipping, Auto, GradientNormMonitor

DEVICE = "cuda"
LONGEST = 0.05
BOUNDED = Auto(longest_update=LONGEST)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def maker(fused, rate=1.0):
    return lambda parameters: torch.optim.Adam(parameters, lr=rate, fused=fused)


def scaled(scale):
    scaler = torch.amp.GradScaler(DEVICE, init_scale=scale, growth_interval=1000)
    return MixedPrecision("16-mixed", DEVICE, scaler=scaler)


def batches_on_the_device(count):
    return [tuple(part.to(DEVICE) for part in batch) for batch in regression_batches(count)]


def fit(module, batches, *callbacks, **options):
    trainer = Trainer(
        callbacks=list(callbacks),
        accelerator=DEVICE,
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_in_every_precision_parameters_are_those_of_a_loop_by_hand(precision, fused):
    """Trap 3: with a fused optimizer gradients are still scaled in the hook."""
    batches, scale = batches_on_the_device(36), 2.0**8 if precision == "16-mixed" else 1.0
    batches[20][1].add_(50)
    module, expected = Regression(maker(fused)), Regression(maker(False)).to(DEVICE)
    options = {"plugins": [scaled(scale)]} if precision == "16-mixed" else {"precision": precision}
    trainer = fit(
        module, batches, GradientNormMonitor(), AdaptiveGradientClipping(BOUNDED), log_every_n_steps=5, **options
    )
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    optimizer = expected.configure_optimizers()
    by_hand = AutoByHand(optimizer, LONGEST)
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype) if dtype else contextlib.nullcontext():
            loss = expected.loss(batch)
        (loss * scale).backward()
        for parameter in by_hand.parameters:
            parameter.grad /= scale
        by_hand.step()
    assert by_hand.clipped >= 1
    assert by_hand.bounded >= 30
    assert trainer.callback_metrics["grad_clip/skipped_steps"] == 0
    tolerance = 1e-4 if dtype is None else 1e-2
    trained = {name: parameter.cpu() for name, parameter in module.named_parameters()}
    wanted = {name: parameter.cpu() for name, parameter in expected.named_parameters()}
    assert_close(trained, wanted, rtol=tolerance, atol=tolerance)


class RefusesToWait(Regression):
    """Ten training steps, with all that callbacks do in them, during which waiting for the device is an error."""

    first = 41

    def training_step(self, batch, batch_idx):
        if self.first <= batch_idx < self.first + 10:
            torch.cuda.set_sync_debug_mode("error")
        return self.loss(batch)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def _waiting_allowed_again():
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_waiting_allowed_again")
@pytest.mark.parametrize("bad", [None, math.nan])
@pytest.mark.parametrize(
    ("fused", "nonfinite", "half"),
    [
        (True, "skip", False),
        (True, "raise", False),
        (True, "zero", False),
        (False, "zero", False),
        (True, "skip", True),
    ],
)
def test_between_logging_steps_nothing_waits_for_the_device(fused, nonfinite, half, bad):
    """Trap 12. Step 48 is among the ten, at which the length of updates is measured and the last length counts."""
    if bad is not None and nonfinite == "raise":
        pytest.skip("ends the training at the next logging step")
    batches = batches_on_the_device(60)
    if bad is not None:
        batches[45][0][0, 0] = bad
    module = RefusesToWait(maker(fused))
    monitor = GradientNormMonitor(gates=True, updates=True, top_k=2)
    clipping = AdaptiveGradientClipping(BOUNDED, nonfinite=nonfinite)
    options = {"plugins": [scaled(2.0**8)]} if half else {}
    told = pytest.warns(UserWarning, match="not finite") if bad is not None and not half else contextlib.nullcontext()
    with told:
        trainer = fit(module, batches, monitor, clipping, log_every_n_steps=20, **options)
    assert trainer.callback_metrics["grad_clip/skipped_steps"] == (0 if bad is None else 1)
    assert trainer.callback_metrics["grad_clip/update_coefficient"] < 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())
