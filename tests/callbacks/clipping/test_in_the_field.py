"""What trainings do that no tutorial does: several clippers, parameters that are not chosen, copies, inner graphs."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from lightnings import LightningModule
from parts import BOUNDED, backward, two_parts
from small_trainings import GradientIsBatch, Regression, fit_module, regression_batches
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    Fixed,
    GradientClipper,
    GradientNormMonitor,
    NonFiniteGradientError,
    Unitwise,
)

DUPLICATES = [copy.deepcopy, lambda all_of_it: pickle.loads(pickle.dumps(all_of_it))]


class TestSeveralClippersOfOneOptimizer:
    def test_leave_it_the_rate_that_the_user_has_set(self):
        model, optimizer = two_parts(lr=5.0)
        before = copy.deepcopy(model)
        clippers = [GradientClipper(optimizer, BOUNDED, model=model, include=part) for part in ("0", "1")]
        for _ in range(40):
            backward(model)
            for clipper in clippers:
                clipper.clip()
            optimizer.step()
            assert optimizer.param_groups[0]["lr"] == 5.0
        assert all(clipper.metrics()["grad_clip/update_coefficient"] < 1 for clipper in clippers)
        pairs = zip(model, before, strict=True)
        lengths = [(new.weight - old.weight).norm() / old.weight.norm() for new, old in pairs]
        assert all(0.1 < length < 40 * 0.06 for length in lengths)

    def test_bound_its_updates_as_the_strictest_of_them_does(self):
        """Not as the product of all: a cell of a notebook that is run again must not stop the training."""
        model, optimizer = two_parts(lr=5.0)
        other, its_optimizer = two_parts(lr=5.0)
        clippers = [GradientClipper(optimizer, BOUNDED) for _ in range(3)]
        alone = GradientClipper(its_optimizer, BOUNDED)
        for _ in range(20):
            backward(model)
            backward(other)
            for clipper in clippers:
                clipper.clip()
            alone.clip()
            optimizer.step()
            its_optimizer.step()
        assert_close(dict(model.named_parameters()), dict(other.named_parameters()), rtol=1e-4, atol=1e-5)
        assert optimizer.param_groups[0]["lr"] == 5.0

    def test_in_a_trainer_leave_it_its_rate(self):
        module = Regression(lambda p: torch.optim.Adam(p, lr=3.0))
        parts = [AdaptiveGradientClipping(include=f"net.{k}", name=f"clip_{k}") for k in (0, 2)]
        trainer = fit_module(module, regression_batches(20), *parts)
        assert trainer.optimizers[0].param_groups[0]["lr"] == 3.0
        assert not trainer.optimizers[0]._optimizer_step_pre_hooks
        assert not trainer.optimizers[0]._optimizer_step_post_hooks

    def test_that_take_turns_see_each_their_own_step(self):
        weight = nn.Parameter(torch.ones(4))
        optimizer = torch.optim.SGD([weight], lr=0.0)
        first, second = GradientClipper(optimizer, Fixed(1.0)), GradientClipper(optimizer, Fixed(1.0))
        for step in range(6):
            optimizer.zero_grad()
            (weight * 10.0**step).sum().backward()
            assert (first if step % 3 else second).clip() == 2 * 10.0**step
            assert_close(weight.grad.norm(), torch.tensor(1.0))
            optimizer.step()


class Manual(GradientIsBatch):
    """Clips on every second batch only, by a clipper of its own."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx == 0:
            self.clipper = GradientClipper(optimizer, Fixed(0.1))
        if batch_idx % 2 == 0:
            self.clipper.clip()
        self.norms.append(float(self.weight.grad.norm()))
        optimizer.step()

    def on_fit_start(self):
        self.norms = []


def test_a_monitor_beside_a_clipper_of_ones_own_changes_nothing():
    norms = []
    for callbacks in ([], [GradientNormMonitor()]):
        module = Manual()
        fit_module(module, [torch.full((4,), scale) for scale in (1.0, 4.0, 16.0, 64.0)], *callbacks)
        norms.append(module.norms)
    assert norms[0] == norms[1]
    assert_close(norms[0], [0.1, 8.0, 0.1, 128.0])


class TestWhatIsNotChosen:
    @pytest.mark.parametrize("frozen", [True, False])
    def test_is_guarded_where_nothing_that_is_chosen_has_a_gradient(self, frozen):
        model, optimizer = two_parts()
        clipper = GradientClipper(optimizer, Unitwise(), model=model, include="0")
        model[0].requires_grad_(not frozen)
        for step in range(3):
            backward(model)
            if not frozen:
                model[0].zero_grad()
            if step == 1:
                model[1].weight.grad.fill_(math.nan)
            before = copy.deepcopy(model.state_dict())
            if step == 1:
                with pytest.warns(UserWarning, match=r"'1\.weight' is not finite at step 1; the update is skipped"):
                    clipper.clip()
            else:
                assert clipper.clip() == 0
            optimizer.step()
            if step == 1:
                assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert clipper.metrics() == {
            "grad_clip/coefficient": 1.0,
            "grad_clip/clipped_fraction": 0.0,
            "grad_clip/skipped_steps": 1.0,
        }

    def test_of_an_optimizer_without_any_of_it_is_guarded_too(self):
        class Two(LightningModule):
            automatic_optimization = False

            def __init__(self):
                super().__init__()
                self.g, self.d = nn.Linear(1, 1), nn.Linear(1, 1)

            def training_step(self, batch, batch_idx):
                for optimizer, net in zip(self.optimizers(), (self.g, self.d), strict=True):
                    optimizer.zero_grad()
                    self.manual_backward(net(batch).sum() * (math.nan if net is self.g else 1.0))
                    optimizer.step()

            def configure_optimizers(self):
                return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.g, self.d)]

        clipping = AdaptiveGradientClipping(include="d", nonfinite="raise")
        with pytest.raises(NonFiniteGradientError, match=r"'g\.weight' is not finite"):
            fit_module(Two(), [torch.ones(1, 1)], clipping)

    def test_may_be_known_by_any_of_its_names(self):
        model = nn.ModuleDict({"words": nn.Embedding(3, 2), "output": nn.Linear(2, 3, bias=False)})
        model["output"].weight = model["words"].weight
        model["body"] = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        clipper = GradientClipper(optimizer, Fixed(0.01), model=model, exclude="output")
        model["output"](model["body"](model["words"](torch.tensor([0, 1])))).sum().backward()
        kept = model["words"].weight.grad.clone()
        clipper.clip()
        assert torch.equal(model["words"].weight.grad, kept)
        assert model["body"].weight.grad.norm() < 0.011

    def test_cannot_be_everything_and_brackets_are_letters(self):
        model = nn.ModuleDict({"a[0]": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        GradientClipper(optimizer, model=model, exclude="a[0]")
        with pytest.raises(ValueError, match="GradientClipper: include is empty"):
            GradientClipper(optimizer, model=model, include=[])
        with pytest.raises(ValueError, match="none of the optimizer's parameters is one of the model"):
            GradientClipper(optimizer, model=copy.deepcopy(model), include="b")
        with pytest.raises(ValueError, match=r"exclude \['\*'\] leaves nothing of include all: there are"):
            GradientClipper(optimizer, model=model, exclude="*")
        with pytest.raises(ValueError, match=r"exclude \['b'\] leaves nothing of include \['b.bias'\]: there are"):
            GradientClipper(optimizer, model=model, include="b.bias", exclude="b")
        for optimizers in ([], "0", True, [True]):
            with pytest.raises(ValueError, match="it must be an index, indices, or None for all"):
                AdaptiveGradientClipping(optimizers=optimizers)
        assert AdaptiveGradientClipping(optimizers=[1, 0, 1]).optimizers == [0, 1]

    @pytest.mark.parametrize("duplicate", DUPLICATES)
    def test_is_the_same_to_a_copy(self, duplicate):
        model, optimizer = two_parts()
        clipper = GradientClipper(optimizer, Fixed(0.01), model=model, include="0")
        for _ in range(2):
            backward(model, 100.0)
            kept = model[1].weight.grad.clone()
            assert clipper.clip() > 1
            assert_close(nn.utils.get_total_norm([p.grad for p in model[0].parameters()]), torch.tensor(0.01))
            assert torch.equal(model[1].weight.grad, kept)
            model, optimizer, clipper = duplicate((model, optimizer, clipper))

    def test_is_told_anew_of_a_parameter_that_takes_anothers_place(self):
        model, optimizer = two_parts()
        clipper = GradientClipper(optimizer, Fixed(0.01), model=model, include="0", scope="parameter")
        for part in (model[0], model[0], model[1], model[0]):
            backward(model, 100.0)
            kept = model[1].weight.grad.clone()
            assert clipper.clip() > 1
            assert_close(model[0].weight.grad.norm(), torch.tensor(0.01))
            assert torch.equal(model[1].weight.grad, kept)
            optimizer.step()
            part.weight = nn.Parameter(part.weight.detach().clone())
            optimizer.param_groups[0]["params"][2 * (part is model[1])] = part.weight


class TestStates:
    def test_of_a_clipper_are_loaded_whole_at_any_moment(self):
        model, optimizer = two_parts(lr=5.0)
        clipper = GradientClipper(optimizer)
        fresh = clipper.state_dict()
        for scale in (1.0, 1e3):
            backward(model, scale)
            clipper.clip()
            optimizer.step()
        later = copy.deepcopy(clipper.state_dict())
        clipper.load_state_dict(fresh)
        assert clipper.metrics() == {}
        assert clipper.state_dict()["record"] is None
        clipper.load_state_dict(later)
        assert clipper.metrics() == {}  # nothing has been clipped since
        assert str(clipper.state_dict()) == str(later)
        backward(model)
        clipper.clip()
        assert clipper.metrics()["grad_clip/skipped_steps"] == 0

    def test_load_the_weights_that_the_bound_is_measured_by(self):
        big, small = two_parts(lr=5.0), two_parts(lr=5.0)
        with torch.no_grad():
            for parameter in big[0].parameters():
                parameter *= 100
        clippers = [GradientClipper(optimizer, BOUNDED) for _, optimizer in (big, small)]
        for (model, optimizer), clipper in zip((big, small), clippers, strict=True):
            backward(model)
            clipper.clip()
            optimizer.step()
        clippers[1].load_state_dict(clippers[0].state_dict())
        backward(small[0])
        clippers[1].clip()
        small[1].step()
        assert clippers[1].metrics()["grad_clip/update_coefficient"] > 0.1  # and not a hundredth of that

    @pytest.mark.parametrize("duplicate", DUPLICATES)
    def test_a_copied_clipper_bounds_the_copied_optimizer(self, duplicate):
        model, optimizer = two_parts(lr=5.0)
        clipper = GradientClipper(optimizer, BOUNDED, model=model)
        backward(model)
        clipper.clip()
        optimizer.step()
        model, optimizer, clipper = duplicate((model, optimizer, clipper))
        before = copy.deepcopy(model[0].weight.detach())
        backward(model)
        clipper.clip()
        optimizer.step()
        assert clipper.optimizer is optimizer
        assert 0.01 < (model[0].weight - before).norm() / before.norm() < 0.1


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_graph_through_the_gradients_is_left_as_it_is():
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    (weight**2).sum().backward(create_graph=True)
    gradient = weight.grad
    GradientClipper(optimizer, Fixed(1e-3)).clip()
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    assert_close(second, torch.tensor([2.0]))
    weight.grad = None


def test_an_inner_backward_pass_is_no_clipping():
    """Of an adversarial input (Goodfellow et al. 2015), whose gradient leaves some with the parameters."""

    class Adversarial(Regression):
        def training_step(self, batch, batch_idx):
            inputs = batch[0].clone().requires_grad_()
            self.loss((inputs, batch[1])).backward()
            return self.loss((batch[0] + 0.1 * inputs.grad.sign(), batch[1]))

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit_module(
            Adversarial(lambda p: torch.optim.SGD(p, lr=0.01)),
            regression_batches(4),
            GradientNormMonitor(check_applied=True),
        )
    assert not [warning for warning in said if "check_applied" in str(warning.message)]
