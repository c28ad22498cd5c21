"""NT-ASGD against algorithm 1 by hand and against torch's ASGD; checkpoints, resuming, and what is refused."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import lightnings
import pytest
import torch
import two_ranks
from hypothesis import given
from hypothesis import strategies as st
from lightnings import (
    Callback,
    LightningModule,
    MisconfigurationException,
    ModelCheckpoint,
    ModelParallelStrategy,
    Trainer,
)
from packaging.version import Version
from small_trainings import Remember, make_trainer
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from rnn_blocks.callbacks import AdaptiveGradientClipping, GradientNormMonitor, NonMonotonicAveraging
from rnn_blocks.callbacks.averaging import stopped_improving

STEPS_A_VALIDATION, EPOCHS = 4, 6


class Noisy(LightningModule):
    """A regression by SGD with a rate so high that it jumps about; its output layer is tied to its input layer."""

    def __init__(self, lr: float = 0.3, dtype: torch.dtype = torch.float64, momentum: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.tied = nn.Linear(3, 3, dtype=dtype), nn.Linear(3, 3, dtype=dtype)
        self.tied.weight = self.inner.weight
        self.norm = nn.BatchNorm1d(3, dtype=dtype)
        self.lr, self.momentum = lr, momentum
        self.validated: list[dict[str, Tensor]] = []

    def loss(self, batch: Tensor) -> Tensor:
        outputs = self.norm(self.tied(self.inner(batch).tanh()))
        return (outputs - batch.flip(-1).sin()).square().sum(-1).mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), batch_size=len(batch))
        self.validated.append(parameters_of(self))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum)


class WeightsAlone(ModelCheckpoint):
    """One that has a state of its own."""


class SaveAt(Callback):
    """Saves a checkpoint after some steps and the validation there, and one when the averages are in the module."""

    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step in self.steps and trainer.global_step % STEPS_A_VALIDATION:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_train_end(self, trainer: Trainer, *_: object) -> None:
        trainer.save_checkpoint(self.folder / "end.ckpt")


class Losses(Callback):
    """What each validation gave."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values.append(float(trainer.callback_metrics["val/loss"]))


class Weights(Callback):
    """The weights with which each step ended."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append(parameters_of(pl_module))


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def batches(count: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> list[Tensor]:
    return list(torch.randn(count, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype))


class Rows:
    """A loader that goes on in mid-epoch where a checkpoint was written."""

    def __init__(self, rows: list[Tensor]) -> None:
        self.rows, self.start, self.place = rows, 0, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Tensor]:
        start, self.start = self.start, 0
        for place in range(start, len(self.rows)):
            self.place = place + 1
            yield self.rows[place]

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place % len(self.rows)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["place"]


def loader(rows: list[Tensor]) -> DataLoader:
    return DataLoader(rows, batch_size=None)


def fit(
    module: LightningModule,
    *callbacks: Callback,
    dtype: torch.dtype = torch.float64,
    ckpt_path: Path | None = None,
    accumulate: int = 1,
    **options: object,
) -> Trainer:
    """Six epochs of eight steps, with a validation every four."""
    settings = {"max_epochs": EPOCHS, "val_check_interval": STEPS_A_VALIDATION * accumulate, "num_sanity_val_steps": 1}
    trainer = make_trainer(*callbacks, accumulate_grad_batches=accumulate, **(settings | options))
    rows = batches(2 * STEPS_A_VALIDATION * accumulate, dtype)
    trainer.fit(module, Rows(rows), loader(batches(1, dtype, seed=2)), ckpt_path=ckpt_path)
    return trainer


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


def callbacks() -> tuple[Callback, NonMonotonicAveraging]:
    return AdaptiveGradientClipping(), NonMonotonicAveraging(n=0)


@pytest.mark.skipif(
    lightnings.chosen.release < Version("2.5"), reason="Lightning 2.4 resumes a batch early from within an epoch"
)
def test_a_training_resumed_from_any_step_is_the_undisturbed_one_bit_for_bit(tmp_path):
    steps = (3, 8, 12, 21, 24, 33)
    saving = SaveAt(tmp_path, steps)
    whole, (clipping, undisturbed) = Noisy(), callbacks()
    fit(whole, clipping, undisturbed, saving)
    assert 8 < undisturbed.started_at_step < max(steps)
    for step in steps:
        resumed, (clipping, averaging) = Noisy(), callbacks()
        fit(resumed, clipping, averaging, ckpt_path=tmp_path / f"{step}.ckpt")
        assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
        state, expected = averaging.state_dict(), undisturbed.state_dict()
        assert_close(state.pop("averages"), expected.pop("averages"), rtol=0, atol=0)
        assert state == expected


def test_a_training_that_goes_on_after_its_end_is_the_longer_one_bit_for_bit(tmp_path):
    clipping, averaging = callbacks()
    fit(Noisy(), clipping, averaging, SaveAt(tmp_path, ()))
    longer, (clipping, averaging) = Noisy(), callbacks()
    fit(longer, clipping, averaging, max_epochs=EPOCHS + 2)
    resumed, (clipping, averaging) = Noisy(), callbacks()
    fit(resumed, clipping, averaging, max_epochs=EPOCHS + 2, ckpt_path=tmp_path / "end.ckpt")
    assert_close(resumed.state_dict(), longer.state_dict(), rtol=0, atol=0)


def test_checkpoints_of_every_kind_hold_the_weights_that_were_validated(tmp_path):
    kinds = {
        "best": ModelCheckpoint(tmp_path, "best", monitor="val/loss"),
        "weights": WeightsAlone(tmp_path, "weights", monitor="val/loss", save_weights_only=True),
        "last": ModelCheckpoint(tmp_path, "last", every_n_train_steps=1),
    }
    module, averaging, losses = Noisy(), NonMonotonicAveraging(n=0), Losses()
    trainer = fit(module, averaging, losses, *kinds.values(), enable_checkpointing=True)
    best = min(range(1, len(losses.values)), key=lambda index: losses.values[index])
    assert STEPS_A_VALIDATION * best > averaging.started_at_step
    for name in ("best", "weights"):
        checkpoint = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert checkpoint["global_step"] == STEPS_A_VALIDATION * best
        held = {key: checkpoint["state_dict"][key] for key in module.validated[best]}
        assert_close(held, module.validated[best], rtol=0, atol=0)
        assert torch.equal(checkpoint["state_dict"]["tied.weight"], checkpoint["state_dict"]["inner.weight"])
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert_close(last["state_dict"], dict(module.state_dict()), rtol=0, atol=0)
    state = last["callbacks"][averaging.state_key]
    assert not torch.equal(state["last_weights"]["inner.weight"], module.inner.weight)
    assert state["averages"]["inner.weight"].data_ptr() == last["state_dict"]["inner.weight"].data_ptr()

    [after] = trainer.test(module, loader(batches(1, seed=2)), verbose=False)
    [loaded] = make_trainer(NonMonotonicAveraging(n=0), losses, *kinds.values(), enable_checkpointing=True).test(
        Noisy(), loader(batches(1, seed=2)), ckpt_path=tmp_path / "last.ckpt", verbose=False
    )
    assert after["test/loss"] == loaded["test/loss"] == losses.values[-1]


def test_a_second_fit_of_the_same_trainer_goes_on_from_the_last_weights():
    # a second fit makes a new optimizer
    whole, module, averaging = Noisy(momentum=0.0), Noisy(momentum=0.0), NonMonotonicAveraging(n=0)
    fit(whole, NonMonotonicAveraging(n=0))
    trainer = fit(module, averaging, max_epochs=EPOCHS - 1)
    assert averaging.started_at_step is not None
    trainer.fit_loop.max_epochs = EPOCHS
    trainer.fit(module, loader(batches(8)), loader(batches(1, seed=2)))
    assert_close(module.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("sanity", [0, 1])
def test_weights_that_somebody_puts_into_the_module_between_two_fits_are_gone_on_from_and_averaged_alone(sanity):
    module, averaging, seen = Noisy(momentum=0.0), NonMonotonicAveraging(n=0), Weights()
    trainer = fit(module, averaging, max_epochs=EPOCHS - 1)
    assert averaging.started_at_step is not None
    module.load_state_dict(Noisy().state_dict())
    start = trainer.global_step
    seen.steps = [{}] * start
    alone = Noisy(momentum=0.0)
    trainer.fit_loop.max_epochs, trainer.num_sanity_val_steps = EPOCHS, sanity
    trainer.callbacks.append(seen)
    with pytest.warns(UserWarning, match="no longer holds the averages that the last fit has left in it"):
        trainer.fit(module, loader(batches(8)), loader(batches(1, seed=2)))
    fit(alone, max_epochs=1)
    averages = averaging.state_dict()["averages"]
    assert_close(parameters_of(module), averages, rtol=0, atol=0)
    averaging.use_last(module)
    assert_close(parameters_of(module), parameters_of(alone), rtol=0, atol=0)
    since = [*seen.steps[start:], parameters_of(module)]
    expected = {name: torch.stack([own[name] for own in since]).mean(0) for name in averages}
    assert_close(averages, expected, rtol=1e-12, atol=1e-12)


def test_a_parameter_that_is_added_later_is_averaged_from_there_on_and_saved(tmp_path):
    class Grows(Noisy):
        def on_train_epoch_start(self):
            if self.current_epoch == EPOCHS - 2:
                self.extra = nn.Linear(2, 2)

    saving, module, averaging = SaveAt(tmp_path, (8 * (EPOCHS - 2) + 1,)), Grows(), NonMonotonicAveraging(n=0)
    fit(module, saving, averaging)
    assert averaging.started_at_step < 8 * (EPOCHS - 2)
    assert torch.equal(averaging.state_dict()["averages"]["extra.weight"], module.extra.weight)
    for name in ("33.ckpt", "end.ckpt"):
        saved = torch.load(tmp_path / name, weights_only=True)["state_dict"]
        assert torch.equal(saved["extra.weight"], module.extra.weight)


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
def test_averages_of_two_ranks_are_the_same_and_begin_at_once(tmp_path):
    two_ranks.run_two_ranks(
        """
import torch
from test_non_monotonic_averaging import Noisy, batches, loader, parameters_of
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
""",
        Path(__file__).parent,
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
