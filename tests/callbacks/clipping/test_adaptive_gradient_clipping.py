import copy
import math

import pytest
import torch
from lightnings import DeepSpeedStrategy, FSDPStrategy, LightningModule, MisconfigurationException, Trainer
from small_trainings import (
    GradientIsBatch,
    Regression,
    Remember,
    clip_by_hand,
    fit_module,
    make_trainer,
    norms_as_batches,
    regression_batches,
)
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transfers import OnTheDevice

from rnn_blocks.callbacks import AdaptiveGradientClipping, Auto, Fixed, NonFiniteGradientError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


def assert_same_parameters(module: nn.Module, expected: nn.Module, **tolerance: float) -> None:
    assert_close(dict(module.named_parameters()), dict(expected.named_parameters()), **tolerance)


def train_by_hand(module: Regression, batches: list, threshold: float, accumulate: int = 1) -> float:
    """The loop that the Trainer's result is compared with; returns the share of clipped steps."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer, clipped, steps = module.configure_optimizers(), 0, 0
    for index, batch in enumerate(batches, start=1):
        (module.loss(batch) / accumulate).backward()
        if index % accumulate == 0:
            clipped += clip_by_hand(parameters, threshold) > threshold
            steps += 1
            optimizer.step()
            optimizer.zero_grad()
    return clipped / steps


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fixed_trains_the_same_parameters_as_a_hand_written_loop(optimizer, accumulate):
    batches = regression_batches(24)
    module, expected = Regression(OPTIMIZERS[optimizer]), Regression(OPTIMIZERS[optimizer])
    fit_module(module, batches, AdaptiveGradientClipping(Fixed(1.0)), accumulate_grad_batches=accumulate)
    assert 0.2 < train_by_hand(expected, batches, 1.0, accumulate) <= 1
    assert_same_parameters(module, expected, rtol=1e-5, atol=1e-7)


def test_fixed_equals_the_trainers_own_clipping():
    batches = regression_batches(24)
    ours, theirs = Regression(OPTIMIZERS["momentum"]), Regression(OPTIMIZERS["momentum"])
    fit_module(ours, batches, AdaptiveGradientClipping(Fixed(1.0)))
    fit_module(theirs, batches, gradient_clip_val=1.0)
    assert_same_parameters(ours, theirs, rtol=1e-5, atol=1e-6)


def test_auto_bounds_every_sgd_step_by_the_loss_and_the_highest_learning_rate():
    losses, rates = iter([3.0, 3.0, 3.0, 3.0, 0.003]), iter([0.5, 0.1, 0.0, 2.0, 0.5])

    class ChangesItsRate(GradientIsBatch):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss + (next(losses) - loss).detach()

        def on_train_batch_start(self, batch, batch_idx):
            self.before = self.weight.detach().clone()
            self.optimizers().param_groups[0]["lr"] = self.rate = next(rates)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            moved.append(float((self.weight.detach() - self.before).norm()))

    moved: list[float] = []
    # The outlier rule is as good as off, so that the length of the step alone is tested.
    fit_module(
        ChangesItsRate(make_optimizer=lambda p: torch.optim.SGD(p, lr=0.5)),
        norms_as_batches([5.0] * 5),
        AdaptiveGradientClipping(Auto(deviations=1e6)),
    )
    shares = [0.2 * 1.03 * 0.997**more for more in range(4)]  # but for the first loss there is no new low
    squares = [
        0.2 * 3.0 / 0.5,
        *(share * 3.0 / highest for share, highest in zip(shares, (0.5, 0.5, 2.0, 2.0), strict=True)),
    ]
    targets = [min(math.sqrt(square), square / 5.0) for square in squares]  # they are of the first 16 steps
    expected = [rate * target for rate, target in zip((0.5, 0.1, 0.0, 2.0, 0.5), targets, strict=True)]
    assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_auto_through_a_trainer_answers_a_spike_as_fed_by_hand():
    norms = (0.3 * torch.randn(120, generator=torch.Generator().manual_seed(0))).exp()
    norms[100] *= 1000
    logger = Remember()
    fit_module(GradientIsBatch(), norms_as_batches(norms.tolist()), AdaptiveGradientClipping(), logger=logger)
    coefficient = logger.column("grad_clip/coefficient")
    assert coefficient[100] * float(norms[100]) <= 1.5
    assert sum(value < 1 for step, value in coefficient.items() if step != 100) <= 0.05 * 119
    assert min(coefficient.values()) == coefficient[100]
    assert sorted(logger.column("grad_clip/threshold")) == list(range(1, 120))  # none is known at the first step


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_training_step_returning_none_makes_no_step_and_no_history():
    """Trap 6: the hook fires with no gradient at all."""

    class SkipsSome(Regression):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 3 == 1 else self.loss(batch)

    batches = regression_batches(12)
    module, expected = SkipsSome(OPTIMIZERS["momentum"]), Regression(OPTIMIZERS["momentum"])
    clipping = AdaptiveGradientClipping(Fixed(1.0))
    fit_module(module, batches, clipping, log_every_n_steps=100)
    train_by_hand(expected, [batch for index, batch in enumerate(batches) if index % 3 != 1], 1.0)
    assert_same_parameters(module, expected, rtol=1e-5, atol=1e-7)
    assert clipping.state_dict()["optimizers"]["0"]["pairs"] == 8


def test_finite_gradients_of_1e20_are_clipped_and_not_zeroed():
    """Trap 6: their norm is infinite in float32."""
    module = GradientIsBatch(make_optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    fit_module(module, [torch.full((4,), 1e20)], AdaptiveGradientClipping(Fixed(1.0)))
    assert_close(module.weight.detach(), torch.full((4,), 0.5), rtol=1e-6, atol=0)


def test_sparse_embeddings_frozen_and_shared_parameters_train_as_in_a_hand_written_loop():
    """Trap 6: sparse gradients make `clip_grad_norm_` raise."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(6, 4, sparse=True)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, tokens):
            return self.second(self.first(self.frozen(self.embedding(tokens).sum(1)))).sum(-1, keepdim=True)

    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(6, (5, 3), generator=generator), torch.randn(5, 1, generator=generator) * 5) for _ in range(12)
    ]
    torch.manual_seed(0)
    net = Net()
    module = Regression(OPTIMIZERS["sgd"], copy.deepcopy(net))
    expected = Regression(OPTIMIZERS["sgd"], copy.deepcopy(net))
    fit_module(module, batches, AdaptiveGradientClipping(Fixed(1.0)))
    assert train_by_hand(expected, batches, 1.0) > 0.2
    assert_same_parameters(module, expected, rtol=1e-5, atol=1e-6)
    assert_close(module.net.frozen.weight, net.frozen.weight, rtol=0, atol=0)


class Gan(LightningModule):
    """Two optimizers by hand; the discriminator's gradients are a thousand times the generator's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator = nn.Linear(3, 3)
        self.discriminator = nn.Linear(3, 1)

    def losses(self, noise, real):
        yield 0, -self.discriminator(self.generator(noise)).mean()
        fake = self.generator(noise).detach()
        yield 1, 1000 * (self.discriminator(fake) - self.discriminator(real)).square().mean()

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for index, loss in self.losses(*batch):
            optimizers[index].zero_grad()
            self.manual_backward(loss)
            optimizers[index].step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.SGD(self.discriminator.parameters(), lr=0.01, momentum=0.5),
        ]


def test_each_optimizer_of_a_gan_is_clipped_by_its_own_norm():
    """Trap 4: the norm of the whole module was 1065 against a true 1.47."""
    generator = torch.Generator().manual_seed(1)
    batches = list(torch.randn(10, 2, 5, 3, generator=generator))
    module, expected, logger = Gan(), Gan(), Remember()
    fit_module(module, batches, AdaptiveGradientClipping(Fixed(0.2)), logger=logger)
    optimizers, norms = expected.configure_optimizers(), ([], [])
    for batch in batches:
        for index, loss in expected.losses(*batch):
            optimizers[index].zero_grad()
            loss.backward()
            norms[index].append(clip_by_hand(optimizers[index].param_groups[0]["params"], 0.2))
            optimizers[index].step()
    assert_same_parameters(module, expected, rtol=1e-5, atol=1e-6)
    for index in (0, 1):
        logged = logger.column(f"grad_clip/coefficient/optimizer_{index}")
        assert_close(list(logged.values()), [min(1.0, 0.2 / norm) for norm in norms[index]], rtol=1e-5, atol=0)
    assert min(norms[1]) > 10 * max(norms[0]) > 2.0  # both are clipped, and neither by the other's norm


class TestNonFiniteGradients:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_skipped_update_leaves_parameters_optimizer_state_and_threshold_as_they_were(self, optimizer, bad):
        """Trap 1: NaN in the history, and infinity that makes every gradient NaN."""
        good = norms_as_batches([1.0, 1.1, 0.9, 4.0, 1.0, 0.8])
        with_bad = [*good[:3], torch.tensor([bad, 1.0, 1.0, 1.0]), *good[3:]]
        modules, clippings, trainers = [], [], []
        for batches in (good, with_bad):
            modules.append(GradientIsBatch(make_optimizer=OPTIMIZERS[optimizer]))
            clippings.append(AdaptiveGradientClipping())
            if batches is with_bad:
                with pytest.warns(UserWarning, match="'weight' is not finite at step 3; the update is skipped"):
                    trainers.append(fit_module(modules[-1], batches, clippings[-1]))
            else:
                trainers.append(fit_module(modules[-1], batches, clippings[-1]))
        assert_close(modules[1].weight, modules[0].weight, rtol=0, atol=0)
        states = [trainer.optimizers[0].state_dict() for trainer in trainers]
        assert_close(states[1]["state"], states[0]["state"], rtol=0, atol=0)
        records = [clipping.state_dict()["optimizers"]["0"] for clipping in clippings]
        assert_close(records[1]["history"], records[0]["history"], rtol=0, atol=0, equal_nan=True)
        assert trainers[1].callback_metrics["grad_clip/skipped_steps"] == 1
        assert trainers[0].callback_metrics["grad_clip/skipped_steps"] == 0

    def test_zero_makes_the_update_with_gradients_of_zero(self):
        batches = [torch.ones(4), torch.tensor([1.0, math.nan, math.inf, 1.0]), torch.ones(4)]
        module = GradientIsBatch(make_optimizer=OPTIMIZERS["momentum"])
        expected = GradientIsBatch(make_optimizer=OPTIMIZERS["momentum"])
        with pytest.warns(UserWarning, match="all gradients of this step are set to zero"):
            fit_module(module, batches, AdaptiveGradientClipping(Fixed(9.0), nonfinite="zero"))
        fit_module(expected, [batches[0], torch.zeros(4), batches[2]])
        assert_close(module.weight, expected.weight, rtol=0, atol=0)

    def test_raise_names_the_parameter(self):
        with pytest.raises(NonFiniteGradientError, match="the gradient of parameter 'weight' is not finite at step 1"):
            fit_module(
                GradientIsBatch(),
                [torch.ones(4), torch.full((4,), math.nan)],
                AdaptiveGradientClipping(nonfinite="raise"),
            )

    def test_the_parameter_at_fault_is_named_among_others(self):
        class Broken(Regression):
            def on_after_backward(self):
                self.net[2].weight.grad[0, 3] = math.inf

        with pytest.warns(UserWarning, match=r"parameter 'net\.2\.weight' is not finite at step 0"):
            fit_module(Broken(OPTIMIZERS["sgd"]), regression_batches(1), AdaptiveGradientClipping())

    @pytest.mark.filterwarnings("ignore:.*the update is skipped")
    def test_so_many_in_a_row_stop_the_training_and_as_many_apart_do_not(self):
        bad, good = torch.full((4,), math.nan), torch.ones(4)
        fit_module(GradientIsBatch(), [bad, bad, good] * 4, AdaptiveGradientClipping(max_nonfinite=3))
        with pytest.raises(NonFiniteGradientError, match=r"3 steps in a row \(max_nonfinite=3\), and the gradient of"):
            fit_module(GradientIsBatch(), [good, bad, bad, bad], AdaptiveGradientClipping(max_nonfinite=3))


class TestWithoutReadingFromTheDevice:
    @pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.SGD])
    def test_a_fused_optimizer_leaves_out_the_update_by_itself(self, kind):
        good = norms_as_batches([1.0, 1.1, 0.9, 4.0, 1.0])
        with_bad = [torch.full((4,), math.nan), *good[:3], torch.tensor([math.inf, 1, 1, 1]), *good[3:]]

        def make_optimizer(parameters):
            return kind(parameters, lr=0.001, fused=True)

        module, expected = (GradientIsBatch(make_optimizer=make_optimizer) for _ in range(2))
        logger = Remember()
        with pytest.warns(UserWarning, match="'weight' was not finite.*2 such steps so far.*were skipped"):
            trainer = fit_module(module, with_bad, OnTheDevice(), log_every_n_steps=7, logger=logger)
        reference = fit_module(expected, good, AdaptiveGradientClipping())
        assert_close(module.weight, expected.weight, rtol=1e-6, atol=0)
        states = [t.optimizers[0].state_dict()["state"] for t in (trainer, reference)]
        assert_close(states[0], states[1], rtol=1e-6, atol=0)
        assert logger.column("grad_clip/skipped_steps") == {6: 2.0}
        assert not hasattr(trainer.optimizers[0], "found_inf")

    def test_zero_sets_gradients_to_zero_and_tells_at_the_end(self):
        batches = [torch.ones(4), torch.tensor([1.0, math.nan, math.inf, 1.0]), torch.ones(4)]
        module = GradientIsBatch(make_optimizer=OPTIMIZERS["momentum"])
        expected = GradientIsBatch(make_optimizer=OPTIMIZERS["momentum"])
        with pytest.warns(UserWarning, match="1 such steps so far; these updates were made with gradients of zero"):
            fit_module(module, batches, OnTheDevice(Fixed(9.0), nonfinite="zero"), log_every_n_steps=50)
        fit_module(expected, [batches[0], torch.zeros(4), batches[2]])
        assert_close(module.weight, expected.weight, rtol=0, atol=0)

    @pytest.mark.parametrize("options", [{"max_nonfinite": 2}, {"nonfinite": "raise"}])
    def test_an_error_waits_for_the_next_logging_step(self, options):
        bad = torch.full((4,), math.nan)
        module = GradientIsBatch(make_optimizer=OPTIMIZERS["fused adamw"])
        with pytest.raises(NonFiniteGradientError, match="parameter 'weight' was not finite"):
            fit_module(module, [bad, bad, *[torch.ones(4)] * 9], OnTheDevice(**options), log_every_n_steps=4)
        assert module.trainer.global_step == 4

    def test_clipping_is_the_same(self):
        batches = regression_batches(12)
        module, expected = Regression(OPTIMIZERS["fused adamw"]), Regression(OPTIMIZERS["fused adamw"])
        fit_module(module, batches, OnTheDevice())
        fit_module(expected, batches, AdaptiveGradientClipping())
        assert_same_parameters(module, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("clipping", [AdaptiveGradientClipping, OnTheDevice])
def test_nothing_is_read_from_the_device_between_logging_steps(clipping):
    """Trap 12: what is read, and how much is logged, is bounded."""
    reads = []

    class CountReads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                reads.append(module.trainer.global_step)
            return function(*args, **(kwargs or {}))

    class Counted(GradientIsBatch):
        def on_before_optimizer_step(self, optimizer):
            mode.__exit__(None, None, None)

    class Start(clipping):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            mode.__enter__()
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    mode, module, logger = CountReads(), Counted(make_optimizer=OPTIMIZERS["fused adamw"]), Remember()
    fit_module(module, norms_as_batches([1.0] * 10 + [1e6] + [1.0] * 9), Start(), log_every_n_steps=5, logger=logger)
    assert reads == []
    assert sorted(logger.column("grad_clip/coefficient")) == [4, 9, 14, 19]
    assert logger.column("grad_clip/clipped_fraction") == {4: 0.0, 9: 0.0, 14: 0.2, 19: 0.0}


class TestRefusals:
    def test_of_a_trainer_that_clips_by_itself_says_what_to_do(self):
        with pytest.raises(MisconfigurationException, match=r"gradient_clip_val=0.5.*Remove.*clip.*Fixed\(0\.5\)"):
            fit_module(GradientIsBatch(), [torch.ones(4)], AdaptiveGradientClipping(), gradient_clip_val=0.5)

    def test_of_lbfgs(self):
        """Trap 10."""
        module = GradientIsBatch(make_optimizer=lambda p: torch.optim.LBFGS(p))
        with pytest.raises(MisconfigurationException, match="cannot be used with LBFGS"):
            fit_module(module, [torch.ones(4)], AdaptiveGradientClipping())

    @pytest.mark.parametrize(("strategy", "name"), [(DeepSpeedStrategy, "DeepSpeed"), (FSDPStrategy, "FSDPStrategy")])
    def test_of_strategies_that_hide_their_gradients(self, strategy, name, monkeypatch):
        """Traps 10 and 5."""
        clipping = AdaptiveGradientClipping()
        trainer = make_trainer(clipping)
        monkeypatch.setattr(Trainer, "strategy", property(lambda self: object.__new__(strategy)))
        with pytest.raises(MisconfigurationException, match=f"cannot be used with {name}"):
            clipping.setup(trainer, GradientIsBatch(), "fit")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"policy": "percentile"}, "policy is 'percentile'; it must be 'auto' or a ClippingPolicy"),
            ({"policy": 5.0}, "policy is 5.0; it must be"),
            ({"nonfinite": "ignore"}, "nonfinite is 'ignore'; choose one of 'skip', 'zero', 'raise'"),
            ({"max_nonfinite": 0}, "max_nonfinite is 0; it must be at least 1"),
            ({"max_nonfinite": "25"}, "max_nonfinite is '25'; it must be at least 1, a whole number"),
            ({"include": 5}, "AdaptiveGradientClipping: include is 5; it must be a name, or a list of names"),
            ({"exclude": ["head", ""]}, r"exclude is \['head', ''\]; it must be a name, or a list of names"),
        ],
    )
    def test_of_settings_name_value_and_choices(self, options, message):
        with pytest.raises(ValueError, match=message):
            AdaptiveGradientClipping(**options)

    def test_of_the_history_of_other_optimizers(self):
        of_two, of_one = AdaptiveGradientClipping(), AdaptiveGradientClipping()
        fit_module(Gan(), list(torch.randn(2, 2, 5, 3)), of_two)
        trainer = fit_module(GradientIsBatch(), [torch.ones(4)], of_one)
        of_one.on_train_start(trainer, trainer.lightning_module)
        of_one.load_state_dict(of_two.state_dict())
        with pytest.raises(MisconfigurationException, match="history of an optimizer 1, but there are only 1 here"):
            of_one.on_train_start(trainer, trainer.lightning_module)


def test_an_instance_used_for_a_second_training_begins_afresh():
    batches, used = regression_batches(10), AdaptiveGradientClipping(Auto(deviations=0.5))
    fit_module(GradientIsBatch(), norms_as_batches([1e-3] * 70), used)
    module, expected = Regression(OPTIMIZERS["sgd"]), Regression(OPTIMIZERS["sgd"])
    fit_module(module, batches, used)
    fit_module(expected, batches, AdaptiveGradientClipping(Auto(deviations=0.5)))
    assert_same_parameters(module, expected, rtol=0, atol=0)
