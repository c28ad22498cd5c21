"""NT-ASGD against algorithm 1 by hand and against torch's ASGD, and what is refused."""

from copy import deepcopy

import lightnings
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightnings import (
    Callback,
    LightningModule,
    MisconfigurationException,
    ModelParallelStrategy,
)
from noisy import EPOCHS, STEPS_A_VALIDATION, Losses, Noisy, Rows, Weights, batches, fit, loader, parameters_of
from small_trainings import Remember, make_trainer
from torch import Tensor, nn
from torch.testing import assert_close
from two_ranks import run_two_ranks

from rnn_blocks.callbacks import GradientNormMonitor, NonMonotonicAveraging
from rnn_blocks.callbacks.averaging import stopped_improving


def by_hand(n: int, accumulate: int = 1) -> tuple[list[float], int | None, dict[str, Tensor], dict[str, Tensor]]:
    """Algorithm 1, over a list of all weights: validations, T, the mean from T on, and the last weights."""
    module = Noisy()
    optimizer = module.configure_optimizers()
    rows, validation = batches(2 * STEPS_A_VALIDATION * accumulate), batches(1, seed=2)[0]
    weights: list[dict[str, Tensor]] = []
    values: list[float] = []
    started = None

    def mean() -> dict[str, Tensor]:
        since = weights if started is None else weights[started - 1 :]
        return {name: torch.stack([own[name] for own in since]).mean(0) for name in since[0]}

    for batch in [row for _ in range(EPOCHS) for row in zip(*[iter(rows)] * accumulate, strict=True)]:
        optimizer.zero_grad()
        module.train()
        for part in batch:
            (module.loss(part) / accumulate).backward()
        optimizer.step()
        weights.append(parameters_of(module))
        if len(weights) % STEPS_A_VALIDATION == 0:
            shown = deepcopy(module).eval()
            if started is not None:
                shown.load_state_dict(mean(), strict=False)
            value = shown.loss(validation).item()
            t = len(values)
            if started is None and t > n and value > min(values[: t - n]):
                started = len(weights)
            values.append(value)
    return values, started, mean(), weights[-1]


@pytest.mark.parametrize(("n", "accumulate"), [(0, 1), (2, 1), (1, 3)])
def test_averages_validations_and_the_step_of_the_start_are_those_of_algorithm_1_by_hand(n, accumulate):
    values, started, mean, last = by_hand(n, accumulate)
    assert started is not None
    assert started < STEPS_A_VALIDATION * len(values) - 8
    module, averaging, losses = Noisy(), NonMonotonicAveraging(n=n), Losses()
    fit(module, averaging, losses, accumulate=accumulate)
    assert averaging.started_at_step == started
    assert_close(losses.values[1:], values, rtol=1e-12, atol=1e-12)  # the first is the sanity check's
    assert_close(averaging.history, values[: len(averaging.history)], rtol=1e-12, atol=1e-12)
    assert_close(averaging.state_dict()["averages"], mean, rtol=1e-12, atol=1e-12)
    assert_close(parameters_of(module), mean, rtol=1e-12, atol=1e-12)
    averaging.use_last(module)
    assert_close(parameters_of(module), last, rtol=1e-12, atol=1e-12)


class OwnAverage(Noisy):
    """Validates an average of its own, as many modules do."""

    def on_fit_start(self):
        self.kept = parameters_of(self)

    def on_train_batch_end(self, *_):
        for name, parameter in parameters_of(self).items():
            self.kept[name].lerp_(parameter, 0.1)

    def on_validation_start(self):
        self.held = parameters_of(self)
        self.load_state_dict(self.kept, strict=False)

    def on_validation_end(self):
        self.load_state_dict(self.held, strict=False)


class OwnAverageBeside(Callback):
    """The same as a callback."""

    on_fit_start = lambda self, trainer, module: OwnAverage.on_fit_start(module)  # noqa: E731
    on_train_batch_end = lambda self, trainer, module, *_: OwnAverage.on_train_batch_end(module)  # noqa: E731
    on_validation_start = lambda self, trainer, module: OwnAverage.on_validation_start(module)  # noqa: E731
    on_validation_end = lambda self, trainer, module: OwnAverage.on_validation_end(module)  # noqa: E731


class ResetsAtTheEnd(Noisy):
    def on_validation_end(self):
        self.inner.bias.data.fill_(0.5)


class ResetsWithin(Noisy):
    def on_validation_epoch_end(self):
        self.inner.bias.data.fill_(0.5)


@pytest.mark.parametrize("of", ["the module", "a callback before", "a callback behind", "a reset at the end"])
def test_training_goes_on_as_without_where_others_change_weights_for_a_validation(of):
    found = []
    for averages in (False, True):
        module = {"the module": OwnAverage, "a reset at the end": ResetsAtTheEnd}.get(of, Noisy)()
        callbacks = [OwnAverageBeside()] if of.startswith("a callback") else []
        averaging, seen = NonMonotonicAveraging(n=0), Weights()
        if averages:
            callbacks.insert(0 if of == "a callback behind" else 1, averaging)
        fit(module, seen, *callbacks, limit_val_batches=1)
        found.append(seen.steps)
        assert (averaging.started_at_step is not None) == averages
    assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_change_of_the_averages_within_a_validation_is_told_once():
    with pytest.warns(UserWarning, match="weights of ResetsWithin were changed during a validation") as told:
        fit(ResetsWithin(), NonMonotonicAveraging(n=0))
    assert sum("ResetsWithin" in str(one.message) for one in told) == 1


def test_the_average_is_torchs_asgd_with_the_two_weights_that_it_leaves_out():
    module, averaging, seen = Noisy(), NonMonotonicAveraging(n=0), Weights()
    fit(module, averaging, seen, limit_val_batches=1)
    averaging.use_last(module)
    steps, started = [*seen.steps, parameters_of(module)], averaging.started_at_step
    parameter = nn.Parameter(steps[started - 1]["inner.weight"].clone())
    optimizer = torch.optim.ASGD([parameter], lr=1.0, t0=0, lambd=0.0)
    for before, after in zip(steps[started - 1 :], steps[started:], strict=False):
        parameter.grad = before["inner.weight"] - after["inner.weight"]
        optimizer.step()
    count = len(steps) - started
    left_out = steps[started - 1]["inner.weight"] + steps[started]["inner.weight"]
    expected = (left_out + (count - 1) * optimizer.state[parameter]["ax"]) / (count + 1)
    assert_close(
        averaging.state_dict()["averages"]["inner.weight"], expected, rtol=1e-6, atol=1e-7
    )  # torch's factors are float32


@given(st.lists(st.floats(-10, 10), max_size=12), st.floats(-10, 10), st.integers(0, 6))
def test_the_condition_is_that_of_the_authors_code(history, value, n):
    # `history[:-0]` would be empty there
    expected = len(history) > n and value > min(history[: len(history) - n])
    assert stopped_improving(history, value, n) == expected
    assert stopped_improving([-own for own in history], -value, n, mode="max") == expected


def test_the_training_itself_is_bit_for_bit_what_it_is_without_averaging():
    plain, module, averaging = Noisy(), Noisy(), NonMonotonicAveraging(n=0)
    fit(plain)
    fit(module, GradientNormMonitor(), averaging)
    assert averaging.started_at_step is not None
    assert not torch.equal(plain.inner.weight, module.inner.weight)
    averaging.use_last(module)
    assert_close(module.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert module.tied.weight is module.inner.weight


def test_a_modules_own_hooks_see_the_averages_at_the_end_of_a_validation_epoch_and_the_last_weights_after_it():
    class Looks(Noisy):
        def on_validation_epoch_end(self):
            self.at_epoch_end = parameters_of(self)

        def on_validation_end(self):
            self.at_end = parameters_of(self)

    module, averaging = Looks(), NonMonotonicAveraging(n=0)
    fit(module, averaging)
    assert_close(module.at_epoch_end, averaging.state_dict()["averages"], rtol=0, atol=0)
    averaging.use_last(module)
    assert_close(module.at_end, parameters_of(module), rtol=0, atol=0)


def test_weights_of_16_bits_are_averaged_in_32():
    module, averaging, seen = Noisy(dtype=torch.bfloat16), NonMonotonicAveraging(n=0), Weights()
    fit(module, averaging, seen, dtype=torch.bfloat16)
    average = averaging.state_dict()["averages"]["inner.weight"]
    assert average.dtype == torch.float32
    assert torch.equal(module.inner.weight, average.bfloat16())
    averaging.use_last(module)
    since = [*seen.steps, parameters_of(module)][averaging.started_at_step - 1 :]
    assert_close(average, torch.stack([own["inner.weight"].float() for own in since]).mean(0))


def test_the_step_of_the_start_is_logged_once():
    logger, averaging = Remember(), NonMonotonicAveraging(n=0)
    fit(Noisy(), averaging, logger=logger)
    step = averaging.started_at_step
    assert logger.column("averaging/started_at_step") == {step - 1: step}


@pytest.mark.filterwarnings("ignore:You .* but have no `val:UserWarning")  # Lightning's own
@pytest.mark.parametrize("missing", ["no loader", "no batches", "no step"])
def test_a_training_without_validation_is_told_that_nothing_will_be_averaged(missing):
    class Unvalidated(Noisy):
        validation_step = LightningModule.validation_step

    module = Unvalidated() if missing == "no step" else Noisy()
    limit = 0 if missing == "no batches" else 1.0
    trainer = make_trainer(NonMonotonicAveraging(), max_epochs=1, limit_val_batches=limit)
    validated = None if missing == "no loader" else loader(batches(1, seed=2))
    with pytest.warns(UserWarning, match="has no validation: nothing will be averaged"):
        trainer.fit(module, Rows(batches(8)), validated)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_validation_that_is_not_finite_does_not_count(value):
    class Spoilt(Noisy):
        def validation_step(self, batch, batch_idx):
            spoilt = self.trainer.global_step == 2 * STEPS_A_VALIDATION
            self.log("val/loss", value if spoilt else 1.0 / (1 + self.trainer.global_step), batch_size=6)

    averaging = NonMonotonicAveraging(n=0)
    fit(Spoilt(), averaging)
    assert averaging.started_at_step is None
    assert len(averaging.history) == 2 * EPOCHS - 1


@pytest.mark.processes
def test_averages_of_two_ranks_are_the_same_and_begin_at_once():
    run_two_ranks(
        """
import torch
from noisy import Noisy, batches, loader, parameters_of
from packaging.version import Version
from small_trainings import Remember, make_trainer
from rnn_blocks.callbacks import NonMonotonicAveraging

torch.set_num_threads(1)
module, averaging = Noisy(), NonMonotonicAveraging(n=0)
trainer = make_trainer(averaging, devices=2, strategy="ddp", max_epochs=4, use_distributed_sampler=False)
rank = trainer.global_rank
# each rank's own, unsynchronised loss
trainer.fit(module, loader(batches(8, seed=1 + rank)), loader(batches(1, seed=5 + rank)))
steps = [None, None]
torch.distributed.all_gather_object(steps, (averaging.started_at_step, averaging.history, parameters_of(module)))
assert steps[0][0] is not None and steps[0][:2] == steps[1][:2], steps
for name, weight in steps[0][2].items():
    torch.testing.assert_close(weight, steps[1][2][name], rtol=0, atol=0)
"""
    )


def test_bad_settings_and_what_averaging_cannot_work_with_are_refused():
    for n in (-1, 1.5, "5"):
        with pytest.raises(ValueError, match=f"n is {n!r}; it must be a whole number, at least 0"):
            NonMonotonicAveraging(n=n)
    with pytest.raises(ValueError, match="mode is 'low'; it must be 'min' or 'max'"):
        NonMonotonicAveraging(mode="low")
    with pytest.raises(
        MisconfigurationException, match=r"monitor='val/los'\): the validation did not log it; it logge"
    ):
        fit(Noisy(), NonMonotonicAveraging("val/los"))
    state = NonMonotonicAveraging("val/loss").state_dict()
    with pytest.raises(ValueError, match="history is of 'val/loss', and this instance monitors 'val/bleu'"):
        NonMonotonicAveraging("val/bleu", mode="max").load_state_dict(state)


@pytest.mark.skipif(not hasattr(lightnings, "WeightAveraging"), reason="this release has no WeightAveraging")
def test_lightnings_own_averaging_beside_it_is_refused():
    with pytest.raises(MisconfigurationException, match="WeightAveraging would both average"):
        fit(Noisy(), NonMonotonicAveraging(), lightnings.WeightAveraging())


def test_a_strategy_that_shards_parameters_is_refused():
    averaging, trainer = NonMonotonicAveraging(), make_trainer()
    trainer.strategy.__class__ = ModelParallelStrategy
    with pytest.raises(MisconfigurationException, match="cannot be used with ModelParallelStrategy, which shards"):
        averaging.setup(trainer, Noisy(), "fit")
