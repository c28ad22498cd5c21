"""`Auto` with SGD where the loss falls below 0: it is measured above a floor, which is as far below as it has come."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clipping_policies import WEIGHTS, number
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import Auto, GradientClipper, Step

PROMISES = Auto(deviations=1e6)  # nothing is an outlier
FALLING = [4.0 - 0.1 * step for step in range(100)]  # to -5.9


def run(losses, history=None, momentum=0.0, norms=None, policy=PROMISES):
    """The threshold of each step and what is remembered after it."""
    history, thresholds, seen = history or policy.initial_history(WEIGHTS), [], []
    for loss, norm in zip(losses, norms or [1e-3] * len(losses), strict=True):
        step = Step(number(norm), 0.1, WEIGHTS, loss=number(loss), momentum=momentum)
        thresholds.append(policy.clip(history, step).threshold.item())
        history = policy.observe(history, step)
        seen.append(history)
    return thresholds, seen


def by_hand(losses):
    """Where the floor is after each step of a loss that falls."""
    floor, recent, floors = 0.0, losses[0], []
    for step, loss in enumerate(losses):
        recent += min(0.5, 16 / (16 + step)) * (loss - recent) * (step > 0)
        if loss <= floor:
            floor -= losses[0] - recent
        floors.append(floor)
    return floors


def test_the_floor_is_as_far_below_as_the_loss_has_come_each_time_it_is_reached():
    _, seen = run(FALLING)
    floors = by_hand(FALLING)
    assert len(set(floors)) == 3  # 0 at first, reached at 0, and again
    assert_close([history["floor"].item() for history in seen], floors, rtol=1e-6, atol=0)
    for loss, history in zip(FALLING, seen, strict=True):
        assert_close(history["ceiling"].item(), 10 * (4.0 - history["floor"].item()))
        assert history["loss"] >= loss - history["floor"] > 0


def test_what_is_known_of_the_loss_is_known_above_the_new_floor():
    """The loss of before moves by at most 1 %, and by the floor."""
    _, seen = run(FALLING)
    [at] = [step for step, loss in enumerate(FALLING) if loss <= 0 < FALLING[step - 1]]
    before, after = seen[at - 1], seen[at]
    deeper = -after["floor"].item()
    assert deeper > 3.6
    assert_close(after["loss"].item(), 0.99 * before["loss"].item() + deeper, rtol=1e-6, atol=0)
    for name, span in (("smoothed", 16), ("usual", 4)):
        mean = before[name].item()
        mean += min(0.5, span / (span + at)) * (FALLING[at] - mean)
        assert_close(after[name].item(), mean + deeper, rtol=1e-6, atol=0)
    assert_close(after["lowest"].item(), after["smoothed"].item())
    assert_close(after["share"].item(), 1.03 * before["share"].item())


def test_the_threshold_is_that_of_the_loss_above_the_floor():
    thresholds, seen = run(FALLING)
    for step in range(1, len(FALLING)):
        share, followed = seen[step - 1]["share"].item(), seen[step - 1]["loss"].item()
        assert_close(thresholds[step], math.sqrt(share * followed / 0.1))
    assert max(thresholds) < math.inf


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    losses=st.lists(st.floats(-3.0, 20.0), min_size=1, max_size=40),
    norms=st.lists(st.floats(0.01, 30.0), min_size=40, max_size=40),
    momentum=st.sampled_from([0.0, 0.9]),
)
def test_nothing_else_tells_a_loss_above_a_floor_from_one_above_0(losses, norms, momentum):
    floor = -4.0
    known = {"share": 0.4, "loss": 2.0, "smoothed": 1.9, "usual": 2.0, "lowest": 1.8, "ceiling": 50.0, "count": 30}
    history = PROMISES.initial_history(WEIGHTS)
    history |= {name: torch.full_like(history[name], value) for name, value in (known | {"log_norms": 0}).items()}
    above, seen = run([loss - floor for loss in losses], history, momentum, norms[: len(losses)])
    below, sunk = run(losses, history | {"floor": number(floor)}, momentum, norms[: len(losses)])
    closed = (step for step, here in enumerate(seen) if here["share"] <= 0.2)  # which ends it below 0
    until = next(closed, len(seen)) + 1
    assert_close(below[:until], above[:until])
    for name in ("share", "loss", "smoothed", "usual", "lowest", "ceiling", "trust"):
        assert_close([h[name].item() for h in sunk][:until], [h[name].item() for h in seen][:until], msg=name)


def test_one_batch_far_below_0_counts_as_one_as_far_below_as_has_been_gained():
    _, seen = run([*FALLING[:30], -1e6, *FALLING[30:40]])
    before, after = seen[29], seen[30]
    recent = before["lowest"].item()
    recent += 16 / 46 * (-(4.0 - recent) - recent)
    floor = -(4.0 - recent)
    assert_close([history["floor"].item() for history in seen[30:]], [floor] * 11, rtol=1e-6, atol=0)
    assert_close(after["loss"].item(), 0.99 * before["loss"].item() - floor, rtol=1e-6, atol=0)
    assert seen[-1]["lowest"] > 0


class TestRestsForGood:
    @staticmethod
    def rests(losses, at):
        thresholds, _ = run(losses)
        assert all(threshold < math.inf for threshold in thresholds[: at + 1])
        assert thresholds[at + 1 :] == [math.inf] * (len(losses) - at - 1)

    @pytest.mark.parametrize("low", [0.0, -1.0])
    def test_where_a_loss_comes_to_0_that_has_not_been_lowered(self, low):
        self.rests([2.0, 2.1, 1.9, low, *[1.0] * 10], 3)

    @pytest.mark.parametrize(("lows", "goes_on"), [(6, False), (7, True)])  # 0.2·1.03⁷ > 0.24 > 0.2·1.03⁶
    def test_unless_the_share_has_opened_by_a_fifth(self, lows, goes_on):
        losses = [*FALLING[:lows], 0.0, *[1.0] * 5]
        if goes_on:
            assert max(run(losses)[0]) < math.inf
        else:
            self.rests(losses, lows)

    def test_where_the_first_loss_is_below_0(self):
        assert run([-1.0, *FALLING])[0] == [math.inf] * 101

    def test_where_the_share_has_closed_again_in_vain(self):
        """At a recent loss more than one and a quarter times as high above the floor as the lowest."""
        losses = [*FALLING, *[FALLING[-1] + 0.01 * step for step in range(800)]]
        _, seen = run(losses)
        closed = next(step for step, here in enumerate(seen) if here["share"] <= 0.2)
        assert closed > len(FALLING)
        assert seen[closed]["smoothed"] > 1.25 * seen[closed]["lowest"]
        self.rests(losses, closed + 1)

    def test_but_not_while_the_loss_stays_near_its_lowest(self):
        _, seen = run(FALLING)
        history = seen[-1] | {"share": number(0.2)}
        above = history["lowest"].item() + history["floor"].item()
        assert max(run([above + 0.2 * history["lowest"].item()] * 300, history)[0]) < math.inf

    def test_where_a_loss_above_0_closes_the_share_it_does_not(self):
        assert max(run([2.0] * 300)[0]) < math.inf


def test_a_history_from_before_there_was_a_floor_goes_on_with_one_at_0():
    _, seen = run(FALLING[:20])
    older = {name: value for name, value in seen[-1].items() if name != "floor"}
    thresholds, after = run(FALLING[20:], older)
    expected, same = run(FALLING[20:], seen[-1])
    assert thresholds == expected
    assert after[-1]["floor"] == same[-1]["floor"] < 0


def test_a_history_of_before_that_rests_goes_on_resting():
    history = PROMISES.initial_history(WEIGHTS) | {"loss": number(math.inf), "share": number(1.0)}
    del history["floor"], history["trust"]
    assert run([1.0, -1.0, 1.0], history)[0] == [math.inf] * 3


@pytest.mark.parametrize("seed", [1, 2])
def test_a_gaussian_likelihood_at_a_rate_too_high_trains(seed):
    """Mean and log-variance by a network: 16 times the best rate, at which it diverges unclipped."""
    ends = []
    for clips in (False, True):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.016, momentum=0.9)
        clipper, losses = GradientClipper(optimizer, Auto(), nonfinite="zero"), []
        for step in range(400):
            optimizer.param_groups[0]["lr"] = 0.016 * min(1.0, 2 * (1 - step / 400))
            points = 4 * torch.rand(64, 1, generator=generator) - 2
            noise = (0.03 + 0.08 * points.abs()) * torch.randn(64, 1, generator=generator)
            mean, log_variance = net(points).chunk(2, dim=1)
            errors = (torch.sin(2 * points) + noise - mean).square()
            loss = 0.5 * (log_variance + errors * (-log_variance).exp()).mean()
            optimizer.zero_grad()
            loss.backward()
            if clips:
                clipper.clip(loss)
            optimizer.step()
            losses.append(loss.item())
        ends.append(sum(losses[-20:]) / 20)
    assert not ends[0] < 0
    assert ends[1] < -1.5
