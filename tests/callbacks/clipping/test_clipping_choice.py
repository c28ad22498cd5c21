"""Which optimizers and which parameters are clipped; what the others keep."""

import math
from functools import partial

import pytest
import torch
from lightnings import LightningModule, MisconfigurationException
from small_trainings import Regression, Remember, fit_module, regression_batches
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, Auto, Fixed, GradientNormMonitor, NonFiniteGradientError

assert_equal = partial(assert_close, rtol=0, atol=0)
sgd = partial(torch.optim.SGD, lr=0.1)


class Adversaries(LightningModule):
    """Two optimizers, each with its own network; `clips` clips one of them by hand."""

    automatic_optimization = False

    def __init__(self, clips=None, make_optimizer=sgd):
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.discriminator = nn.Linear(3, 3), nn.Linear(3, 1)
        self.clips = clips
        self.make_optimizer = make_optimizer

    def training_step(self, batch, batch_idx):
        for place, (optimizer, sign) in enumerate(zip(self.optimizers(), (1, -1), strict=True)):
            optimizer.zero_grad()
            self.manual_backward(sign * self.discriminator(self.generator(batch[0])).square().mean())
            if place == self.clips:
                nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.01)
            optimizer.step()

    def configure_optimizers(self):
        return [self.make_optimizer(net.parameters()) for net in (self.generator, self.discriminator)]


@pytest.mark.parametrize("choice", [{"optimizers": 1}, {"optimizers": [1]}, {"include": "discriminator"}], ids=str)
def test_the_discriminator_only(choice):
    batches = regression_batches(8)
    module, expected, logger = Adversaries(), Adversaries(clips=1), Remember()
    fit_module(module, batches, AdaptiveGradientClipping(Fixed(0.01), **choice), logger=logger)
    fit_module(expected, batches)
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-5, atol=1e-7)
    assert len(logger.column("grad_clip/threshold/optimizer_1")) == 8
    assert not logger.column("grad_clip/threshold/optimizer_0")


@pytest.mark.parametrize("choice", [{"exclude": "net.2"}, {"exclude": ["net.2.*"]}, {"include": "net.0"}], ids=str)
def test_all_but_the_output_layer(choice):
    batches = regression_batches(8)
    module, expected, logger = Regression(sgd), Regression(sgd), Remember()
    fit_module(
        module, batches, AdaptiveGradientClipping(Fixed(0.01), **choice), GradientNormMonitor(depth=2), logger=logger
    )
    optimizer, norms, all_norms = expected.configure_optimizers(), [], []
    for batch in batches:
        optimizer.zero_grad()
        expected.loss(batch).backward()
        norms.append(float(nn.utils.clip_grad_norm_(expected.net[0].parameters(), 0.01)))
        all_norms.append(float(nn.utils.get_total_norm([p.grad for p in expected.parameters()])))
        optimizer.step()
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-5, atol=1e-7)
    assert_close(list(logger.column("grad_norm/net.0").values()), norms, rtol=1e-5, atol=0)
    assert_close(list(logger.column("grad_norm/clipped").values()), all_norms, rtol=1e-5, atol=0)
    coefficients = list(logger.column("grad_clip/coefficient").values())
    assert_close(coefficients, [min(1.0, 0.01 / norm) for norm in norms], rtol=1e-5, atol=0)


@pytest.mark.parametrize("scope", ["global", "group", "parameter", "unit"])
def test_in_every_scope_the_rest_keeps_its_gradient_to_the_bit(scope):
    kept = []

    class Looks(Regression):
        def on_before_optimizer_step(self, optimizer):  # after the callbacks
            kept.append([p.grad.clone() for p in self.net[2].parameters()])
            small = [p.grad for p in self.net[0].parameters()]
            assert nn.utils.get_total_norm(small) < 0.1

    fit_module(Looks(sgd), regression_batches(1), AdaptiveGradientClipping(Fixed(0.01), scope=scope, exclude="net.2"))
    expected = Regression(sgd)
    expected.loss(regression_batches(1)[0]).backward()
    assert_equal(kept[0], [p.grad for p in expected.net[2].parameters()])


def test_two_instances_clip_one_part_each():
    """The norm of each is of what the other has left; here they have nothing in common."""
    batches, logger = regression_batches(6), Remember()
    module, expected = Regression(sgd), Regression(sgd)
    fit_module(
        module,
        batches,
        AdaptiveGradientClipping(Fixed(0.01), include="net.0", name="body"),
        AdaptiveGradientClipping(Fixed(0.02), include="net.2", name="head"),
        logger=logger,
    )
    optimizer = expected.configure_optimizers()
    for batch in batches:
        optimizer.zero_grad()
        expected.loss(batch).backward()
        nn.utils.clip_grad_norm_(expected.net[0].parameters(), 0.01)
        nn.utils.clip_grad_norm_(expected.net[2].parameters(), 0.02)
        optimizer.step()
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), rtol=1e-5, atol=1e-7)
    assert set(logger.column("body/coefficient")) == set(logger.column("head/coefficient")) == set(range(6))


@pytest.mark.parametrize("name", ["net.0.bias", "net.2.bias"])
def test_a_gradient_that_is_not_finite_is_acted_on_wherever_it_is(name):
    class Breaks(Regression):
        def on_after_backward(self):
            self.get_parameter(name).grad.fill_(math.nan)

    module = Breaks(sgd)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.warns(UserWarning, match=f"'{name}' is not finite at step 0; the update is skipped"):
        fit_module(module, regression_batches(1), AdaptiveGradientClipping(exclude="net.2"))
    assert_equal(module.state_dict(), before)
    with pytest.raises(NonFiniteGradientError, match=name):
        fit_module(Breaks(sgd), regression_batches(1), AdaptiveGradientClipping(exclude="net.2", nonfinite="raise"))


def test_the_rate_of_groups_without_a_chosen_parameter_is_not_bounded():
    class Groups(Regression):
        def configure_optimizers(self):
            return torch.optim.Adam(
                [{"params": self.net[0].parameters()}, {"params": self.net[2].parameters()}], lr=1.0
            )

    module, free, bound = Groups(None), Groups(None), Groups(None)
    fit_module(module, regression_batches(1), AdaptiveGradientClipping(Auto(longest_update=0.05), exclude="net.2"))
    fit_module(free, regression_batches(1))
    fit_module(bound, regression_batches(1), AdaptiveGradientClipping(Auto(longest_update=0.05)))
    assert_close(module.net[2].weight, free.net[2].weight)
    start = Groups(None).net[0].weight
    assert (module.net[0].weight - start).norm() < 0.06 * start.norm() < (free.net[0].weight - start).norm()


def test_parameters_that_are_thawed_later_are_chosen_by_the_same_names():
    class Thaws(Regression):
        def configure_optimizers(self):
            return sgd(self.net[2].parameters())

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 2:
                self.optimizers().optimizer.add_param_group({"params": [*self.net[0].parameters()]})

    logger = Remember()
    clipping = AdaptiveGradientClipping(Fixed(0.01), include="net.0", scope="parameter")
    fit_module(Thaws(None), regression_batches(4), clipping, GradientNormMonitor(depth=2), logger=logger)
    coefficients = logger.column("grad_clip/coefficient")
    assert coefficients[0] == coefficients[1] == 1
    assert max(coefficients[2], coefficients[3]) < 1
    assert clipping.state_dict()["optimizers"]["0"]["weight_norms"][1].shape == (2,)


def test_a_state_is_found_again_by_its_choice():
    keys = {
        AdaptiveGradientClipping(**choice).state_key
        for choice in ({}, {"optimizers": 0}, {"include": "a"}, {"exclude": "a"}, {"exclude": "b"})
    }
    assert len(keys) == 5
    assert AdaptiveGradientClipping(exclude="a").state_key == AdaptiveGradientClipping(exclude=["a"]).state_key


class TestRefusals:
    def test_of_a_name_that_matches_nothing_names_what_there_is(self):
        with pytest.raises(MisconfigurationException, match=r"include has 'head', which matches no.* 'net\.0\.weight'"):
            fit_module(Regression(sgd), regression_batches(1), AdaptiveGradientClipping(include=["net.0", "head"]))

    def test_of_an_optimizer_that_is_not_there(self):
        with pytest.raises(MisconfigurationException, match="optimizers has 2; Adversaries has 2 of them, counted fr"):
            fit_module(Adversaries(), regression_batches(1), AdaptiveGradientClipping(optimizers=[0, 2]))
