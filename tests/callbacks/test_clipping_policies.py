import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rnn_blocks.callbacks import Auto, ClippingPolicy, Fixed, Step
from rnn_blocks.callbacks.clipping.policies.auto import outlier_clip
from rnn_blocks.callbacks.clipping.update_length import effective_learning_rate, weight_norms
from rnn_blocks.callbacks.measuring.step import StepGradients

WEIGHTS = torch.tensor(100.0, dtype=torch.float64)


def lognormal(count: int, seed: int, sigma: float = 0.3) -> Tensor:
    return (sigma * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).exp()


def clipped_norms(policy: ClippingPolicy, norms: Tensor, learning_rate: float | None = None) -> Tensor:
    """What is left of each norm."""
    history, after = policy.initial_history(WEIGHTS), []
    for norm in norms:
        step = Step(norm, learning_rate, WEIGHTS)
        clip = policy.clip(history, step)
        after.append(torch.where(norm > clip.threshold, clip.target, norm))
        history = policy.observe(history, step)
    return torch.stack(after)


@pytest.mark.parametrize("seed", range(5))
class TestAutoResponds:
    def test_at_most_5_percent_of_normal_steps_are_clipped(self, seed):
        norms = lognormal(1000, seed)
        assert (clipped_norms(Auto(), norms) < norms).double().mean() <= 0.05

    def test_a_spike_of_1000_times_is_let_through_at_no_more_than_one_and_a_half_medians(self, seed):
        norms = lognormal(300, seed)
        norms[200] *= 1000
        after = clipped_norms(Auto(), norms)
        assert after[200] <= 1.5
        assert (after[201:] < norms[201:]).double().mean() <= 0.05

    @pytest.mark.parametrize("factor", [10.0, 0.1])
    def test_50_steps_after_a_lasting_shift_less_than_10_percent_are_clipped(self, seed, factor):
        norms = lognormal(500, seed)
        norms[300:] *= factor
        clipped = clipped_norms(Auto(), norms) < norms
        assert clipped[350:].double().mean() < 0.1
        assert clipped[350:370].double().mean() <= 0.1
        if factor > 1:
            assert clipped[300:310].all()

    def test_a_slow_drift_of_100_times_clips_at_most_10_percent(self, seed):
        norms = lognormal(1000, seed) * torch.logspace(0, 2, 1000, dtype=torch.float64)
        assert (clipped_norms(Auto(), norms) < norms).double().mean() <= 0.1

    def test_the_first_50_steps_are_as_rarely_clipped_as_the_others(self, seed):
        norms = lognormal(50, seed)
        assert (clipped_norms(Auto(), norms) < norms).sum() <= 2


def test_the_threshold_of_a_step_is_taken_before_its_norm_is_observed():
    policy = Auto()
    history = policy.initial_history(WEIGHTS)
    for norm in lognormal(20, 0):
        history = policy.observe(history, Step(norm, None, WEIGHTS))
    thresholds = [policy.clip(history, Step(torch.tensor(norm), None, WEIGHTS)).threshold for norm in (1.0, 1e9)]
    assert thresholds[0] == thresholds[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_norms_without_a_finite_logarithm_never_enter_the_history(bad):
    """Trap 1: NaN or infinity once in the history kills the threshold of AutoClip and ZClip for ever."""
    policy, history = Auto(), Auto().initial_history(WEIGHTS)
    for norm in lognormal(100, 0):
        history = policy.observe(history, Step(norm, None, WEIGHTS))
    after = policy.observe(history, Step(torch.tensor(bad, dtype=torch.float64), None, WEIGHTS))
    assert_close(after, history, rtol=0, atol=0)


def test_the_outlier_rule_is_the_median_and_the_median_deviation_of_the_last_norms():
    norms = lognormal(200, 3).tolist()
    policy, history = Auto(), Auto().initial_history(WEIGHTS)
    for norm in norms:
        history = policy.observe(history, Step(torch.tensor(norm, dtype=torch.float64), None, WEIGHTS))
    logs = sorted(math.log(norm) for norm in norms[-64:])
    median = logs[31]
    deviation = 1.4826 * sorted(abs(x - median) for x in logs)[31]
    sigma = math.sqrt((64 * deviation**2 + 8 * 0.25) / 72)
    clip = policy.clip(history, Step(torch.tensor(50.0, dtype=torch.float64), None, WEIGHTS))
    assert_close(clip.threshold.item(), math.exp(median + 2.5 * sigma))
    z = (math.log(50.0) - median) / sigma
    assert_close(clip.target.item(), math.exp(median + 2.5**2 * sigma / z))


def test_the_first_norm_is_an_outlier_to_nothing_and_the_second_to_the_first():
    policy = Auto()
    history = policy.initial_history(WEIGHTS)
    assert policy.clip(history, Step(torch.tensor(1e9), None, WEIGHTS)).target == math.inf
    history = policy.observe(history, Step(torch.tensor(2.0, dtype=torch.float64), None, WEIGHTS))
    assert 4 < policy.clip(history, Step(torch.tensor(2.0), None, WEIGHTS)).threshold < 8
    assert policy.clip(history, Step(torch.tensor(2e9), None, WEIGHTS)).target < 3


def test_norms_that_never_vary_are_not_clipped():
    norms = torch.full((200,), 0.7, dtype=torch.float64)
    assert_close(clipped_norms(Auto(), norms), norms, rtol=0, atol=0)


def test_with_sgd_no_step_is_longer_than_8_percent_of_the_initial_weights_from_the_first_on():
    norms = lognormal(100, 0) * torch.logspace(-3, 3, 100, dtype=torch.float64)
    for learning_rate in (0.1, 20.0):
        after = clipped_norms(Auto(), norms, learning_rate)
        assert (after * learning_rate <= 8.0 * (1 + 1e-9)).all()
    assert_close(clipped_norms(Auto(), torch.tensor([1e6], dtype=torch.float64), 20.0).item(), 0.4)


def test_with_sgd_steps_shorter_than_a_500th_of_the_initial_weights_are_clipped_as_without_a_rate():
    norms = lognormal(500, 1) * 0.05
    assert_close(clipped_norms(Auto(), norms, 1.0), clipped_norms(Auto(), norms), rtol=0, atol=0)


def test_with_sgd_three_long_steps_in_four_are_cut_to_a_quartile_that_rises_slowly():
    norms = lognormal(2000, 2)
    after = clipped_norms(Auto(), norms, 1.0)
    assert 0.6 < (after < norms)[500:].double().mean() < 0.85
    quartile = norms.quantile(0.25)
    assert (after[500:] <= 1.35 * quartile).all()
    norms[1000:] *= 100  # it runs away: the steps stay as they were for a while
    after = clipped_norms(Auto(longest_step=1e6), norms, 1.0)
    assert (after[1000:1020] < 2 * quartile).all()
    assert (after[1600:] > 20 * quartile).all()


def test_the_quartile_is_a_robbins_monro_approximation_in_the_logarithm():
    norms = [*lognormal(60, 4).tolist(), math.nan, 0.0, *lognormal(10, 5).tolist()]
    policy, history = Auto(), Auto().initial_history(WEIGHTS)
    level, seen = math.inf, 0
    for norm in norms:
        step = Step(torch.tensor(norm, dtype=torch.float64), 2.0, WEIGHTS)
        bound = min(4.0, max(math.exp(level), 0.1))
        if seen:
            assert policy.clip(history, step).threshold.item() <= bound * (1 + 1e-12)
        history = policy.observe(history, step)
        if norm > 0:
            seen += 1
            log = math.log(min(norm, 4.0))
            level = log if seen == 1 else level
            level += max(0.05, 1 / seen) * (0.25 - (log <= level))
            assert_close(history["level"].item(), level)


def test_a_lowered_learning_rate_does_not_raise_the_bound_and_a_raised_one_lowers_it():
    norm, policy = torch.tensor(1e6, dtype=torch.float64), Auto()
    history, bounds = policy.initial_history(WEIGHTS), []
    for rate in (10.0, 5.0, 0.0, 20.0, 1.0):
        step = Step(norm, rate, WEIGHTS)
        bounds.append(policy.clip(history, step).target.item())
        history = policy.observe(history, step) | {"level": torch.tensor(math.inf, dtype=torch.float64)}
    assert_close(bounds, [0.8, 0.8, 0.8, 0.4, 0.4])


@pytest.mark.parametrize(("rate", "weights"), [(0.0, 100.0), (torch.tensor(0.0), 100.0), (0.1, 0.0)])
def test_without_a_learning_rate_or_initial_weights_the_outlier_rule_is_left(rate, weights):
    policy, history = Auto(), Auto().initial_history(WEIGHTS)
    for norm in lognormal(64, 0):
        history = policy.observe(history, Step(norm, None, WEIGHTS))
    step = Step(torch.tensor(90.0, dtype=torch.float64), rate, torch.tensor(weights, dtype=torch.float64))
    assert_close(policy.clip(history, step), outlier_clip(history["log_norms"], history["count"], step.norm, 2.5))


def test_fixed_clips_as_torch_does():
    """Pascanu's Algorithm 1 is `clip_grad_norm_`, but for torch's 1e-6."""
    gradient = torch.tensor([3.0, 4.0])
    for threshold in (1.0, 4.999, 7.0):
        weight = nn.Parameter(torch.zeros(2))
        weight.grad = gradient.clone()
        nn.utils.clip_grad_norm_([weight], threshold)
        ours = clipped_norms(Fixed(threshold), torch.tensor([5.0]))
        assert_close(ours.item(), weight.grad.norm().item(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [lambda: Fixed(0.0), lambda: Fixed(math.nan), lambda: Auto(longest_step=-1.0)])
def test_settings_out_of_range_are_refused_by_name_and_value(make):
    with pytest.raises(ValueError, match=r"(threshold|longest_step) is (0\.0|nan|-1\.0); it must be a positive number"):
        make()
    with pytest.raises(ValueError, match="window is 1; it must be at least 2"):
        Auto(window=1)
    with pytest.raises(ValueError, match="deviations is 0"):
        Auto(deviations=0)


class TestEffectiveLearningRate:
    def weights(self) -> list[nn.Parameter]:
        weights = [nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([12.0]))]
        weights[0].grad, weights[1].grad = torch.tensor([0.6, 0.8]), torch.tensor([2.0])
        return weights

    def rate(self, optimizer: torch.optim.Optimizer) -> float | Tensor | None:
        return effective_learning_rate(optimizer, StepGradients(optimizer))

    def test_is_the_length_that_a_lasting_gradient_s_update_reaches(self):
        for options in (
            {},
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.5},
            {"momentum": 0.8, "nesterov": True},
        ):
            weights = self.weights()
            optimizer = torch.optim.SGD(weights, lr=0.1, **options)
            for _ in range(300):
                before = [weight.detach().clone() for weight in weights]
                optimizer.step()
            moved = math.hypot(*(float((w.detach() - b).norm()) for w, b in zip(weights, before, strict=True)))
            assert_close(float(self.rate(optimizer)) * math.hypot(1.0, 2.0), moved, rtol=1e-3, atol=0)

    def test_of_groups_that_differ_gives_the_length_of_the_whole_update(self):
        first, second = self.weights()
        optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 3.0}])
        before = [first.detach().clone(), second.detach().clone()]
        rate = self.rate(optimizer)
        optimizer.step()
        moved = math.hypot(*(float((w.detach() - b).norm()) for w, b in zip((first, second), before, strict=True)))
        assert_close(float(rate) * math.hypot(1.0, 2.0), moved, rtol=1e-6, atol=0)

    def test_follows_the_parameter_group(self):
        optimizer = torch.optim.SGD(self.weights(), lr=0.1)
        optimizer.param_groups[0]["lr"] = 0.025
        assert self.rate(optimizer) == 0.025

    def test_is_none_where_the_update_does_not_scale_with_the_gradient(self):
        for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad):
            assert self.rate(kind(self.weights(), lr=0.1)) is None

    def test_initial_weights_are_measured_by_group_without_the_frozen(self):
        first, second = self.weights()
        frozen = nn.Parameter(torch.full((1000,), 1e3), requires_grad=False)
        assert [norm.item() for norm in weight_norms([[first, frozen], [second], [frozen]])] == [5.0, 12.0, 0.0]
