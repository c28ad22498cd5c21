"""`Auto` with momentum in whole trainings: a bound that has opened trusts it, and a loss that leaps ends that."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close
from transfers import reading_nothing

from rnn_blocks.callbacks import GradientClipper
from rnn_blocks.callbacks.clipping.update_length import highest_momentum
from rnn_blocks.callbacks.measuring.step import StepGradients

RATE, MOMENTUM, LEAP = 0.1, 0.9, 25
LOSSES = [5.0 * 0.97**step for step in range(LEAP)] + [20.0, 4.0, 4.0]  # new lows, each of which opens the bound by 3 %


class Told:
    """One weight whose gradients and losses are as told; what the clipper and the velocity were at each step."""

    def __init__(self, **optimizer_arguments):
        self.weight = torch.nn.Parameter(torch.tensor([3.0]))
        self.optimizer = torch.optim.SGD([self.weight], lr=RATE, **optimizer_arguments)
        self.thresholds: list[float] = []
        self.velocities: list[float] = []

    def train(self, losses, gradients=(), **settings):
        self.clipper = clipper = GradientClipper(self.optimizer, **settings)
        for loss, gradient in itertools.zip_longest(losses, gradients, fillvalue=2.0):
            self.weight.grad = torch.full_like(self.weight, gradient)
            clipper.clip(torch.tensor(loss))
            self.velocities.append(self.optimizer.state[self.weight].get("momentum_buffer", torch.zeros(1)).item())
            self.optimizer.step()
            self.thresholds.append(clipper.metrics().get("grad_clip/threshold", math.inf))
        return self


def restarted(told):
    """The steps before which the velocity was nothing, but for the first."""
    return [step for step, velocity in enumerate(told.velocities) if velocity == 0 and step]


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_velocity_is_forgotten_at_the_leap_and_never_again(nesterov):
    told = Told(momentum=MOMENTUM, nesterov=nesterov).train([*LOSSES, 40.0, 5.0])
    assert restarted(told) == [LEAP]


def test_the_line_at_the_end_says_so_after_a_checkpoint_too():
    told = Told(momentum=MOMENTUM).train(LOSSES)
    said = f"; the momentum began afresh at step {LEAP}"
    assert told.clipper.summary().endswith(said)
    resumed = GradientClipper(told.optimizer)
    resumed.load_state_dict(told.clipper.state_dict())
    assert resumed.summary() == told.clipper.summary()
    assert "afresh" not in Told(momentum=MOMENTUM).train(LOSSES[:LEAP]).clipper.summary()
    older = told.clipper.state_dict()
    del older["record"]["restarted"]
    resumed.load_state_dict(older)
    assert resumed.summary() + said == told.clipper.summary()


def test_a_leap_before_the_bound_has_opened_leaves_the_velocity_alone():
    assert restarted(Told(momentum=MOMENTUM).train([5.0, 4.9, 20.0, 4.8, *LOSSES])) == []


def test_without_a_leap_nothing_is_forgotten():
    assert restarted(Told(momentum=MOMENTUM).train(LOSSES[:LEAP])) == []


@pytest.mark.parametrize("scope", ["group", "parameter"])
def test_in_other_scopes_there_is_no_trust_and_no_restart(scope):
    assert restarted(Told(momentum=MOMENTUM).train(LOSSES, scope=scope)) == []


def test_where_nothing_is_read_there_is_no_trust_and_no_restart():
    read = Told(momentum=MOMENTUM).train(LOSSES)
    with reading_nothing():
        unread = Told(momentum=MOMENTUM).train(LOSSES, nonfinite="zero")
    assert restarted(unread) == []
    assert_close(read.thresholds[:10], unread.thresholds[:10], rtol=1e-6, atol=0)
    trusted = [now / then for now, then in zip(read.thresholds, unread.thresholds, strict=True)][15:LEAP]
    assert_close(trusted, [math.sqrt(10)] * len(trusted), rtol=1e-6, atol=0)
    assert_close(read.thresholds[LEAP:], unread.thresholds[LEAP:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("step", [3, LEAP - 3])
@pytest.mark.filterwarnings("ignore:.*the gradient of a parameter is not finite")
def test_a_gradient_that_is_not_finite_says_nothing_of_a_momentum(bad, step):
    gradients = [2.0] * step + [bad] + [2.0] * (len(LOSSES) - step - 1)
    assert restarted(Told(momentum=MOMENTUM).train(LOSSES, gradients)) == [LEAP]


def test_a_loss_that_is_not_finite_says_nothing_of_a_momentum():
    losses = [*LOSSES[: LEAP - 1], math.inf, math.nan, *LOSSES[LEAP - 1 :]]
    assert restarted(Told(momentum=MOMENTUM).train(losses)) == [LEAP + 2]


def test_after_a_loss_of_0_that_no_training_has_brought_about_nothing_is_forgotten():
    assert restarted(Told(momentum=MOMENTUM).train([0.0, *LOSSES])) == []


def test_a_loss_of_0_that_training_has_brought_about_does_not_end_the_trust():
    losses = [*LOSSES[:LEAP], 0.0, *[4.0] * 20]
    assert restarted(Told(momentum=MOMENTUM).train(losses)) == []
    assert restarted(Told(momentum=MOMENTUM).train([*losses, 40.0, 4.0, 40.0])) == [len(losses)]


def test_with_a_rate_of_0_nothing_is_forgotten():
    told = Told(momentum=MOMENTUM)
    told.optimizer.param_groups[0]["lr"] = 0.0
    assert restarted(told.train(LOSSES)) == []


def test_a_momentum_of_0_in_that_very_step_does_not_keep_the_velocity():
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.SGD([weight], lr=RATE, momentum=MOMENTUM)
    clipper = GradientClipper(optimizer)
    for loss in LOSSES[: LEAP + 1]:
        weight.grad = torch.full_like(weight, 2.0)
        optimizer.param_groups[0]["momentum"] = MOMENTUM if loss < LOSSES[LEAP] else 0.0
        clipper.clip(torch.tensor(loss))
        if loss < LOSSES[LEAP]:
            optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"] == 0


@pytest.mark.parametrize("chosen", [True, False])
def test_weights_that_have_no_gradient_then_lose_their_velocity_too_unless_they_are_left_out(chosen):
    layers = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1, bias=False) for name in ("here", "away")})
    here, away = (layer.weight for layer in layers.values())
    optimizer = torch.optim.SGD(layers.parameters(), lr=RATE, momentum=MOMENTUM)
    clipper = GradientClipper(optimizer, model=layers, exclude=None if chosen else "away")
    for loss in LOSSES[: LEAP + 1]:
        here.grad = torch.full_like(here, 2.0)
        away.grad = torch.full_like(away, 1e-3) if loss < LOSSES[LEAP] else None
        clipper.clip(torch.tensor(loss))
        if loss < LOSSES[LEAP]:
            optimizer.step()
    assert optimizer.state[here]["momentum_buffer"] == 0
    assert (optimizer.state[away]["momentum_buffer"] == 0) == chosen


@pytest.mark.parametrize(("idle", "momentum"), [("gradient", 0.5), ("nothing", 0.5), (None, 0.99)])
def test_the_momentum_is_the_highest_of_the_groups_that_make_a_step(idle, momentum):
    first, second = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "momentum": 0.5}, {"params": [second], "momentum": 0.99}], lr=RATE)
    if idle == "nothing":
        optimizer.param_groups[1]["params"] = []
    first.grad = torch.ones(1)
    second.grad = None if idle else torch.ones(1)
    assert highest_momentum(optimizer, StepGradients(optimizer)) == momentum
    assert highest_momentum(torch.optim.ASGD([first]), StepGradients(optimizer)) == 0


def test_without_a_momentum_none_begins_afresh():
    assert "afresh" not in Told().train(LOSSES).clipper.summary()
