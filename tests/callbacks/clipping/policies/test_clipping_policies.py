import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rnn_blocks.callbacks import Auto, Clip, ClippingPolicy, Fixed, Step
from rnn_blocks.callbacks.clipping.update_length import effective_learning_rate, weight_norms
from rnn_blocks.callbacks.measuring.numbers import in_numbers, in_tensors
from rnn_blocks.callbacks.measuring.step import StepGradients

WEIGHTS = torch.tensor(100.0, dtype=torch.float64)


def lognormal(count: int, seed: int, sigma: float = 0.3) -> Tensor:
    return (sigma * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).exp()


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def doubles(values: Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def clips(
    policy: ClippingPolicy,
    norms: Sequence[float] | Tensor,
    rates: float | Sequence[float | None] | None = 0.0,  # None: the update does not scale with the gradient
    losses: Sequence[float | None] | None = None,
    weights: Tensor = WEIGHTS,
) -> list[Clip]:
    """The policy's answer to each step; worked out in numbers by a policy that takes them, as by a clipper on a CPU."""
    make = in_numbers if policy.takes_numbers else Tensor.clone
    rates = rates if isinstance(rates, list) else [rates] * len(norms)
    history, answers = {name: make(value) for name, value in policy.initial_history(WEIGHTS).items()}, []
    for norm, rate, loss in zip(doubles(norms), rates, losses or [None] * len(norms), strict=True):
        loss = None if loss is None else make(torch.as_tensor(loss, dtype=torch.float64))
        step = Step(make(norm), in_numbers(rate), make(weights), loss=loss)
        clip = policy.clip(history, step)
        answers.append(clip._replace(threshold=in_tensors(clip.threshold), target=in_tensors(clip.target)))
        history = policy.observe(history, step)
    return answers


def clipped_norms(policy: ClippingPolicy, norms: Sequence[float] | Tensor, *of_steps, **options) -> Tensor:
    """What is left of each norm."""
    norms = doubles(norms)
    answers = clips(policy, norms, *of_steps, **options)
    return torch.stack(
        [torch.where(n > clip.threshold, clip.target, n) for n, clip in zip(norms, answers, strict=True)]
    )


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
        assert clipped[303:370].double().mean() <= 0.1  # it is followed within three steps
        if factor > 1:
            assert clipped[300:302].all()

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
    assert_close(after, history, rtol=0, atol=0, equal_nan=True)


def test_the_outlier_rule_is_the_median_and_the_median_deviation_of_the_last_norms():
    norms = lognormal(200, 3).tolist()
    policy, history = Auto(), Auto().initial_history(WEIGHTS)
    for norm in norms:
        history = policy.observe(history, Step(torch.tensor(norm, dtype=torch.float64), 0.0, WEIGHTS))
    logs_of_all = [math.log(norm) for norm in norms]
    logs = sorted(logs_of_all[-64:])
    median = logs[31]
    deviation = 1.4826 * sorted(abs(x - median) for x in logs)[31]
    sigma = math.sqrt((64 * deviation**2 + 8 * 0.25) / 72)
    latest = sorted(logs_of_all[-5:])[2]
    clip = policy.clip(history, Step(number(50.0), 0.0, WEIGHTS))
    assert_close(clip.threshold.item(), math.exp(max(median + 2.5 * sigma, latest + math.log(3))))
    z = (math.log(50.0) - median) / sigma
    assert_close(clip.target.item(), math.exp(max(median + 2.5**2 * sigma / z, latest)))
    for growing in (30.0, 40.0, 50.0):  # the median of the last five is now 30
        history = policy.observe(history, Step(number(growing), 0.0, WEIGHTS))
    clip = policy.clip(history, Step(number(1e9), 0.0, WEIGHTS))
    stretch = history["stretch"].item()  # three outliers, each of which raises it by a quarter, less a hundredth
    assert_close(stretch, 3 * 0.25 * 0.99)
    assert_close((clip.threshold.item(), clip.target.item()), (90.0 * math.exp(stretch), 30.0))


def test_to_the_first_norm_nothing_is_an_outlier_and_to_the_next_four_what_is_a_thousand_times_their_median():
    norms = [2.0, 4.0, 1.0, 8.0, 3.0]
    answers = clips(Auto(), [*norms, 90.0])
    assert answers[0].target == math.inf
    thresholds = [answer.threshold.item() for answer in answers[1:5]]
    assert_close(thresholds, [2000.0, 2000.0, 2000.0, 2000.0])
    assert 9.0 <= answers[5].threshold < 15.0  # of five norms, three times the median of 3 or 2.5 deviations above it
    spike = clips(Auto(), [*norms[:3], 1e6])[-1]
    assert_close(spike.target.item(), 2.0, rtol=0.3, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_where_the_update_does_not_scale_with_the_gradient_outliers_begin_at_ten_times_the_latest(seed):
    norms = lognormal(300, seed)
    norms[200], norms[250] = 9.0 * sorted(norms[195:200])[2], 1000.0
    answers = clips(Auto(), norms, None)
    latest = [sorted(norms[step - 5 : step].tolist())[2] for step in range(5, 300)]
    thresholds = [answer.threshold.item() for answer in answers[5:250]]
    assert_close(thresholds, [10 * norm for norm in latest[:245]])
    after = clipped_norms(Auto(), norms, None)
    assert after[250] <= 1.5
    usual = [step for step in range(300) if step != 250]
    assert_close(after[usual], norms[usual], rtol=0, atol=0)
    assert clipped_norms(Auto(), norms)[200] < norms[200]


@pytest.mark.parametrize("window", [2, 3, 5])
def test_a_short_memory_knows_what_it_has_seen(window):
    answers = clips(Auto(window=window), [1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 50.0])
    assert answers[-1].threshold < 5
    assert answers[-1].target < 2


@pytest.mark.parametrize("growth", [1.1, 1.4])
def test_norms_that_grow_from_step_to_step_are_no_outliers_however_far_they_come(growth):
    """As where a training leaves a plateau, on which norms have hardly varied."""
    norms = [1.0] * 64 + [growth**step for step in range(1, 40)]
    assert_close(clipped_norms(Auto(), norms), doubles(norms), rtol=0, atol=0)


def test_norms_that_double_at_every_step_keep_an_eighth_of_themselves():
    norms = [1.0] * 64 + [2.0**step for step in range(1, 11)]
    after = clipped_norms(Auto(), norms)
    assert (after >= doubles(norms) / 8.001).all()


def test_a_spike_and_a_second_one_right_after_it_are_both_brought_down():
    norms = lognormal(200, 6, sigma=0.1)
    norms[100:102] = doubles([50.0, 80.0])
    norms[150] = 40.0
    after = clipped_norms(Auto(), norms)
    assert (after[[100, 101, 150]] < 1.5).all()
    usual = [step for step in range(200) if step not in (100, 101, 150)]
    assert_close(after[usual], norms[usual], rtol=0, atol=0)


def test_norms_that_never_vary_are_not_clipped():
    norms = torch.full((200,), 0.7, dtype=torch.float64)
    assert_close(clipped_norms(Auto(), norms), norms, rtol=0, atol=0)


def test_fixed_clips_as_torch_does():
    """Pascanu's Algorithm 1 is `clip_grad_norm_`, but for torch's 1e-6."""
    gradient = torch.tensor([3.0, 4.0])
    for threshold in (1.0, 4.999, 7.0):
        weight = nn.Parameter(torch.zeros(2))
        weight.grad = gradient.clone()
        nn.utils.clip_grad_norm_([weight], threshold)
        ours = clipped_norms(Fixed(threshold), torch.tensor([5.0]))
        assert_close(ours.item(), weight.grad.norm().item(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", [lambda: Fixed(0.0), lambda: Fixed(math.nan), lambda: Auto(longest_update=-1.0)])
def test_settings_out_of_range_are_refused_by_name_and_value(make):
    with pytest.raises(
        ValueError, match=r"(threshold|longest_update) is (0\.0|nan|-1\.0); it must be a positive number"
    ):
        make()
    with pytest.raises(ValueError, match="window is 1; it must be at least 2"):
        Auto(window=1)
    for setting, value in (("deviations", 0), ("deviations", None), ("largest_decrease", math.inf)):
        with pytest.raises(ValueError, match=f"Auto: {setting} is {value}; it must be a positive number"):
            Auto(**{setting: value})


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
