"""A learning rate in proportion to the length of the chunk, by hand, and together with all else that changes it."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from streams import VOCABULARY, Watch, fit, make_stream, plain_loss, sgd
from torch.testing import assert_close

from rnn_blocks import LSTM, LanguageModel
from rnn_blocks.callbacks import AdaptiveGradientClipping, Auto, Fixed
from rnn_blocks.engine import detach_state

# Lightning's advice on trainings without validation.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
LENGTHS = [4, 2, 6, 1, 8, 3]


def make_model(**options):
    torch.manual_seed(1)
    return LanguageModel(LSTM(6, 6), VOCABULARY, **{"optimizer": sgd(), "lr_for_bptt": 4} | options)


def train_by_hand(model, batches, lr, *, accumulate=1, threshold=None, weight_decay=0.0):
    state, sums, lengths = None, None, []
    for number, batch in enumerate(batches, start=1):
        loss, state = plain_loss(model, batch, None if batch.fresh else state)
        state = detach_state(state)
        gradients = torch.autograd.grad(loss / accumulate, list(model.parameters()))
        sums = gradients if sums is None else [a + b for a, b in zip(sums, gradients, strict=True)]
        lengths.append(batch.inputs.shape[1])
        if number % accumulate and number < len(batches):
            continue
        norm = torch.stack([gradient.norm() for gradient in sums]).norm()
        factor = 1.0 if threshold is None else min(1.0, threshold / float(norm))
        rate = lr * sum(lengths) / len(lengths) / 4
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), sums, strict=True):
                parameter -= rate * (factor * gradient + weight_decay * parameter)
        sums, lengths = None, []


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("threshold", [None, 0.1])
def test_each_step_is_made_at_the_rate_of_its_chunks(accumulate, threshold):
    model = make_model(optimizer=partial(torch.optim.SGD, lr=0.5, weight_decay=0.1))
    by_hand = copy.deepcopy(model)
    batches = make_stream(3, LENGTHS)
    callbacks = [] if threshold is None else [AdaptiveGradientClipping(Fixed(threshold))]
    fit(model, batches, None, *callbacks, accumulate_grad_batches=accumulate)
    train_by_hand(by_hand, batches, 0.5, accumulate=accumulate, threshold=threshold, weight_decay=0.1)
    assert_close(list(model.parameters()), list(by_hand.parameters()), rtol=1e-5, atol=1e-6)


def test_lightnings_own_clipping_comes_before_it():
    model = make_model()
    by_hand = copy.deepcopy(model)
    batches = make_stream(3, LENGTHS)
    fit(model, batches, gradient_clip_val=0.1)
    train_by_hand(by_hand, batches, 0.5, threshold=0.1)
    assert_close(list(model.parameters()), list(by_hand.parameters()), rtol=1e-4, atol=1e-5)


class RateSeen(Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_schedules_and_callbacks_see_the_rate_without_the_factor():
    halve = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    watch, seen = Watch(), RateSeen()
    model = make_model(optimizer=sgd(1.0), lr_scheduler=halve, lr_interval="step")
    trainer = fit(model, make_stream(3, LENGTHS), None, seen, watch)
    assert watch.rates == seen.seen == [0.5**step for step in range(6)]
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5**6


def test_a_rate_kept_in_a_tensor_stays_the_users_tensor():
    rate = torch.tensor(0.5)
    model, plain = make_model(optimizer=partial(torch.optim.SGD, lr=rate)), make_model()
    trainer = fit(model, make_stream(3, LENGTHS))
    fit(plain, make_stream(3, LENGTHS))
    assert trainer.optimizers[0].param_groups[0]["lr"] is rate
    assert rate == 0.5
    assert_close(list(model.parameters()), list(plain.parameters()))


class FailingSGD(torch.optim.SGD):
    def step(self, closure=None):
        closure()
        raise RuntimeError(f"failed at a rate of {self.param_groups[0]['lr']}")


def test_a_step_that_fails_leaves_the_users_rate():
    made = []

    def failing(parameters):
        made.append(FailingSGD(parameters, lr=0.5))
        return made[0]

    with pytest.raises(RuntimeError, match=r"failed at a rate of 0\.25"):
        fit(make_model(optimizer=failing), make_stream(3, [2]))
    assert made[0].param_groups[0]["lr"] == 0.5


def moved(lr, length, *callbacks):
    """How far one step of Adam on a chunk moves the weights."""
    model = make_model(optimizer=partial(torch.optim.Adam, lr=lr))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = fit(model, make_stream(3, [length]), None, *callbacks)
    assert trainer.optimizers[0].param_groups[0]["lr"] == lr
    distances = [(a - b).norm() for a, b in zip(model.parameters(), before, strict=True)]
    return float(torch.stack(distances).detach().norm())


def test_the_bound_on_updates_holds_for_the_rate_that_is_used():
    """Adam's first update is as long as the rate says; the bound that adaptive clipping may put on it is one length."""
    bounding = Auto(longest_update=0.05)
    free = {length: moved(1e-4, length, AdaptiveGradientClipping(bounding)) for length in (2, 6)}
    assert free[6] / free[2] == pytest.approx(3, rel=0.05)
    assert free[6] == pytest.approx(moved(1e-4, 6), rel=1e-4)
    bound = {length: moved(1.0, length, AdaptiveGradientClipping(bounding)) for length in (2, 6)}
    assert bound[6] == pytest.approx(bound[2], rel=0.05)
    assert bound[6] < 0.5 * moved(1.0, 6)


def test_mixed_precision_goes_with_it():
    model = make_model()
    by_hand = copy.deepcopy(model)
    fit(model, make_stream(3, LENGTHS), precision="bf16-mixed")
    train_by_hand(by_hand, make_stream(3, LENGTHS), 0.5)
    assert_close(list(model.parameters()), list(by_hand.parameters()), rtol=0.05, atol=0.05)


def test_without_it_the_rate_is_the_users():
    model, scaled = make_model(lr_for_bptt=None), make_model(lr_for_bptt=5)
    for one in (model, scaled):
        fit(one, make_stream(3, [5, 5]))
    assert_close(list(model.parameters()), list(scaled.parameters()))
    with pytest.raises(ValueError, match="lr_for_bptt must be at least 1, got 0"):
        make_model(lr_for_bptt=0)
