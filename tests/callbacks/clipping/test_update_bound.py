"""Updates of adaptive optimizers are bounded through the learning rate, which everybody else sees as it was."""

import math

import pytest
import torch
from small_trainings import GradientIsBatch, Regression, Remember, fit_module, regression_batches
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, Auto, Fixed
from rnn_blocks.callbacks.clipping.update_bound import SAMPLE, UpdateBound

OPTIMIZERS = {
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.1),
    "adam-tensor-rate": lambda p, lr: torch.optim.Adam(p, lr=torch.tensor(lr)),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr=lr),
    "fused": lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=True),
}


LONGEST = 0.05
BOUNDED = Auto(longest_update=LONGEST)


def middle(values):
    """The median; of an even number the larger of the middle two."""
    return sorted(values)[len(values) // 2]


class Watched(Regression):
    """Notes how far each step moves its middle matrix as a share of what it was, and the rate that others see."""

    def __init__(self, make_optimizer, net=None) -> None:
        super().__init__(make_optimizer, net)
        self.moved: list[float] = []
        self.rates: list[float] = []

    def vector(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters() if p.requires_grad]).clone()

    def matrices(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.parameters() if p.requires_grad and p.ndim > 1]

    def on_train_batch_start(self, batch, batch_idx):
        self.before = self.matrices()
        if batch_idx == 0:
            self.initial = self.before

    def on_train_batch_end(self, outputs, batch, batch_idx):
        triples = zip(self.matrices(), self.before, self.initial, strict=True)
        self.moved.append(middle([float((now - before).norm() / first.norm()) for now, before, first in triples]))
        self.rates.append(float(self.trainer.optimizers[0].param_groups[0]["lr"]))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_no_update_is_much_longer_than_the_bound_at_a_rate_far_too_high(kind):
    module = Watched(lambda p: OPTIMIZERS[kind](p, 1.0))
    longest = 0.01
    fit_module(module, regression_batches(80), AdaptiveGradientClipping(Auto(longest_update=longest)))
    assert max(module.moved) <= 2.5 * longest  # between two measurements the length may grow
    assert sum(module.moved) / 80 <= 1.1 * longest
    assert sum(moved > 0.3 * longest for moved in module.moved) > 40
    assert module.rates == [1.0] * 80


def test_the_first_update_of_adam_is_exactly_as_long_as_it_may_be():
    module = Watched(lambda p: torch.optim.Adam(p, lr=1.0))
    fit_module(module, regression_batches(1), AdaptiveGradientClipping(BOUNDED))
    assert_close(module.moved[0], LONGEST, rtol=1e-3, atol=0)


def test_updates_shorter_than_the_bound_are_left_as_they_are_bit_for_bit():
    modules = [Watched(lambda p: torch.optim.Adam(p, lr=1e-4)) for _ in range(2)]
    fit_module(
        modules[0], regression_batches(40), AdaptiveGradientClipping(Auto(longest_update=LONGEST, deviations=1e6))
    )
    fit_module(modules[1], regression_batches(40))
    assert_close(modules[0].vector(), modules[1].vector(), rtol=0, atol=0)


def test_a_scheduler_sees_the_rate_that_it_set_and_its_decay_shortens_bounded_updates():
    class Decays(Watched):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=1.0)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)  # chainable: it reads the rate
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Decays(None)
    fit_module(module, regression_batches(48), AdaptiveGradientClipping(BOUNDED))
    assert_close(module.rates, [0.9**step for step in range(1, 49)])
    assert max(module.moved[40:]) < 2.5 * LONGEST * 0.9**40


def test_sgd_and_other_policies_have_no_bound_on_updates():
    for make_optimizer, policy in (
        (lambda p: torch.optim.SGD(p, lr=0.01), BOUNDED),
        (lambda p: torch.optim.Adam(p, lr=0.01), Fixed(1.0)),
        (lambda p: torch.optim.Adam(p, lr=0.01), Auto()),
    ):
        logger = Remember()
        fit_module(Regression(make_optimizer), regression_batches(2), AdaptiveGradientClipping(policy), logger=logger)
        assert not logger.column("grad_clip/update_coefficient")


def test_the_coefficient_is_logged_and_no_hook_outlives_the_fit():
    logger, module = Remember(), Regression(lambda p: torch.optim.Adam(p, lr=1.0))
    trainer = fit_module(module, regression_batches(3), AdaptiveGradientClipping(BOUNDED), logger=logger)
    coefficients = logger.column("grad_clip/update_coefficient")
    assert sorted(coefficients) == [0, 1, 2]
    assert all(0 < value < 0.1 for value in coefficients.values())
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


def test_an_error_in_a_step_leaves_the_optimizer_its_learning_rate():
    class Breaks(GradientIsBatch):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    module = Breaks(make_optimizer=lambda p: torch.optim.Adam(p, lr=1.0))
    with pytest.raises(RuntimeError, match="broken"):
        fit_module(module, [torch.ones(4)] * 4, AdaptiveGradientClipping(BOUNDED))
    assert module.optimizers().param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize(("weights", "rate"), [(0.0, 0.1), (1.0, 0.0)])
def test_weights_that_start_at_zero_and_a_rate_of_zero_have_no_bound(weights, rate):
    weight = nn.Parameter(torch.full((10,), weights))
    optimizer = torch.optim.Adam([weight], lr=rate)
    bound = UpdateBound(optimizer, longest=0.01)
    bound.attach()
    for _ in range(3):
        weight.grad = torch.ones(10)
        optimizer.step()
    assert bound.coefficient == 1
    assert_close(weight.detach(), torch.full((10,), weights - 3 * rate))


def test_a_warm_up_from_zero_is_bounded_once_the_rate_has_risen():
    weight = nn.Parameter(torch.ones(100))
    optimizer = torch.optim.Adam([weight], lr=0.0)
    bound = UpdateBound(optimizer, longest=0.01)
    bound.attach()
    for step in range(10):
        optimizer.param_groups[0]["lr"] = step / 10
        before = weight.detach().clone()
        weight.grad = torch.ones(100)
        optimizer.step()
        assert float((weight.detach() - before).norm()) <= 0.1 * (1 + 1e-5)


@pytest.mark.parametrize("sizes", [[(3,), (200, 70)], [(500, 128), (SAMPLE,), (70, 50), (SAMPLE + 1,), (9, 9)], [(7,)]])
def test_what_is_measured_on_a_sample_is_the_middle_matrix_s_update_over_its_initial_norm(sizes):
    torch.manual_seed(0)
    weights = [nn.Parameter((scale + 1) * torch.randn(size)) for scale, size in enumerate(sizes)]
    counted = [weight for weight in weights if weight.ndim > 1] or weights  # vectors where there is nothing else
    initial = [float(weight.detach().norm()) for weight in counted]
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    bound = UpdateBound(optimizer, longest=1e6)
    bound.attach()
    for step in range(1, 5):
        before = [weight.detach().clone() for weight in counted]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        if step in (1, 2, 4):
            moved = [float((w.detach() - b).norm()) for w, b in zip(counted, before, strict=True)]
            ratio = middle([length / norm for length, norm in zip(moved, initial, strict=True)])
            assert_close(float(bound._measured) * 1e-3, ratio, rtol=0.03, atol=0)


@pytest.mark.parametrize("scale", [100.0, 1e-4])
@pytest.mark.parametrize("others", [2, 3])
def test_one_matrix_of_another_scale_neither_loosens_nor_tightens_the_bound_of_the_others(scale, others):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(30, 30)) for _ in range(others)]
    odd = nn.Parameter(scale * torch.randn(500, 30))
    optimizer = torch.optim.Adam([odd, *weights], lr=10.0)
    bound = UpdateBound(optimizer, longest=0.05)
    bound.attach()
    for _ in range(20):
        before = [weight.detach().clone() for weight in weights]
        for weight in (odd, *weights):
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        moved = [float((w.detach() - b).norm()) / 30 for w, b in zip(weights, before, strict=True)]
        assert 0.045 < max(moved) < 0.055  # 30 is about the norm of each


def test_parameters_that_join_later_are_measured_against_what_they_were_then():
    first, later = nn.Parameter(torch.ones(10, 10)), nn.Parameter(torch.full((10, 10), 2.0), requires_grad=False)
    optimizer = torch.optim.Adam([first, later], lr=1.0)
    bound = UpdateBound(optimizer, longest=0.01)
    bound.attach()
    for step in range(40):
        if step == 3:
            later.requires_grad_(True)
        if step == 8:
            optimizer.add_param_group({"params": [nn.Parameter(torch.full((10, 10), 4.0))]})
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.ones_like(weight) if weight.requires_grad else None
        optimizer.step()
    assert bound.state_dict()["initial_norms"] == {0: 10.0, 1: 20.0, 2: 40.0}
    assert bound.coefficient == pytest.approx(0.01 * 2, rel=1e-3)  # the one of 20 is now the middle one


def test_a_parameter_that_takes_anothers_place_is_measured_in_its_stead():
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(10, 10))], lr=1.0)
    bound = UpdateBound(optimizer, longest=0.01)
    bound.attach()
    for step in range(40):
        if step == 3:
            optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.ones(10, 10))
        [weight] = optimizer.param_groups[0]["params"]
        weight.grad = torch.full((10, 10), 1.0 if step < 12 else 0.0)  # updates are shorter from then on
        optimizer.step()
    assert bound.coefficient > 0.011


def test_an_update_of_complex_weights_is_as_long_as_that_of_their_two_parts():
    coefficients = []
    parts = torch.tensor([3.0, 4.0]).repeat(10, 10, 1)
    for weight in (nn.Parameter(torch.view_as_complex(parts)), nn.Parameter(parts.clone())):
        optimizer = torch.optim.Adam([weight], lr=1.0)
        bound = UpdateBound(optimizer, longest=0.01)
        bound.attach()
        for step in range(34):  # what is measured at the 16th counts from the 32nd on
            weight.grad = torch.full_like(weight, 0 if step > 12 else 1 + 1j if weight.is_complex() else 1)
            optimizer.step()
            coefficients.append(bound.coefficient)
    assert coefficients[0] < coefficients[33]
    assert coefficients[:34] == pytest.approx(coefficients[34:], rel=1e-5)


def test_a_frozen_parameter_neither_counts_nor_is_needed():
    weight, frozen = nn.Parameter(torch.ones(100)), nn.Parameter(torch.full((100,), 1e3), requires_grad=False)
    optimizer = torch.optim.Adam([weight, frozen], lr=1.0)
    bound = UpdateBound(optimizer, longest=0.01)
    bound.attach()
    weight.grad = torch.ones(100)
    optimizer.step()
    assert_close(float((weight.detach() - 1).norm()), 0.1)


@pytest.mark.parametrize("interrupted", [1, 7, 16, 21])
def test_a_resumed_bound_goes_on_as_an_undisturbed_one(interrupted):
    def steps(weight, optimizer, start, stop):
        for step in range(start, stop):
            weight.grad = torch.randn(50, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    weights = [nn.Parameter(torch.ones(50)) for _ in range(2)]
    optimizers = [torch.optim.Adam([weight], lr=0.5) for weight in weights]
    bounds = [UpdateBound(optimizer, longest=0.01) for optimizer in optimizers]
    for bound in bounds:
        bound.attach()
    steps(weights[0], optimizers[0], 0, 40)
    steps(weights[1], optimizers[1], 0, interrupted)
    bounds[1].detach()
    resumed = UpdateBound(optimizers[1], longest=0.01)
    resumed.load_state_dict(bounds[1].state_dict())
    resumed.attach()
    steps(weights[1], optimizers[1], interrupted, 40)
    assert_close(weights[1], weights[0], rtol=0, atol=0)
    assert resumed.state_dict() == bounds[0].state_dict()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_nothing_waits_for_the_device():
    weight = nn.Parameter(torch.ones(1000, device="cuda"))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    bound = UpdateBound(optimizer, longest=0.01)
    bound.attach()
    weight.grad = torch.ones_like(weight)
    optimizer.step()  # reads the norm of the initial weights, once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(40):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float((weight.detach() - 1).norm()) <= 41 * 0.01 * math.sqrt(1000) * 1.01
