"""Every unit of a scope is clipped by a history of its own, whatever gradients the others have in a step."""

import math

import pytest
import torch
from small_trainings import Regression, Remember, fit_module
from torch import Tensor, nn
from torch.testing import assert_close
from transfers import OnTheDevice

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    Auto,
    ClippingPolicy,
    EmaRatio,
    GradientNormMonitor,
    LogNormal,
    Percentile,
    Step,
    ZScore,
)


class TwoBatches(nn.Module):
    """Two weights, the gradient of each of which is set by the data; `None` leaves it without."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(4))
        self.second = nn.Parameter(torch.full((4,), 2.0))


class TwoNorms(Regression):
    """Gradients of the two weights have the norms of the batch; NaN: that weight has no gradient."""

    def __init__(self, make_optimizer):
        super().__init__(make_optimizer, TwoBatches())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        weights = zip((self.net.first, self.net.second), batch.tolist(), strict=True)
        return sum((norm * weight.sum() / 2 for weight, norm in weights if not math.isnan(norm)), torch.zeros(()))


class OfLosses(TwoNorms):
    """Its losses are set too."""

    def __init__(self, make_optimizer, losses: Tensor) -> None:
        super().__init__(make_optimizer)
        self.losses = losses

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + (self.losses[batch_idx] - loss).detach()


def policy_by_hand(
    policy: ClippingPolicy, norms: Tensor, rate: float | None, weights: float, losses: Tensor | None = None
) -> list[float]:
    """Coefficients of one unit that is alone in the world."""
    history, coefficients = policy.initial_history(norms[0]), []
    for index, norm in enumerate(norms):
        step = Step(norm, rate, torch.tensor(weights, dtype=norm.dtype), loss=None if losses is None else losses[index])
        clip = policy.clip(history, step)
        coefficients.append(float(clip.target / norm) if norm > clip.threshold else 1.0)
        history = policy.observe(history, step)
    return coefficients


def test_auto_bounds_each_parameter_group_by_its_own_norms_and_learning_rate():
    generator = torch.Generator().manual_seed(0)
    norms = (0.3 * torch.randn(60, 2, generator=generator, dtype=torch.float64)).exp() * torch.tensor([1.0, 30.0])
    norms[40] *= 100
    losses = (10 + torch.randn(60, generator=generator)).float()
    logger, clipping = Remember(), AdaptiveGradientClipping(scope="group")
    make = lambda p: torch.optim.SGD([{"params": p[:1], "lr": 1.0}, {"params": p[1:], "lr": 0.01}])  # noqa: E731
    module = OfLosses(make, losses)
    fit_module(module, norms.float(), clipping, logger=logger)
    by_group = [
        policy_by_hand(Auto(), norms[:, 0], 1.0, 2.0, losses.double()),
        policy_by_hand(Auto(), norms[:, 1], 0.01, 4.0, losses.double()),
    ]
    without = policy_by_hand(Auto(), norms[:, 1], 0.01, 4.0)
    assert sum(a < b for a, b in zip(by_group[1], without, strict=True)) > 30  # their promises are bounded
    assert 1 < sum(value < 1 for value in by_group[0]) < 30
    lowest = [min(pair) for pair in zip(*by_group, strict=True)]
    assert_close(list(logger.column("grad_clip/coefficient").values()), lowest, rtol=1e-4, atol=0)
    for weight, start, rate, group, coefficients in zip(
        module.net.parameters(), (1.0, 2.0), (1.0, 0.01), norms.T, by_group, strict=True
    ):
        moved = rate * sum(norm * factor for norm, factor in zip(group.tolist(), coefficients, strict=True))
        assert_close(float((start - weight.detach()).norm()), moved, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scope", ["group", "parameter", "unit"])
@pytest.mark.parametrize(
    "policy",
    [
        Auto(window=8),
        Percentile(window=8),
        ZScore(warmup=4),
        EmaRatio(warmup=4),
        LogNormal(warmup=4),
    ],
)
def test_what_has_no_gradient_in_a_step_keeps_its_place_and_its_history(scope, policy):
    generator = torch.Generator().manual_seed(1)
    norms = (torch.randn(40, 2, generator=generator, dtype=torch.float64)).exp()
    norms[::3, 0] = math.nan
    norms[5:9, 1] = math.nan
    norms[6] = math.nan
    logger = Remember()
    make = lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:]}])  # noqa: E731
    usual = [row for row in norms.float() if not row.isnan().all()]
    fit_module(TwoNorms(make), usual, AdaptiveGradientClipping(policy, scope=scope), logger=logger)
    alone = [
        policy_by_hand(policy, group[~group.isnan()], None, 2.0 * (1 + place)) for place, group in enumerate(norms.T)
    ]
    coefficients = [iter(values) for values in alone]
    expected = [min(next(coefficients[place]) for place in (0, 1) if not row[place].isnan()) for row in usual]
    assert_close(list(logger.column("grad_clip/coefficient").values()), expected, rtol=1e-5, atol=0)
    present = sum(int((~row.isnan()).sum()) for row in usual)
    share = sum(value < 1 for values in alone for value in values) / present
    fractions = logger.column("grad_clip/clipped_fraction").values()
    weights = [int((~row.isnan()).sum()) for row in usual]
    logged = sum(fraction * weight for fraction, weight in zip(fractions, weights, strict=True))
    assert_close(logged / present, share)


@pytest.mark.parametrize("scope", ["group", "parameter", "unit"])
def test_groups_added_during_the_training_begin_a_history_of_their_own(scope):
    class Unfreezes(TwoNorms):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 5:
                self.optimizers().add_param_group({"params": [self.net.second]})

        def configure_optimizers(self):
            return torch.optim.Adam([self.net.first])

    norms = torch.tensor([[1.0, 50.0]] * 5 + [[1.0, 7.0], [1.0, 7.0], [1.0, 700.0]])
    logger, clipping = Remember(), AdaptiveGradientClipping(scope=scope)
    fit_module(Unfreezes(None), norms, clipping, logger=logger)
    alone = policy_by_hand(Auto(), norms[5:, 1].double(), None, 4.0)
    assert_close(list(logger.column("grad_clip/coefficient").values()), [1.0] * 5 + alone, rtol=1e-5, atol=0)
    assert [len(norms) for norms in clipping.state_dict()["optimizers"]["0"]["weight_norms"]] == [1, 1]


def test_parameters_put_into_a_group_that_has_a_history_begin_it_anew_with_a_warning():
    class Grows(TwoNorms):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 1:
                self.optimizers().param_groups[0]["params"].append(self.net.second)

        def configure_optimizers(self):
            return torch.optim.SGD([self.net.first], lr=0.1)

    clipping = AdaptiveGradientClipping(scope="parameter")
    with pytest.warns(UserWarning, match=r"have \[1\] units, but here they have \[2\]\. It begins anew"):
        fit_module(Grows(None), torch.ones(3, 2), clipping)
    assert clipping.state_dict()["optimizers"]["0"]["history"]["count"].tolist() == [2, 2]


@pytest.mark.parametrize("clipping", [AdaptiveGradientClipping, OnTheDevice])
@pytest.mark.parametrize("scope", ["group", "parameter", "unit"])
@pytest.mark.filterwarnings("ignore:.*(the update is skipped|updates were skipped)")
def test_one_bad_gradient_skips_the_whole_update_and_enters_no_history(scope, clipping):
    make = lambda p: torch.optim.AdamW([{"params": p[:1]}, {"params": p[1:]}], lr=0.1, fused=True)  # noqa: E731
    good = torch.tensor([[1.0, 3.0], [1.2, 2.0], [0.8, 4.0], [30.0, 3.0]])
    with_bad = torch.cat([good[:2], torch.tensor([[9.0, math.inf], [math.inf, 1.0]]), good[2:]])
    modules, states = [TwoNorms(make), TwoNorms(make)], []
    for module, batches in zip(modules, (good, with_bad), strict=True):
        callback, logger = clipping(Auto(), scope=scope), Remember()
        fit_module(module, batches, callback, GradientNormMonitor(), logger=logger, log_every_n_steps=1)
        states.append(callback.state_dict()["optimizers"]["0"]["history"])
    assert_close(dict(modules[1].named_parameters()), dict(modules[0].named_parameters()), rtol=1e-6, atol=0)
    assert_close(states[1], states[0], rtol=0, atol=0, equal_nan=True)
    assert logger.column("grad_clip/skipped_steps")[5] == 2
    assert logger.column("grad_clip/coefficient")[2] == 0
    assert logger.column("grad_norm/clipped")[3] == 0
