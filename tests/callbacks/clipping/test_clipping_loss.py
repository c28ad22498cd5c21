"""The loss that reaches the policy is what is minimised: whole, unscaled, of all ranks; what is told of clipping."""

import contextlib
import math

import pytest
import torch
from lightnings import MixedPrecision
from small_trainings import GradientIsBatch, Regression, Remember, fit_module, norms_as_batches, regression_batches
from torch.testing import assert_close
from transfers import CountScalars, OnTheDevice

from rnn_blocks.callbacks import AdaptiveGradientClipping, Auto, Clip, ClippingPolicy, Fixed, GradientClipper
from rnn_blocks.callbacks.clipping.record import ClippingRecord


class Hears(ClippingPolicy):
    """Keeps the losses that it is told of, and clips nothing."""

    uses_loss = True

    def __init__(self):
        self.losses = []

    def clip(self, history, step):
        self.losses.append(None if step.loss is None else step.loss.clone())
        return Clip(torch.full_like(step.norm, math.inf), step.norm)


class Deaf(Hears):
    uses_loss = False


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


class Notes(Regression):
    """Keeps the losses of its batches."""

    def __init__(self):
        super().__init__(sgd)
        self.noted = []

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.noted.append(loss.item())
        return loss


class ByHand(Notes):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_it_is_unscaled_and_the_mean_over_accumulated_batches(accumulate, precision):
    options = {"precision": precision}
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=2)  # it changes on the way
        options = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}
    module, policy = Notes(), Hears()
    clipping = AdaptiveGradientClipping(policy)
    fit_module(module, regression_batches(12), clipping, accumulate_grad_batches=accumulate, **options)
    expected = torch.tensor(module.noted, dtype=torch.float64).view(-1, accumulate).mean(1)
    assert len(set(expected.tolist())) == 12 // accumulate
    assert_close(torch.stack(policy.losses), expected, rtol=1e-6, atol=0)
    assert clipping._loss is None


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_batch_without_a_loss_is_none_of_the_accumulated():
    class SkipsSome(Notes):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx)

    module, policy = SkipsSome(), Hears()
    fit_module(module, regression_batches(12), AdaptiveGradientClipping(policy), accumulate_grad_batches=3)
    noted = torch.tensor(module.noted, dtype=torch.float64).view(4, 2)
    assert_close(torch.stack(policy.losses), noted.mean(1), rtol=1e-6, atol=0)


class StepsAtSome(Notes):
    """As Lightning's own example has it: `optimizer_step` calls the closure by itself where it makes no step."""

    every = 2

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        if (batch_idx + 1) % self.every == 0:
            optimizer.step(closure=closure)
        else:
            closure()


class AccumulatesByItself(StepsAtSome):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if batch_idx % self.every == 0:
            optimizer.zero_grad()


@pytest.mark.parametrize("every", [2, 4])
@pytest.mark.parametrize("kind", [StepsAtSome, AccumulatesByItself])
def test_of_batches_whose_gradients_are_cleared_unused_it_is_forgotten(kind, every):
    module, policy = kind(), Hears()
    module.every = every
    fit_module(module, regression_batches(8), AdaptiveGradientClipping(policy))
    noted = torch.tensor(module.noted, dtype=torch.float64).view(-1, every)
    expected = noted.sum(1) if kind is AccumulatesByItself else noted[:, -1]
    assert_close(torch.stack(policy.losses), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("module", "policy"), [(ByHand(), Hears()), (Notes(), Deaf())])
def test_there_is_none_by_manual_optimisation_nor_for_a_policy_that_does_not_use_it(module, policy):
    fit_module(module, regression_batches(4), AdaptiveGradientClipping(policy))
    assert policy.losses == [None] * 4


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_clipper_takes_a_loss_of_one_element_and_leaves_it_alone(shape):
    module, policy = GradientIsBatch(), Hears()
    clipper = GradientClipper(module.configure_optimizers(), policy)
    loss = (module.weight * torch.ones(4)).sum().reshape(shape)
    loss.sum().backward()
    clipper.clip(loss)
    assert [(heard.item(), heard.shape, heard.requires_grad) for heard in policy.losses] == [(4.0, (), False)]
    assert loss.requires_grad


@pytest.mark.parametrize("shape", [(2,), (0,), (3, 1)])
def test_a_clipper_refuses_a_loss_of_several_elements(shape):
    module = GradientIsBatch()
    clipper = GradientClipper(module.configure_optimizers())
    with pytest.raises(
        ValueError, match=rf"GradientClipper\.clip: loss has shape \({shape[0]},.*must have one element"
    ):
        clipper.clip(torch.ones(shape))


def test_a_clipper_refuses_a_loss_that_is_no_tensor():
    module = GradientIsBatch()
    clipper = GradientClipper(module.configure_optimizers())
    with pytest.raises(ValueError, match=r"GradientClipper\.clip: loss is 0\.5; it must be the tensor that backward"):
        clipper.clip(0.5)


def test_a_momentum_of_1_promises_nothing():
    """Its update has no length: it grows for as long as the gradient lasts."""
    module = GradientIsBatch(make_optimizer=lambda p: torch.optim.SGD(p, lr=1.0, momentum=1.0))
    clipper = GradientClipper(module.configure_optimizers())
    for batch in norms_as_batches([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 100.0]):
        module.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        clipper.clip(loss)
    assert clipper.summary() == "1 of 7 steps clipped (1 outlier)"


class Losses(GradientIsBatch):
    """Norms and loss of each batch are the batch's own: (norm, loss)."""

    def training_step(self, batch, batch_idx):
        norm, loss = batch
        return (self.weight * norm / 2).sum() * 1.0 + (loss - (self.weight * norm / 2).sum()).detach()


def steps(norms, losses):
    return list(zip(map(torch.tensor, norms), map(torch.tensor, losses), strict=True))


SPIKES = [1.0] * 20
SPIKES[12] = SPIKES[16] = 100.0


def told(policy, norms, losses, clipping=AdaptiveGradientClipping, **options):
    """What has been logged."""
    logger = Remember()
    module = Losses(make_optimizer=lambda p: torch.optim.SGD(p, lr=0.1, fused=True))
    fit_module(module, steps(norms, losses), clipping(policy), logger=logger, **options)
    return logger


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr("rnn_blocks.callbacks.clipping.callback.rank_zero_info", lines.append)
    return lines


@pytest.mark.parametrize("clipping", [AdaptiveGradientClipping, OnTheDevice])
def test_metrics_say_for_what_the_steps_since_the_last_log_were_clipped(clipping, said):
    norms, losses = list(SPIKES), [1000.0] * 20
    norms[0], norms[2] = 50.0, 200.0  # √(0.2·1000/0.1) is 45
    logger = told("auto", norms, losses, clipping, log_every_n_steps=5)
    assert logger.column("grad_clip/promise_fraction") == {4: 0.4, 9: 0.0, 14: 0.0, 19: 0.0}
    assert logger.column("grad_clip/outlier_fraction") == {4: 0.0, 9: 0.0, 14: 0.2, 19: 0.2}
    assert logger.column("grad_clip/clipped_fraction") == {4: 0.4, 9: 0.0, 14: 0.2, 19: 0.2}
    assert said == ["AdaptiveGradientClipping: 4 of 20 steps clipped (2 outliers, 2 promises)"]


def test_a_policy_without_reasons_logs_no_share_for_them(said):
    logger = told(Fixed(50.0), SPIKES, [10.0] * 20)
    assert {name for _, row in logger.rows for name in row if name.startswith("grad_clip")} == {
        f"grad_clip/{name}" for name in ("threshold", "coefficient", "clipped_fraction", "skipped_steps")
    }
    assert said == ["AdaptiveGradientClipping: 2 of 20 steps clipped"]


@pytest.mark.filterwarnings("ignore:.*the update is skipped")
def test_the_last_line_of_a_fit_counts_one_as_one_and_what_was_not_finite(said):
    norms = [1.0] * 30
    norms[15], norms[20] = 90.0, math.nan
    told(Auto(largest_decrease=None), norms, [1.0] * 30, log_every_n_steps=1000)
    assert said == ["AdaptiveGradientClipping: 1 of 30 steps clipped (1 outlier); 1 had non-finite gradients"]


def test_of_several_optimizers_each_has_a_line(said):
    class Two(ByHand):
        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self):
            return [sgd(self.net[0].parameters()), sgd(self.net[2].parameters())]

    fit_module(Two(), regression_batches(3), AdaptiveGradientClipping(Fixed(1e6)))
    assert said == [f"AdaptiveGradientClipping, optimizer {index}: 0 of 3 steps clipped" for index in (0, 1)]


def test_a_summary_of_a_long_training_is_one_short_line():
    module = GradientIsBatch(make_optimizer=sgd)
    clipper = GradientClipper(module.configure_optimizers())
    module.weight.grad = torch.ones(4)
    for step in range(1500):
        module.weight.grad.fill_(50.0 if step in (100, 600, 1100) else 1.0)
        clipper.clip()
    assert clipper.summary() == "3 of 1,500 steps clipped (3 outliers)"


def test_a_summary_leaves_the_next_metrics_as_they_were():
    metrics = []
    for asks in (False, True):
        module = GradientIsBatch(make_optimizer=sgd)
        optimizer = module.configure_optimizers()
        clipper = GradientClipper(optimizer, Fixed(2.0))
        for batch in norms_as_batches([1.0, 3.0, 1.0, 1.0]):
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            clipper.clip()
            if asks:
                assert clipper.summary().endswith("steps clipped")
        metrics.append(clipper.metrics())
        assert clipper.summary() == "1 of 4 steps clipped"
    assert metrics[0] == metrics[1]
    assert metrics[0]["grad_clip/clipped_fraction"] == 0.25


def test_with_a_loss_nothing_is_read_from_the_device_between_logging_steps():
    count = CountScalars()

    class Counted(OnTheDevice):
        def on_before_backward(self, *arguments):
            with count:
                super().on_before_backward(*arguments)

        def on_before_optimizer_step(self, *arguments):
            with count:
                super().on_before_optimizer_step(*arguments)

    logger, module = Remember(), Regression(lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, fused=True))
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=64.0)):
        plugins = [] if scaler is None else [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
        fit_module(module, regression_batches(12), Counted(), log_every_n_steps=6, logger=logger, plugins=plugins)
        assert count.count == 0
    assert logger.column("grad_clip/promise_fraction")[5] > 0.5


def test_a_record_moves_to_another_device_as_a_whole():
    """As one that was saved on a GPU, is loaded on a CPU, and goes on on a GPU."""
    record = ClippingRecord()
    norm = torch.tensor([1.0, 3.0])
    clip = Clip(torch.full((2,), 2.0), torch.full((2,), 2.0), torch.tensor([0, 1]))
    record.take_place(norm.device, False, False)
    record.add_groups([norm], Auto())
    record.count(norm, clip, torch.tensor(False), 2, num_reasons=2)
    assert record._by_reason.tolist() == [0, 1]
    loaded = ClippingRecord.from_state_dict(record.state_dict())
    meta = torch.device("meta")
    for moved in (record, loaded):
        moved.take_place(meta, False, False)
        on_meta = Clip(*(value.to(meta) for value in clip[:3]))
        moved.count(norm.to(meta), on_meta, torch.tensor(False, device=meta), 2, num_reasons=2)
        assert moved.state_dict()["by_reason"].device == meta


def test_a_loss_left_by_a_training_that_broke_before_its_step_is_not_the_next_training_s():

    class Breaks(Notes):
        def on_after_backward(self):
            if len(self.noted) == 2:
                raise RuntimeError("broken")

    clipping = AdaptiveGradientClipping(Hears())
    with contextlib.suppress(RuntimeError):
        fit_module(Breaks(), regression_batches(4), clipping)
    module = Notes()
    clipping.policy.losses.clear()
    fit_module(module, regression_batches(3), clipping)
    assert_close(torch.stack(clipping.policy.losses).tolist(), module.noted, rtol=1e-6, atol=0)
