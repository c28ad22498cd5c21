"""`Auto` with momentum in whole trainings: a bound that has opened trusts it, and a loss that leaps ends that."""

import math

import pytest
import torch
from torch.testing import assert_close
from transfers import reading_nothing

from rnn_blocks.callbacks import GradientClipper

RATE, MOMENTUM, LEAP = 0.1, 0.9, 25
LOSSES = [5.0 * 0.97**step for step in range(LEAP)] + [20.0, 4.0, 4.0]  # new lows, each of which opens the bound by 3 %


class Told:
    """One weight whose gradients and losses are as told; what the clipper and the velocity were at each step."""

    def __init__(self, **optimizer_arguments):
        self.weight = torch.nn.Parameter(torch.tensor([3.0]))
        self.optimizer = torch.optim.SGD([self.weight], lr=RATE, **optimizer_arguments)
        self.thresholds: list[float] = []
        self.velocities: list[float] = []

    def train(self, losses, **settings):
        clipper = GradientClipper(self.optimizer, **settings)
        for loss in losses:
            self.weight.grad = torch.full_like(self.weight, 2.0)
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
