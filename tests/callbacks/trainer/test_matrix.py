"""`Auto`, and a bound on Adam's updates, in all that a Trainer does, against loops by hand.

Here: single and bf16-mixed precision, accumulated gradients, compiled modules, steps that return None, sparse
gradients, manual optimisation with two optimizers (also in 16-mixed), a scaler that skips steps, resuming. Elsewhere:

- DDP, FSDP2: `test_matrix_distributed.py`, `test_clipping_distributed.py`, `test_monitor_sharded.py`
- GPU, nothing that waits for it: `test_matrix_gpu.py`; 16-mixed on a CPU: `test_clipping_precision.py`
- other policies than `Auto`, other scopes: `test_adaptive_gradient_clipping.py` (there also frozen and shared
  parameters, and refusals, of LBFGS among others), `test_clipping_scopes.py`

A docstring "Trap n" marks what clippers and monitors elsewhere get wrong: 1 NaN or infinity in the history, 2 state
lost on resume, 3 scaled gradients of fused optimizers, 4 norms over several optimizers, 5 norms of shards, 6 gradients
that are None, sparse or overflow, 7 order of hooks, 8 weights of zero, 9 what a metric shows, 10 optimizers and
strategies that cannot be clipped, 11 gradients of hidden states, 12 cost of reading and logging.
"""

import contextlib
import copy
import math

import pytest
import torch
from auto_by_hand import AutoByHand
from lightnings import LearningRateMonitor, LightningModule, MixedPrecision
from small_trainings import GradientIsBatch, Regression, Remember, fit_module, regression_batches
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, Auto, GradientNormMonitor, Unitwise

FAR_TOO_HIGH = 1.0
LONGEST = 0.05
BOUNDED = Auto(longest_update=LONGEST)


def adam(parameters, fused=False):
    return torch.optim.Adam(parameters, lr=FAR_TOO_HIGH, fused=fused)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9)


def fused_adam(parameters):
    return adam(parameters, fused=True)


def batches_with_outliers(count, every=7):
    batches = regression_batches(count)
    for index in range(every - 2, count, every):
        batches[index] = (batches[index][0], batches[index][1] + 50)
    return batches


def scaled(init_scale=2.0**10):
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=1000)
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


def assert_same_parameters(module, expected, rtol=1e-4, atol=1e-5):
    trained = {name.replace("_orig_mod.", ""): parameter for name, parameter in module.named_parameters()}
    assert_close(trained, dict(expected.named_parameters()), rtol=rtol, atol=atol)


def train_by_hand(module, batches, *, accumulate=1, autocast=contextlib.nullcontext):
    optimizer = module.configure_optimizers()
    by_hand, whole = AutoByHand(optimizer, LONGEST), 0.0
    for index, batch in enumerate(batches, start=1):
        with autocast():
            loss = module.loss(batch) / accumulate
        loss.backward()
        whole += loss.item()
        if index % accumulate == 0:
            by_hand.step(whole)
            whole = 0.0
            optimizer.zero_grad()
    return by_hand


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("make_optimizer", [adam, momentum, fused_adam])
def test_in_single_and_mixed_precision_and_with_accumulated_gradients(make_optimizer, precision, accumulate):
    batches = batches_with_outliers(36 * accumulate, every=7 * accumulate)
    module, expected = Regression(make_optimizer), Regression(make_optimizer)
    fit_module(
        module,
        batches,
        GradientNormMonitor(),
        AdaptiveGradientClipping(BOUNDED),
        precision=precision,
        accumulate_grad_batches=accumulate,
    )
    autocast = contextlib.nullcontext if precision == "32-true" else lambda: torch.autocast("cpu", torch.bfloat16)
    by_hand = train_by_hand(expected, batches, accumulate=accumulate, autocast=autocast)
    assert by_hand.clipped >= 3
    assert (by_hand.promised if make_optimizer is momentum else by_hand.bounded) >= 30
    assert_same_parameters(module, expected)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("make_optimizer", [adam, momentum])
def test_compiled_whole_or_in_part(make_optimizer, whole):
    batches = batches_with_outliers(24)
    module, expected = Regression(make_optimizer), Regression(make_optimizer)
    if whole:
        trained = torch.compile(module, backend="aot_eager")
    else:
        module.net, trained = torch.compile(module.net, backend="aot_eager"), module
    fit_module(trained, batches, AdaptiveGradientClipping(BOUNDED), GradientNormMonitor())
    assert train_by_hand(expected, batches).clipped >= 2
    assert_same_parameters(module, expected)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_beside_the_monitor_where_some_training_steps_return_none():
    """Trap 6: the hook fires with no gradient at all; the optimizer's step runs, and changes nothing."""

    class SkipsSome(Regression):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 3 == 1 else self.loss(batch)

    batches, logger = batches_with_outliers(24), Remember()
    module, expected = SkipsSome(adam), Regression(adam)
    monitor = GradientNormMonitor(gates=True, updates=True, top_k=2)
    fit_module(module, batches, AdaptiveGradientClipping(BOUNDED), monitor, logger=logger)
    optimizer = expected.configure_optimizers()
    by_hand = AutoByHand(optimizer, LONGEST)
    for index, batch in enumerate(batches):
        optimizer.zero_grad()
        if index % 3 != 1:
            expected.loss(batch).backward()
        by_hand.step()
    assert_same_parameters(module, expected)
    assert sorted(logger.column("grad_norm/total")) == [index for index in range(24) if index % 3 != 1]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.SparseAdam, torch.optim.Adagrad])
def test_with_sparse_gradients(kind):
    """Trap 6: sparse embedding gradients make `clip_grad_norm_` raise."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(8, (5, 3), generator=generator), torch.randn(5, 1, generator=generator) * 5) for _ in range(24)
    ]
    batches[20] = (batches[20][0], batches[20][1] + 200)
    net = nn.EmbeddingBag(8, 1, mode="sum", sparse=True)

    def make_optimizer(parameters):
        return kind(parameters, lr=0.5)

    module, expected = (Regression(make_optimizer, copy.deepcopy(net)) for _ in range(2))
    fit_module(module, batches, AdaptiveGradientClipping(BOUNDED), GradientNormMonitor(updates=True))
    by_hand = train_by_hand(expected, batches)
    assert by_hand.clipped >= 1
    assert (by_hand.promised if kind is torch.optim.SGD else by_hand.bounded) >= 10
    assert_same_parameters(module, expected)


class Gan(LightningModule):
    """Two optimizers by hand: Adam, whose updates are bounded, and SGD, whose gradients are."""

    def __init__(self, fused=False):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.fused = fused
        self.generator = nn.Linear(3, 3)
        self.discriminator = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def losses(self, noise, real):
        yield 0, -self.discriminator(self.generator(noise)).float().mean()
        fake = self.generator(noise).detach()
        weight = 3 * real.abs().max()  # so that a few batches stand out
        yield 1, weight * (self.discriminator(fake) - self.discriminator(real)).float().square().mean()

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for index, loss in self.losses(*batch):
            optimizers[index].zero_grad()
            self.manual_backward(loss)
            optimizers[index].step()

    def configure_optimizers(self):
        return [
            adam(self.generator.parameters(), self.fused),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.1, momentum=0.5, fused=self.fused),
        ]


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "16-mixed, fused"])
def test_a_gan_of_adam_and_sgd_by_manual_optimisation(precision):
    """Traps 3 and 4: each optimizer's own gradients, unscaled. Of no loss is it known that it says how well it goes."""
    fused, scale = precision.endswith("fused"), 1.0
    options, autocast = {}, contextlib.nullcontext
    if precision != "32-true":
        scale = 2.0**6
        options = {"plugins": [scaled(scale)]}
        autocast = scaled(scale).autocast_context_manager  # up to Lightning 2.4 it keeps casts of weights for a step
    batches = list(torch.randn(24, 2, 5, 3, generator=torch.Generator().manual_seed(1)))
    for index in (9, 16, 20):
        batches[index][1] *= 30
    module, expected, logger = Gan(fused), Gan(), Remember()
    settings = {"longest_update": 0.01, "deviations": 1.0}  # short steps keep float16's roundings small
    clipping = AdaptiveGradientClipping(Auto(**settings))
    fit_module(module, batches, clipping, GradientNormMonitor(), logger=logger, **options)
    optimizers = expected.configure_optimizers()
    by_hand = [AutoByHand(optimizer, **settings) for optimizer in optimizers]
    for batch in batches:
        with autocast():
            for index, loss in expected.losses(*batch):
                optimizers[index].zero_grad()
                (loss * scale).backward()
                for parameter in by_hand[index].parameters:
                    parameter.grad /= scale
                by_hand[index].step()
    assert by_hand[0].bounded >= 10
    assert by_hand[1].clipped >= 3
    assert_same_parameters(module, expected, rtol=1e-4 if scale == 1 else 1e-3, atol=1e-5 if scale == 1 else 1e-4)
    assert sorted(logger.column("grad_clip/update_coefficient/optimizer_0")) == list(range(24))
    assert not logger.column("grad_clip/update_coefficient/optimizer_1")


class WatchesItsRate(GradientIsBatch):
    """Keeps the learning rate as its own code sees it, before, in and after a step."""

    def __init__(self, **options):
        super().__init__(**options)
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])


@pytest.mark.parametrize("make_optimizer", [adam, fused_adam])
def test_steps_that_a_gradient_scaler_skips_leave_the_bounded_rate_as_it_was_set(make_optimizer):
    good, bad = torch.full((4,), 0.5), torch.tensor([1.0, math.inf, 1.0, 1.0])
    module, expected = WatchesItsRate(make_optimizer=make_optimizer), GradientIsBatch(make_optimizer=adam)
    fit_module(module, [bad, good, good, bad, good, good, bad], AdaptiveGradientClipping(BOUNDED), plugins=[scaled()])
    by_hand = AutoByHand(expected.configure_optimizers(), LONGEST)
    for _ in range(4):
        expected.weight.grad = good.clone()
        by_hand.step()
    assert by_hand.bounded == 4
    assert module.rates == [FAR_TOO_HIGH] * 14
    assert_close(module.weight, expected.weight, rtol=1e-5, atol=0)


def test_the_learning_rate_is_the_users_own_in_training_step_and_to_a_monitor_of_it():
    """Trap 7: an optimizer's `step_pre_hook` fires before the training step, which runs in a closure."""
    module, logger = WatchesItsRate(make_optimizer=adam), Remember()
    fit_module(module, [torch.ones(4)] * 10, AdaptiveGradientClipping(BOUNDED), LearningRateMonitor(), logger=logger)
    assert module.rates == [FAR_TOO_HIGH] * 20
    assert set(logger.column("lr-Adam").values()) == {FAR_TOO_HIGH}
    assert max(logger.column("grad_clip/update_coefficient").values()) < 0.1


def test_a_learning_rate_set_in_training_step_holds_for_this_step_and_stays():
    class SetsItsRate(GradientIsBatch):
        def training_step(self, batch, batch_idx):
            self.optimizers().param_groups[0]["lr"] = 1 / (batch_idx + 1)
            return super().training_step(batch, batch_idx)

    module, expected = SetsItsRate(make_optimizer=adam), GradientIsBatch(make_optimizer=adam)
    fit_module(module, [torch.ones(4)] * 5, AdaptiveGradientClipping(BOUNDED))
    optimizer = expected.configure_optimizers()
    before = expected.weight.detach().clone()
    for index in range(5):
        optimizer.param_groups[0]["lr"] = 1 / (index + 1)
        expected.weight.grad = torch.ones(4)
        optimizer.step()
    # The bound is that of the highest rate, so that all of Adam's steps are shortened alike.
    assert_close(module.weight - before, LONGEST * (expected.weight - before), rtol=1e-3, atol=0)
    assert module.optimizers().param_groups[0]["lr"] == 1 / 5


@pytest.mark.parametrize("stopped", [3, 16])
def test_a_training_interrupted_while_updates_are_bounded_resumes_bit_for_bit(stopped, tmp_path):
    """Trap 2: state lost on resume, or not loadable with `weights_only`."""
    batches, whole = batches_with_outliers(40), Regression(adam)
    undisturbed = AdaptiveGradientClipping(BOUNDED)
    fit_module(whole, batches, undisturbed, GradientNormMonitor())
    first = fit_module(Regression(adam), batches[:stopped], AdaptiveGradientClipping(BOUNDED), GradientNormMonitor())
    first.save_checkpoint(tmp_path / "part.ckpt")
    saved = torch.load(tmp_path / "part.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == FAR_TOO_HIGH
    resumed, clipping = Regression(adam), AdaptiveGradientClipping(BOUNDED)
    options = {"max_epochs": 2, "ckpt_path": tmp_path / "part.ckpt"}
    fit_module(resumed, batches[stopped:], clipping, GradientNormMonitor(), **options)
    assert_same_parameters(resumed, whole, rtol=0, atol=0)
    for part in ("optimizers", "updates"):
        assert_close(clipping.state_dict()[part], undisturbed.state_dict()[part], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("policy", [BOUNDED, Unitwise()])
@pytest.mark.parametrize("make_optimizer", [adam, momentum])
def test_weights_that_start_at_zero_are_trained(make_optimizer, policy):
    """Trap 8: a share of weights of zero is a threshold of zero."""
    module = Regression(make_optimizer, nn.Linear(3, 1))
    nn.init.zeros_(module.net.weight)
    nn.init.zeros_(module.net.bias)
    fit_module(module, regression_batches(24), AdaptiveGradientClipping(policy))
    assert all((parameter != 0).all() for parameter in module.parameters())


def test_what_the_metrics_show_of_a_clipped_step_is_what_happened_to_it():
    """Trap 9: norms before and after, the threshold, and how often it clipped."""
    logger, module = Remember(), Regression(adam)
    batches = batches_with_outliers(24)
    fit_module(module, batches, AdaptiveGradientClipping(BOUNDED), GradientNormMonitor(), logger=logger)
    total, clipped, threshold, coefficient, fraction = (
        logger.column(name)
        for name in (
            "grad_norm/total",
            "grad_norm/clipped",
            "grad_clip/threshold",
            "grad_clip/coefficient",
            "grad_clip/clipped_fraction",
        )
    )
    for step in range(24):
        limit = threshold.get(step, math.inf)  # none is known at the first step
        above = total[step] > limit
        assert fraction[step] == above
        assert (clipped[step] < total[step]) == (coefficient[step] < 1) == above
        assert_close(clipped[step], coefficient[step] * total[step], rtol=1e-6, atol=0)
        assert clipped[step] <= limit * (1 + 1e-6)
    assert 3 <= sum(fraction.values()) < 24
