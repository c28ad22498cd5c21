"""Each published rule against the paper's algorithm, written down again in NumPy, one unit and one step at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks.callbacks import Auto, ClippingPolicy, EmaRatio, Fixed, Percentile, Step, Unitwise, ZScore

Answer = tuple[float, float]
NORMS = st.one_of(
    st.floats(0.1, 10.0), st.sampled_from([0.0, math.nan, math.inf, 1e-12, 1e6, 1e15]), st.just(1.0), st.just(2.0)
)


def usable(norm: float) -> bool:
    return math.isfinite(norm) and norm > 0


def percentile_by_hand(policy: Percentile, norms: list[float]) -> list[Answer]:
    seen, answers = [], []
    for norm in norms:
        seen += [norm] if usable(norm) else []
        threshold = float(np.percentile(seen[-policy.window :], policy.percent)) if seen else math.inf
        answers.append((threshold, threshold))
    return answers


def zscore_by_hand(policy: ZScore, norms: list[float]) -> list[Answer]:
    warm, mean, variance, answers = [], 0.0, 0.0, []
    cap = math.inf if policy.max_norm is None else policy.max_norm
    for norm in norms:
        if len(warm) < policy.warmup:
            answers.append((cap, cap))
            if usable(norm):
                warm.append(norm)
                mean, variance = float(np.mean(warm)), float(np.var(warm))
            continue
        sigma = variance**0.5
        z = (norm - mean) / (sigma + 1e-6)
        target = mean + policy.deviations * sigma / (max(z, policy.deviations) / policy.deviations)
        threshold = mean + policy.deviations * (sigma + 1e-6)
        answers.append((min(threshold, cap), min(target, cap)))
        if usable(norm):
            fed = target if z > policy.deviations else norm
            mean = policy.decay * mean + (1 - policy.decay) * fed
            variance = policy.decay * variance + (1 - policy.decay) * (fed - mean) ** 2
    return answers


def ema_ratio_by_hand(policy: EmaRatio, norms: list[float]) -> list[Answer]:
    gamma, step, answers = math.inf, 0, []
    for norm in norms:
        if step < policy.warmup:
            threshold = math.inf if policy.warmup_cap is None else policy.warmup_cap
        else:
            threshold = policy.ratio * gamma
        answers.append((threshold, threshold))
        if usable(norm):
            clipped = norm * min(threshold / norm, 1.0)
            gamma = min(gamma, clipped) if step < policy.warmup else policy.decay * gamma + (1 - policy.decay) * clipped
            step += 1
    return answers


def fixed_by_hand(policy: Fixed, norms: list[float]) -> list[Answer]:
    return [(policy.threshold, policy.threshold)] * len(norms)


RULES = [
    (Percentile(window=7), percentile_by_hand),
    (Percentile(percent=90.0, window=5), percentile_by_hand),
    (Percentile(percent=100.0, window=2), percentile_by_hand),
    (ZScore(warmup=4), zscore_by_hand),
    (ZScore(deviations=1.0, decay=0.5, warmup=2, max_norm=3.0), zscore_by_hand),
    (EmaRatio(warmup=3), ema_ratio_by_hand),
    (EmaRatio(ratio=2.0, decay=0.5, warmup=1, warmup_cap=4.0), ema_ratio_by_hand),
    (Fixed(1.5), fixed_by_hand),
]


def answers(policy: ClippingPolicy, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Thresholds and targets of each step, ``(steps, *S)``."""
    weights = torch.ones_like(norms[0])
    history, clips = policy.initial_history(norms[0]), []
    for norm in norms:
        step = Step(norm, None, weights)
        clips.append(policy.clip(history, step))
        history = policy.observe(history, step)
    return torch.stack([clip.threshold for clip in clips]), torch.stack([clip.target for clip in clips])


@pytest.mark.parametrize(("policy", "by_hand"), RULES, ids=[repr(policy) for policy, _ in RULES])
class TestAPublishedRule:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(norms=st.lists(NORMS, min_size=1, max_size=24))
    def test_answers_as_the_paper_does(self, policy, by_hand, norms):
        thresholds, targets = answers(policy, torch.tensor(norms, dtype=torch.float64))
        expected = torch.tensor(by_hand(policy, norms), dtype=torch.float64)
        # The target of a step that is not finite, or not above the threshold, is never used.
        used = torch.tensor(norms, dtype=torch.float64) > expected[:, 0]
        used &= torch.tensor(norms).isfinite()
        assert_close(thresholds, expected[:, 0], rtol=1e-7, atol=1e-9)
        assert_close(targets[used], expected[used, 1], rtol=1e-7, atol=1e-9)
        assert (targets[used] <= thresholds[used]).all()

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(norms=st.lists(st.tuples(NORMS, NORMS, NORMS), min_size=1, max_size=16))
    def test_treats_every_unit_as_if_it_were_alone(self, policy, by_hand, norms):
        together = torch.tensor(norms, dtype=torch.float64)
        for which, values in enumerate(answers(policy, together)):
            alone = torch.stack([answers(policy, together[:, unit])[which] for unit in range(3)], dim=1)
            assert_close(values, alone, rtol=1e-12, atol=0, equal_nan=True)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(norms=st.lists(st.tuples(NORMS, NORMS, NORMS), min_size=1, max_size=16))
def test_auto_treats_every_unit_as_if_it_were_alone(norms):
    together = torch.tensor(norms, dtype=torch.float64)
    for which, values in enumerate(answers(Auto(window=5), together)):
        alone = torch.stack([answers(Auto(window=5), together[:, unit])[which] for unit in range(3)], dim=1)
        assert_close(values, alone, rtol=1e-12, atol=0, equal_nan=True)


POLICIES = [Auto(window=8), Percentile(window=8), ZScore(warmup=4), EmaRatio(warmup=4), Fixed(1.0)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_leaves_the_history_as_it_was(policy, bad):
    """Trap 1: NaN or infinity once in the history kills the threshold of AutoClip and ZClip for ever."""
    norm = torch.tensor([1.0, 2.0], dtype=torch.float64)
    history = policy.initial_history(norm)
    for factor in (1.0, 1.1, 0.9, 1.2, 0.8, 1.0):
        history = policy.observe(history, Step(factor * norm, None, norm))
    after = policy.observe(history, Step(torch.tensor([bad, bad], dtype=torch.float64), None, norm))
    assert_close(after, history, rtol=0, atol=0)


@pytest.mark.parametrize("policy", [Percentile(window=8), ZScore(warmup=4), EmaRatio(warmup=4), Auto(window=8)])
def test_a_unit_that_had_no_gradient_for_long_is_not_clipped_to_zero_when_it_gets_one(policy):
    norms = torch.tensor([0.0] * 20 + [1.0, 1.1, 0.9] * 3, dtype=torch.float64)
    _, targets = answers(policy, norms)
    assert (targets[20:] > 0.5).all()


def test_unitwise_is_a_share_of_the_weights_with_a_floor():
    """Trap 8: without the floor, weights that start at zero would never be trained."""
    weights = torch.tensor([0.0, 1e-4, 1.0, 300.0])
    clip = Unitwise(ratio=0.02, floor=1e-3).clip({}, Step(torch.ones(4), 0.1, weights, weights))
    assert_close(clip.threshold, torch.tensor([2e-5, 2e-5, 0.02, 6.0]))
    assert_close(clip.target, clip.threshold)
    with pytest.raises(ValueError, match="weight_norm of the step is None"):
        Unitwise().clip({}, Step(torch.ones(4), 0.1, weights))


def test_percentiles_at_the_papers_setting_clip_nine_steps_in_ten():
    norms = (0.3 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).exp()
    thresholds, _ = answers(Percentile(), norms)
    assert 0.8 < (norms > thresholds).double().mean() < 0.95


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Percentile(percent=101.0), "Percentile: percent is 101.0; it must be a number from 0 to 100"),
        (lambda: Percentile(window=1), "Percentile: window is 1; it must be at least 2"),
        (lambda: ZScore(deviations=0.0), "ZScore: deviations is 0.0; it must be a positive number"),
        (lambda: ZScore(decay=1.0), "ZScore: decay is 1.0; it must be at least 0 and below 1"),
        (lambda: ZScore(warmup=1), "ZScore: warmup is 1; it must be at least 2"),
        (lambda: ZScore(max_norm=-1.0), "ZScore: max_norm is -1.0; it must be a positive number, or None"),
        (lambda: EmaRatio(ratio=math.inf), "EmaRatio: ratio is inf; it must be a positive number"),
        (lambda: EmaRatio(decay=-0.1), "EmaRatio: decay is -0.1; it must be at least 0"),
        (lambda: EmaRatio(warmup=0), "EmaRatio: warmup is 0; it must be at least 1"),
        (lambda: EmaRatio(warmup_cap=0.0), "EmaRatio: warmup_cap is 0.0; it must be a positive number, or None"),
        (lambda: Unitwise(ratio=0.0), "Unitwise: ratio is 0.0; it must be a positive number"),
        (lambda: Unitwise(floor=math.nan), "Unitwise: floor is nan; it must be a positive number"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_name_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
