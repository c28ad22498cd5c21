"""Optimizers replaced, wrapped, with steps of their own, and such as cannot be clipped or bounded."""

import math
import warnings
from importlib import import_module

import pytest
import torch
from lightnings import PACKAGES, Fabric, MisconfigurationException, MixedPrecision, chosen
from parts import BOUNDED, backward, two_parts
from small_trainings import Around, GradientIsBatch, Regression, Remember, fit_module, regression_batches
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    Auto,
    ClippingAdvisor,
    EmaRatio,
    Fixed,
    GradientClipper,
    GradientNormMonitor,
    Unitwise,
)
from rnn_blocks.callbacks.measuring.before_update import before_update


@pytest.mark.parametrize("make_optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_that_is_replaced_in_a_fit_is_clipped_and_guarded_on(make_optimizer):
    class Replaces(GradientIsBatch):
        applied = None

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.trainer.optimizers = [make_optimizer(self.parameters(), lr=0.01)]

    module, logger = Replaces(make_optimizer=lambda p: make_optimizer(p, lr=0.01)), Remember()
    batches = [torch.full((4,), 50.0), torch.full((4,), math.nan), torch.full((4,), 30.0)]
    clipping = AdaptiveGradientClipping(Fixed(0.5))
    with pytest.warns(UserWarning, match="the update is skipped"):
        fit_module(module, batches, clipping, GradientNormMonitor(check_applied=True), logger=logger, max_epochs=2)
    assert module.weight.isfinite().all()
    clipped = logger.column("grad_norm/clipped")
    assert_close(clipped, {0: 0.5, 1: 0.0, 2: 0.5, 3: 0.5, 4: 0.0, 5: 0.5})
    applied = logger.column("grad_norm/applied")
    assert_close(applied, {step: clipped[step] for step in applied})
    assert set(applied) >= {0, 1, 2, 4, 5}  # of the first step of the new one nothing is known
    assert logger.column("grad_clip/skipped_steps")[5] == 2


class TestAWrapperAroundAnOptimizer:
    """It trains as what it wraps: nothing is seen twice, and nothing overlooked."""

    @staticmethod
    def fit(wrap, make_optimizer, *callbacks, **options):
        module, logger, clipping = Regression(lambda p: wrap(make_optimizer(p))), Remember(), []

        class Looks(AdaptiveGradientClipping):
            def on_train_batch_end(self, *arguments):
                clipping.append(self._clippers[0])
                super().on_train_batch_end(*arguments)

        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*check_applied")
            monitor = GradientNormMonitor(check_applied=True)
            fit_module(module, regression_batches(8), monitor, Looks(Fixed(0.5)), logger=logger, **options)
        assert len(clipping) == 8
        assert len(set(clipping)) == 1
        return module, logger

    @pytest.mark.parametrize("scaled", [False, True])
    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
    def test_in_a_trainer(self, kind, scaled):
        found = []
        for wrap in (Around, lambda optimizer: optimizer):
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
            options = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]} if scaled else {}
            module, logger = self.fit(wrap, lambda p: kind(p, lr=0.01), **options)
            found.append((dict(module.named_parameters()), logger.rows))
        assert_close(found[0], found[1], rtol=0, atol=0)
        assert max(row["grad_norm/total"] for _, row in found[0][1] if "grad_norm/total" in row) > 1
        assert max(row["grad_norm/clipped"] for _, row in found[0][1] if "grad_norm/clipped" in row) < 0.501

    @pytest.mark.parametrize("unscaled_before", [False, True])
    @pytest.mark.parametrize("fused", [False, True])
    def test_in_a_loop_with_a_scaler_that_knows_the_wrapper(self, unscaled_before, fused):
        model, inner = two_parts(fused=fused)
        optimizer, scaler = Around(inner), torch.amp.GradScaler("cpu", init_scale=2.0**12)
        clipper = GradientClipper(optimizer, Fixed(1e9), scaler=scaler)
        backward(model)
        expected = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
        backward(model, scaler.scale(torch.ones(())))
        if unscaled_before:
            scaler.unscale_(optimizer)
        assert_close(clipper.clip().float(), expected)
        scaler.step(optimizer)
        assert_close(torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()]), expected)

    @pytest.mark.parametrize("wrap", [Around, lambda optimizer: optimizer])
    def test_under_fabric_whose_scaler_knows_what_fabric_was_given(self, wrap):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        plugins = import_module(f"{PACKAGES[chosen.package]}.plugins")
        fabric = Fabric(accelerator="cpu", devices=1, plugins=[plugins.MixedPrecision("16-mixed", "cpu", scaler)])
        model, optimizer = two_parts()
        model, optimizer = fabric.setup(model, wrap(optimizer))
        clipper = GradientClipper(optimizer, Fixed(1e9), model=model, scaler=scaler)
        fabric.backward(model(torch.ones(2, 3)).sum())
        norm = clipper.clip()
        optimizer.step()
        assert norm < 20
        assert_close(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]), norm.float())

    def test_has_its_bad_gradients_taken_away_and_not_only_its_optimizers_update(self):
        _, inner = two_parts(fused=True)
        elsewhere = torch.device("meta")  # no CPU
        assert not GradientClipper(inner)._reads_flags(elsewhere)
        assert GradientClipper(Around(inner))._reads_flags(elsewhere)


class Annealed(torch.optim.SGD):
    """Its step takes a temperature; one that takes a function of its own, and more."""

    def step(self, temperature, scale=1.0):
        arguments = temperature() if callable(temperature) else temperature
        self.seen = (arguments, scale)


@pytest.mark.parametrize("arguments", [(2.0,), (lambda: 3.0, 0.5), (2.0, 0.5)])
def test_steps_that_take_something_else_than_a_closure_get_it(arguments):
    weight = nn.Parameter(torch.ones(2))
    optimizer = Annealed([weight], lr=0.1)
    calls = []
    before_update(optimizer, lambda: calls.append(1))
    weight.sum().backward()
    optimizer.step(*arguments)
    assert optimizer.seen == (arguments[0]() if callable(arguments[0]) else arguments[0], (*arguments, 1.0)[1])
    assert calls == [1]


def test_optimizers_whose_gradients_are_not_to_be_changed_are_refused_and_what_is_none():
    model, _ = two_parts()
    with pytest.raises(ValueError, match="GradientClipper cannot be used with LBFGS"):
        GradientClipper(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(TypeError, match="GradientClipper needs an optimizer of torch, got Sequential"):
        GradientClipper(model)


def test_updates_that_no_rate_bounds_are_not_said_to_be_bounded():
    model, _ = two_parts()
    optimizer = torch.optim.Rprop(model.parameters(), lr=1.0)
    clipper = GradientClipper(optimizer, BOUNDED)
    backward(model)
    clipper.clip()
    assert "grad_clip/update_coefficient" not in clipper.metrics()


class Derived(torch.optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


def test_an_optimizer_that_calls_its_bases_step_makes_one_step():
    torch.optim.Adam([nn.Parameter(torch.ones(1))])  # from here on torch calls the hooks at both
    found = []
    for kind in (torch.optim.Adam, Derived):
        module, logger = Regression(lambda p, kind=kind: kind(p, lr=0.5)), Remember()
        callbacks = AdaptiveGradientClipping(BOUNDED), GradientNormMonitor(check_applied=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(tells no callback|check_applied)")
            fit_module(module, regression_batches(20), *callbacks, logger=logger)
        found.append((module.state_dict(), logger.rows))
    assert_close(found[0], found[1], rtol=0, atol=0)


def test_the_hooks_work_again_after_a_closure_that_failed():
    calls, optimizer = [], torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    handle = before_update(optimizer, lambda: calls.append(1))
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    optimizer.step(lambda: 1.0)
    optimizer.step()
    assert calls == [1, 1]
    handle.remove()
    optimizer.step()
    assert calls == [1, 1]


@pytest.mark.filterwarnings("ignore:.*duplicate parameters")
@pytest.mark.parametrize("policy", [Fixed(1e9), Auto(), EmaRatio(ratio=1e9), Unitwise(1e9)])
@pytest.mark.parametrize("scope", ["global", "group", "parameter", "unit"])
def test_a_parameter_that_is_twice_in_a_group_is_one(scope, policy):
    def twice(parameters):
        first, *others = parameters
        return torch.optim.SGD([first, *others, first], lr=1e-4)

    batches, logger, once = regression_batches(8), Remember(), Remember()
    plain, clipped, without = Regression(twice), Regression(twice), Regression(lambda p: torch.optim.SGD(p, lr=1e-4))
    callbacks = GradientNormMonitor(), AdaptiveGradientClipping(policy, scope=scope)
    fit_module(plain, batches)
    fit_module(clipped, batches, *callbacks, logger=logger)
    assert_close(clipped.state_dict(), plain.state_dict(), rtol=0, atol=0)
    fit_module(without, batches[:1], GradientNormMonitor(), logger=once)
    assert once.column("grad_norm/total")[0] == logger.column("grad_norm/total")[0]


@pytest.mark.parametrize("rate", [torch.tensor([0.05]), torch.tensor(0.05)], ids=["(1,)", "()"])
@pytest.mark.parametrize("scope", ["global", "group", "parameter", "unit"])
def test_a_rate_in_a_tensor_beside_one_that_is_a_number(scope, rate):
    def with_rate(first):
        def make(parameters):
            parameters = list(parameters)
            return torch.optim.SGD([{"params": parameters[:2], "lr": first}, {"params": parameters[2:]}], lr=0.01)

        module = Regression(make)
        fit_module(module, regression_batches(8), AdaptiveGradientClipping(scope=scope))
        return module.state_dict()

    assert_close(with_rate(rate), with_rate(0.05))


class LooksLikeOne:
    """What Lightning takes for an optimizer."""

    def __init__(self, parameters):
        self.inner = torch.optim.SGD(parameters, lr=0.01)

    def __getattr__(self, name):
        if name in ("param_groups", "defaults", "state", "state_dict", "load_state_dict", "zero_grad", "step"):
            return getattr(self.inner, name)
        raise AttributeError(name)


@pytest.mark.parametrize("kind", [AdaptiveGradientClipping, GradientNormMonitor, ClippingAdvisor])
def test_what_is_no_optimizer_of_torch_is_refused(kind):
    message = r"cannot be used with LooksLikeOne \(optimizer 0\), which is no torch\.optim\.Optimizer"
    with pytest.raises(MisconfigurationException, match=message):
        fit_module(Regression(LooksLikeOne), regression_batches(1), kind())


@pytest.mark.parametrize("make", [lambda: AdaptiveGradientClipping(Fixed(0.5)), GradientNormMonitor, ClippingAdvisor])
def test_lightnings_handle_given_for_an_optimizer_is_the_optimizer(make, tmp_path):
    handle = import_module(f"{chosen.package}.core.optimizer").LightningOptimizer
    found = []
    for wrap in (lambda optimizer: optimizer, handle):
        module = Regression(lambda p, wrap=wrap: wrap(torch.optim.SGD(p, lr=0.01)))
        fit_module(module, regression_batches(8), make(), default_root_dir=tmp_path)
        found.append(module.state_dict())
    assert_close(found[0], found[1], rtol=0, atol=0)
