"""Each published rule against the paper's algorithm, written down again in NumPy, one unit and one step at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks.callbacks import (
    Auto,
    ClippingPolicy,
    EmaRatio,
    Fixed,
    LogNormal,
    Percentile,
    SkipOutliers,
    Step,
    Unitwise,
    ZScore,
)

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


def log_normal_by_hand(policy: LogNormal, norms: list[float]) -> list[Answer]:
    """Chorowski et al. 2014, §3.2.1."""
    seen, mean, square, answers = 0, 0.0, 0.0, []
    for norm in norms:
        if seen < policy.warmup:
            answers.append((math.inf, math.inf))
        else:
            correction = 1 - policy.decay**seen
            m, variance = mean / correction, square / correction - (mean / correction) ** 2
            deviation = math.sqrt(max(variance, 0.0))
            answers.append((_exp(m + policy.deviations * deviation), _exp(m)))
        if usable(norm):
            seen += 1
            mean = policy.decay * mean + (1 - policy.decay) * math.log(norm)
            square = policy.decay * square + (1 - policy.decay) * math.log(norm) ** 2
    return answers


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def far_above(values: list[float], policy: SkipOutliers) -> float:
    """Where OLMo-core and MaxText begin to skip: mean and sample deviation of the window, once it is half full."""
    last = values[-policy.window :]
    if len(last) < max(policy.window // 2, 2):
        return math.inf
    return float(np.mean(last) + policy.deviations * np.std(last, ddof=1))


def skip_outliers_by_hand(policy: SkipOutliers, norms: list[float]) -> list[Answer]:
    seen, answers = [], []
    for norm in norms:
        answers.append((far_above(seen, policy), 0.0))
        seen += [norm] if math.isfinite(norm) else []
    return answers


RULES = [
    (Percentile(window=7), percentile_by_hand),
    (Percentile(percent=90.0, window=5), percentile_by_hand),
    (Percentile(percent=100.0, window=2), percentile_by_hand),
    (ZScore(warmup=4), zscore_by_hand),
    (ZScore(deviations=1.0, decay=0.5, warmup=2, max_norm=3.0), zscore_by_hand),
    (EmaRatio(warmup=3), ema_ratio_by_hand),
    (EmaRatio(ratio=2.0, decay=0.5, warmup=1, warmup_cap=4.0), ema_ratio_by_hand),
    (Fixed(1.5), fixed_by_hand),
    (LogNormal(), log_normal_by_hand),
    (LogNormal(deviations=0.7, decay=0.5, warmup=1), log_normal_by_hand),
    (SkipOutliers(window=8), skip_outliers_by_hand),
    (SkipOutliers(deviations=1.0, window=3), skip_outliers_by_hand),
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


POLICIES = [
    Auto(window=8),
    Percentile(window=8),
    ZScore(warmup=4),
    EmaRatio(warmup=4),
    Fixed(1.0),
    LogNormal(),
    SkipOutliers(),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_leaves_the_history_as_it_was(policy, bad):
    """Trap 1: NaN or infinity once in the history kills the threshold of AutoClip and ZClip for ever."""
    norm = torch.tensor([1.0, 2.0], dtype=torch.float64)
    history = policy.initial_history(norm)
    for factor in (1.0, 1.1, 0.9, 1.2, 0.8, 1.0):
        history = policy.observe(history, Step(factor * norm, None, norm))
    after = policy.observe(history, Step(torch.tensor([bad, bad], dtype=torch.float64), None, norm))
    assert_close(after, history, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "policy", [Percentile(window=8), ZScore(warmup=4), EmaRatio(warmup=4), Auto(window=8), LogNormal(warmup=4)]
)
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


class TestSkipOutliers:
    def answers(self, policy, norms, losses):
        """Of each step, whether it is skipped, and which of the two was far above the last ones."""
        history, skipped = policy.initial_history(torch.zeros((), dtype=torch.float64)), []
        for norm, loss in zip(norms, losses, strict=True):
            loss = None if loss is None else torch.tensor(loss, dtype=torch.float64)
            step = Step(torch.tensor(norm, dtype=torch.float64), 0.1, torch.ones(()), loss=loss)
            clip = policy.clip(history, step)
            assert clip.target == 0
            skipped.append(policy.reasons[int(clip.reason)] if step.norm > clip.threshold else None)
            history = policy.observe(history, step)
        return skipped

    def test_skips_a_step_whose_norm_or_loss_is_six_deviations_above_the_last_128(self):
        generator = np.random.default_rng(0)
        norms, losses = (generator.lognormal(0.0, 0.2, 300).tolist() for _ in range(2))
        norms[30] = losses[40] = 90.0  # before half a window is known
        norms[200] = losses[250] = norms[270] = losses[270] = 90.0
        policy, expected = SkipOutliers(), []
        for step in range(300):
            norm, loss = (values[step] > far_above(values[:step], policy) for values in (norms, losses))
            expected.append("norm" if norm else "loss" if loss else None)
        assert {step: why for step, why in enumerate(expected) if why} == {200: "norm", 250: "loss", 270: "norm"}
        assert self.answers(policy, norms, losses) == expected

    @pytest.mark.parametrize(("many", "skipped"), [(3, None), (4, "loss")])
    def test_losses_begin_to_count_half_a_window_after_the_first_one(self, many, skipped):
        losses = [*[None] * 20, *[1.0, 1.1, 1.0, 1.1][:many], 50.0]
        assert self.answers(SkipOutliers(window=8), [1.0] * len(losses), losses) == [None] * (20 + many) + [skipped]

    @pytest.mark.parametrize("bad", [math.nan, None])
    def test_a_loss_that_is_not_finite_or_missing_is_neither_an_outlier_nor_remembered(self, bad):
        norms, losses = [1.0, 1.1] * 10, [1.0, 1.1] * 10
        without = self.answers(SkipOutliers(window=4), [*norms, 1.0], [*losses, 9.0])
        losses[12:14] = [bad, bad]
        assert self.answers(SkipOutliers(window=4), [*norms, 1.0], [*losses, 9.0]) == without
        assert without == [None] * 20 + ["loss"]


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
        (lambda: LogNormal(deviations=0.0), "LogNormal: deviations is 0.0; it must be a positive number"),
        (lambda: LogNormal(decay=1.0), "LogNormal: decay is 1.0; it must be above 0 and below 1"),
        (lambda: LogNormal(warmup=0), "LogNormal: warmup is 0; it must be at least 1 norm"),
        (lambda: SkipOutliers(deviations=math.nan), "SkipOutliers: deviations is nan; it must be a positive number"),
        (lambda: SkipOutliers(window=1), "SkipOutliers: window is 1; it must be at least 2"),
        (lambda: Fixed("5"), "Fixed: threshold is '5'; it must be a positive number"),
        (lambda: Auto(longest_update="0.05"), r"Auto: longest_update is '0\.05'; it must be a positive number"),
        (lambda: Auto(deviations=None), "Auto: deviations is None; it must be a positive number"),
        (lambda: Auto(window=64.0), r"Auto: window is 64\.0; it must be at least 2 norms, a whole number"),
        (lambda: Percentile("10"), "Percentile: percent is '10'; it must be a number from 0 to 100"),
        (lambda: Percentile(window="10"), "Percentile: window is '10'; it must be at least 2 norms, a whole number"),
        (lambda: ZScore(decay="0.9"), r"ZScore: decay is '0\.9'; it must be at least 0 and below 1"),
        (lambda: ZScore(warmup=2.5), r"ZScore: warmup is 2\.5; it must be at least 2 norms, a whole number"),
        (lambda: EmaRatio(warmup=1.5), r"EmaRatio: warmup is 1\.5; it must be at least 1 norm, a whole number"),
        (
            lambda: EmaRatio(warmup_cap=[1.0]),
            r"EmaRatio: warmup_cap is \[1\.0\]; it must be a positive number, or None",
        ),
        (lambda: LogNormal(decay="0.9"), r"LogNormal: decay is '0\.9'; it must be above 0 and below 1"),
        (lambda: LogNormal(warmup=1.5), r"LogNormal: warmup is 1\.5; it must be at least 1 norm, a whole number"),
        (lambda: SkipOutliers(window=8.0), r"SkipOutliers: window is 8\.0; it must be at least 2, a whole number"),
        (lambda: Unitwise(ratio="0.1"), r"Unitwise: ratio is '0\.1'; it must be a positive number"),
        (lambda: Unitwise(floor=math.nan), "Unitwise: floor is nan; it must be a positive number"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_name_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
