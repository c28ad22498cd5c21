"""`Auto` with SGD: no step may promise more of the loss than a share of it, whatever the scales of weights and loss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clipping_policies import WEIGHTS, clipped_norms, clips, lognormal, number
from torch import Tensor
from torch.testing import assert_close

from rnn_blocks.callbacks import Auto, Step
from rnn_blocks.callbacks.measuring.numbers import in_numbers

PROMISES = Auto(deviations=1e6)  # nothing is an outlier
FAST = settings(max_examples=20, deadline=None, derandomize=True)


def histories(losses, norms=None, rate=1.0, policy=PROMISES):
    """What is remembered after each step."""
    history, seen = {name: in_numbers(value) for name, value in policy.initial_history(WEIGHTS).items()}, []
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        history = policy.observe(history, Step(float(norm), rate, WEIGHTS.item(), loss=loss))
        seen.append({name: history[name] for name in ("loss", "share", "smoothed", "lowest", "highest_rate")})
    return seen


def descend(curvatures: Tensor, weights: Tensor, rate: float, steps: int, policy: Auto | None) -> tuple[list, int]:
    """Losses ½·Σ curvature·weight² of SGD, and how many steps promised too much."""
    history = {name: in_numbers(value) for name, value in Auto().initial_history(WEIGHTS).items()}
    losses, promised = [], 0
    for _ in range(steps):
        gradient = curvatures * weights
        loss, norm, coefficient = (gradient * weights).sum() / 2, gradient.norm(), 1.0
        if policy is not None:
            step = Step(norm.item(), float(rate), WEIGHTS.item(), loss=loss.item())
            clip = policy.clip(history, step)
            history = policy.observe(history, step)
            if norm > clip.threshold:
                coefficient = clip.target / norm
                promised += policy.reasons[int(clip.reason)] == "promise"
        losses.append(loss.item())
        weights = weights - rate * coefficient * gradient
    return losses, promised


@pytest.mark.parametrize("rate", [0.1, 20.0, torch.tensor(20.0)])
def test_the_threshold_is_the_root_of_a_share_of_the_loss_over_the_rate_from_the_first_step_on(rate):
    for norm in (1e-3, 0.5, 1e6):
        [clip] = clips(Auto(), [norm], rate, [5.0])
        threshold = math.sqrt(0.2 * 5.0 / float(rate))
        assert_close(clip.threshold.item(), threshold)
        assert_close(clip.target.item(), min(threshold, threshold**2 / norm))
        assert Auto.reasons[int(clip.reason)] == "promise"


@pytest.mark.parametrize(("steps", "far"), [(15, 1), (16, 4)])
def test_a_step_promises_no_more_than_the_share_at_first_and_four_times_as_much_at_most_later(steps, far):
    *_, clip = clips(PROMISES, [*[1.0] * steps, 1e3], 0.1, [5.0] * (steps + 1))
    assert_close(clip.target.item(), far * clip.threshold.item() ** 2 / 1e3)


@pytest.mark.parametrize("loss", [9.9, 10.1])  # followed to 5 before it
def test_a_gradient_is_not_cut_to_nothing_where_the_loss_runs_away(loss):
    [_, clip] = clips(PROMISES, [1.0, 1e6], 0.1, [5.0, loss])
    threshold = math.sqrt(0.2 * 1.03 * 5.0 / 0.1)
    assert_close(clip.threshold.item(), threshold)
    assert_close(clip.target.item(), threshold if loss > 10 else threshold**2 / 1e6)


@pytest.mark.parametrize("share", [0.05, 3.0])
def test_the_share_is_a_setting_and_none_leaves_outliers_alone(share):
    [clip] = clips(Auto(largest_decrease=share), [1.0], 2.0, [5.0])
    assert_close(clip.threshold.item(), math.sqrt(share * 5.0 / 2.0))
    norms, losses = lognormal(100, 0).tolist(), [1e-9] * 100
    assert_close(
        clipped_norms(Auto(largest_decrease=None), norms, 2.0, losses), clipped_norms(Auto(), norms), rtol=0, atol=0
    )
    assert "loss" not in Auto(largest_decrease=None).initial_history(WEIGHTS)


@FAST
@given(seed=st.integers(0, 10**6), scale=st.floats(-8.0, 8.0))
def test_neither_the_scale_of_the_weights_nor_that_of_the_loss_changes_anything(seed, scale):
    norms, losses, factor = lognormal(30, seed, sigma=1.0), lognormal(30, seed + 1).tolist(), 10.0**scale
    rates = (0.2 * lognormal(30, seed + 2)).tolist()
    after = clipped_norms(Auto(), norms, rates, losses)
    assert (after < norms).any()
    assert_close(clipped_norms(Auto(), norms, rates, losses, weights=factor * WEIGHTS), after, rtol=0, atol=0)
    scaled = [rate / factor for rate in rates], [factor * loss for loss in losses]
    assert_close(clipped_norms(Auto(), factor * norms, *scaled), factor * after, rtol=1e-9, atol=0)


class TestOnQuadratics:
    @FAST
    @given(seed=st.integers(0, 10**6), size=st.integers(1, 20), spread=st.floats(0.0, 6.0), rate=st.floats(1e-3, 0.099))
    def test_a_stable_training_is_never_held_up(self, seed, size, spread, rate):
        """For of a loss of curvature L that is never below 0 is ‖gradient‖² ≤ 2·L·loss."""
        generator = torch.Generator().manual_seed(seed)
        curvatures = 10 ** (-spread * torch.rand(size, generator=generator, dtype=torch.float64))
        weights = torch.randn(size, generator=generator, dtype=torch.float64)
        losses, promised = descend(curvatures, weights, rate / curvatures.max(), 40, Auto())
        assert promised == 0
        assert losses[-1] < losses[0]

    @pytest.mark.parametrize(("rate", "most"), [(3.0, 3.0), (50.0, 200.0)])
    def test_where_sgd_diverges_at_once_its_loss_stays_of_a_size(self, rate, most):
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            curvatures = torch.rand(10, generator=generator, dtype=torch.float64)
            weights = torch.randn(10, generator=generator, dtype=torch.float64)
            curvatures = curvatures / curvatures.max()
            free, _ = descend(curvatures, weights, rate, 200, None)
            losses, promised = descend(curvatures, weights, rate, 400, Auto())
            assert not free[-1] < 1e50
            assert max(losses) <= most * losses[0]
            assert promised >= 20


class TestWithoutALossThatSaysSomething:
    def alone(self, norms):
        return clipped_norms(Auto(), norms)

    def test_outliers_alone_are_clipped(self):
        norms = lognormal(100, 0)
        norms[60] *= 100
        alone = self.alone(norms)
        assert alone[60] < 2
        for rate, losses in ((5.0, None), (None, [1e-9] * 100), (0.0, [1.0] * 100), (torch.tensor(0.0), [1.0] * 100)):
            assert_close(clipped_norms(Auto(), norms, rate, losses), alone, rtol=0, atol=0)

    @pytest.mark.parametrize("at", [0, 40])
    @pytest.mark.parametrize("low", [0.0, -3.0])
    def test_a_loss_that_has_ever_been_0_or_less_rests_the_rule_for_good(self, low, at):
        norms = lognormal(100, 1)
        losses = [1e-3] * 100
        losses[at] = low
        after = clipped_norms(Auto(), norms, 5.0, losses)
        assert_close(after[at + 1 :], self.alone(norms)[at + 1 :], rtol=0, atol=0)
        assert (after[:at] < 0.02).all()

    @pytest.mark.parametrize("bad", [math.nan, math.inf, None])
    def test_a_loss_that_is_not_finite_or_missing_changes_nothing(self, bad):
        losses = [2.0, 1.9, bad, 1.8, bad]
        seen = histories(losses)
        assert seen[2] == seen[1]
        assert seen[4] == seen[3] == histories([loss for loss in losses if loss is not bad])[2]
        [first, second] = clips(PROMISES, [1e3, 1e3], 1.0, [bad, 2.0])
        assert first.threshold == math.inf
        assert_close(second.threshold.item(), math.sqrt(0.2 * 2.0))


class TestTrustInAMomentum:
    """With a momentum of m a share that has opened counts 1/(1−m) times as much, until a rate shows to be too high."""

    @staticmethod
    def opened(share=0.31):
        return PROMISES.initial_history(WEIGHTS) | {"share": number(share)}

    def thresholds(self, norms, losses, rate=0.1, momentum=0.9, history=None):
        """In units of those without trust."""
        history, found = history or self.opened(), []
        for norm, loss in zip(norms, losses, strict=True):
            step = Step(number(norm), rate, WEIGHTS, loss=number(loss), momentum=momentum)
            followed = loss if history["loss"] == 0 else history["loss"].item()
            plain = math.sqrt(history["share"].item() * followed / rate)
            found.append(round(PROMISES.clip(history, step).threshold.item() / plain, 6))
            history = PROMISES.observe(history, step)
        return found

    @pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
    def test_is_there_once_the_share_has_opened_by_half(self, momentum):
        losses = [5.0 * 0.98**step for step in range(30)]  # new lows, of 3 %, from 0.2 on
        found = self.thresholds([0.1] * 30, losses, momentum=momentum, history=PROMISES.initial_history(WEIGHTS))
        assert 0.2 * 1.03**13 < 0.3 < 0.2 * 1.03**14
        expected = [1.0] * 14 + [math.sqrt(1 / (1 - momentum))] * 16
        assert_close(found, expected, rtol=1e-5, atol=0)

    def test_ends_for_good_once_the_share_has_closed_again(self):
        losses = [5.0] * 160 + [5.0 * 0.98**step for step in range(30)]
        found = self.thresholds([0.1] * 190, losses, history=self.opened(0.305))
        closed = 152  # steps; the first loss is a new low
        assert 0.305 * 1.03 * 0.997 ** (closed - 2) > 0.2 > 0.305 * 1.03 * 0.997 ** (closed - 1)
        assert_close(found, [math.sqrt(10)] * closed + [1.0] * (190 - closed), rtol=1e-5, atol=0)

    @pytest.mark.parametrize(("loss", "ends"), [(7.4, False), (7.6, True)])
    def test_ends_for_good_with_a_loss_above_one_and_a_half_times_what_it_was(self, loss, ends):
        found = self.thresholds([0.1] * 10, [*[5.0] * 5, loss, *[5.0] * 4], history=self.opened())
        assert_close(found[:5], [math.sqrt(10)] * 5, rtol=1e-5, atol=0)
        assert_close(found[5:], [1.0 if ends else math.sqrt(10)] * 5, rtol=1e-5, atol=0)

    def test_is_not_there_after_a_loss_that_high_before_it(self):
        losses = [5.0, 8.0, *[5.0 * 0.98**step for step in range(60)]]
        assert self.thresholds([0.1] * 62, losses, history=PROMISES.initial_history(WEIGHTS)) == [1.0] * 62

    @pytest.mark.parametrize(("promise", "ends"), [(18.9, False), (19.1, True)])  # (1 + 0.9)/(1 - 0.9)
    def test_ends_with_a_step_that_promises_too_much_and_in_that_very_step(self, promise, ends):
        found = self.thresholds([0.1, math.sqrt(promise * 5.0 / 0.1), 0.1], [5.0] * 3)
        assert_close(found, [math.sqrt(10), *[1.0 if ends else math.sqrt(10)] * 2], rtol=1e-5, atol=0)

    def restarts(self, losses, history):
        found = []
        for loss in losses:
            step = Step(number(0.1), 0.1, WEIGHTS, loss=number(loss), momentum=0.9)
            found.append(bool(PROMISES.clip(history, step).restart))
            history = PROMISES.observe(history, step)
        return found

    def test_takes_the_velocity_with_it_once(self):
        assert self.restarts([5.0, 5.0, 8.0, 5.0, 9.0], self.opened()) == [False, False, True, False, False]

    def test_takes_no_velocity_that_was_not_trusted(self):
        assert not any(self.restarts([5.0, 5.0, 8.0, 5.0, 9.0], self.opened(0.2)))

    def test_is_not_there_at_a_momentum_of_1_nor_in_a_history_from_before_there_was_any(self):
        assert self.thresholds([0.1] * 3, [5.0] * 3, momentum=1.0) == [1.0] * 3
        history = PROMISES.observe(self.opened(), Step(number(0.1), 0.1, WEIGHTS, loss=number(5.0)))
        del history["trust"]
        assert self.thresholds([0.1] * 3, [5.0] * 3, history=history) == [1.0] * 3

    def test_is_not_ended_by_a_loss_that_is_not_finite(self):
        found = self.thresholds([0.1] * 3, [5.0, math.nan, 5.0])
        assert_close([found[0], found[2]], [math.sqrt(10)] * 2, rtol=1e-5, atol=0)


def test_the_highest_rate_so_far_counts():
    thresholds = [clip.threshold.item() for clip in clips(PROMISES, [1.0] * 5, [10.0, 5.0, 0.0, 20.0, 1.0], [1.0] * 5)]
    shares = [0.2, *(seen["share"] for seen in histories([1.0] * 4))]
    expected = [math.sqrt(share / rate) for share, rate in zip(shares, (10.0, 10.0, 10.0, 20.0, 20.0), strict=True)]
    assert_close(thresholds, expected)


def test_a_rate_that_is_not_known_in_a_step_leaves_the_highest_one():
    history = PROMISES.initial_history(WEIGHTS)
    for rate in (torch.tensor(2.0), torch.tensor(math.nan), 1.0):
        history = PROMISES.observe(history, Step(number(1.0), rate, WEIGHTS, loss=number(1.0)))
        assert history["highest_rate"] == 2.0


@pytest.mark.parametrize(("latest", "factors"), [(1e-6, 0.99), (1e6, 1.05), (7.0, None)])
def test_the_loss_is_followed_by_a_hundredth_down_and_a_twentieth_up_at_most(latest, factors):
    followed = [seen["loss"] for seen in histories([7.0] + [latest] * 20)]
    assert_close(followed, [7.0 * (factors or 1.0) ** step for step in range(21)])


def test_a_loss_that_moves_less_is_followed_as_it_is():
    losses = [7.0, 6.95, 7.2, 7.2, 7.15]
    assert_close([seen["loss"] for seen in histories(losses)], losses)


def test_the_share_opens_while_the_loss_falls_and_closes_as_it_stands_still_and_faster_as_it_rises():
    falls = [5.0 * 0.97**step * (1.1 if step % 2 else 0.9) for step in range(40)]
    losses = [*falls, *[9.0] * 60, *[2.0] * 300, *[1.0] * 40]
    share, recent, usual, lowest, shares, factors = 0.2, None, None, math.inf, [], []
    for step, loss in enumerate(losses):
        recent = loss if recent is None else recent + min(0.5, 16 / (16 + step)) * (loss - recent)
        usual = loss if usual is None else usual + min(0.5, 4 / (4 + step)) * (loss - usual)
        if recent < lowest:
            lowest, factor = recent, 1.03
        elif recent < 0.96 * usual:
            factor = 1.01
        else:
            factor = 0.997 if recent < 1.05 * usual else 0.985
        share = min(max(share * factor, 0.2), 40.0)
        shares.append(share)
        factors.append(factor)
    seen = histories(losses)
    assert_close([step["share"] for step in seen], shares)
    assert_close(seen[-1]["lowest"], lowest)
    assert set(factors) == {1.03, 1.01, 0.997, 0.985}
    assert 0.2 in shares  # it has closed down to where it began
    assert max(shares) > 0.2 * 1.03**5


def test_a_history_from_before_the_usual_loss_was_known_goes_on_as_if_it_were_the_recent_one():
    history = PROMISES.initial_history(WEIGHTS)
    for loss in (5.0, 4.0, 6.0) * 4:
        history = PROMISES.observe(history, Step(number(1.0), 1.0, WEIGHTS, loss=number(loss)))
    step = Step(number(1.0), 1.0, WEIGHTS, loss=number(5.0))
    older = {name: value for name, value in history.items() if name != "usual"}
    after = PROMISES.observe(older, step)
    assert_close(after, PROMISES.observe(older | {"usual": history["smoothed"]}, step), rtol=0, atol=0)
    assert after["usual"] != after["smoothed"]


def test_the_loss_is_followed_up_to_ten_times_the_first_and_never_after_one_that_is_not_above_0():
    seen = histories([2.0, *[1e6] * 200])
    assert_close(max(step["loss"] for step in seen), 20.0)
    assert_close(seen[-1]["loss"], 20.0)
    seen = histories([2.0, -1.0, *[2.0] * 20])
    assert [step["loss"] for step in seen[1:]] == [math.inf] * 21


def test_the_share_opens_wider_than_200_times_only_where_steps_promise_more_and_never_10000_times():
    losses = [0.99**step for step in range(600)]
    shares = [step["share"] for step in histories(losses, [1e-3] * 600)]  # promises of nothing
    assert_close(max(shares), 40.0)
    shares = [step["share"] for step in histories(losses, [1e3] * 600)]
    assert_close(max(shares), 2000.0)
    seen = histories([*losses, *[1.0] * 20], [*[1e3] * 250, *[1e-3] * 370])
    shares = [step["share"] for step in seen]
    assert 45 < shares[249] < 2000
    assert shares[599] == shares[249]  # no step needs more
    assert shares[619] < shares[599]


@FAST
@given(seed=st.integers(0, 10**6), together=st.integers(1, 4))
def test_every_unit_is_treated_as_if_it_were_alone(seed, together):
    steps = 12
    norms = lognormal(steps * together, seed, sigma=1.5).view(steps, together)
    rates, losses = lognormal(steps * together, seed + 1).view(steps, together), lognormal(steps, seed + 2)
    policy, history, whole = Auto(window=5), None, []
    for norm, rate, loss in zip(norms, rates, losses, strict=True):
        history = policy.initial_history(norm) if history is None else history
        step = Step(norm, rate, torch.ones_like(norm), loss=loss)
        whole.append(policy.clip(history, step))
        history = policy.observe(history, step)
    for unit in range(together):
        alone = clips(policy, norms[:, unit], list(rates[:, unit]), losses.tolist())
        for field in ("threshold", "target", "reason"):
            expected = [getattr(clip, field)[unit].item() for clip in whole]
            assert [float(getattr(clip, field)) for clip in alone] == pytest.approx(expected, rel=1e-12, abs=0)


def test_a_norm_that_only_promises_too_much_is_brought_down_by_that_rule_alone():
    """After norms that have grown, an outlier's target is far below its threshold."""
    norms = [1.0] * 60 + [1.4**step for step in range(1, 20)]
    norm = 1.2 * norms[-1]
    clip = clips(Auto(), [*norms, norm])[-1]
    assert norm < clip.threshold
    loss = norm**2 / 0.2 / 1.21  # the threshold is norm / 1.1
    history = Auto().initial_history(WEIGHTS)
    for seen in norms:
        history = Auto().observe(history, Step(number(seen), None, WEIGHTS))
    clip = Auto().clip(history, Step(number(norm), 1.0, WEIGHTS, loss=number(loss)))
    assert_close((clip.threshold.item(), clip.target.item()), (norm / 1.1, norm / 1.1))
    assert Auto.reasons[int(clip.reason)] == "promise"
