"""NT-ASGD in checkpoints: resumed to the bit, gone on with after its end, and what each kind of checkpoint holds."""

import lightnings
import pytest
import torch
from lightnings import (
    Callback,
    ModelCheckpoint,
)
from noisy import (
    EPOCHS,
    STEPS_A_VALIDATION,
    Losses,
    Noisy,
    SaveAt,
    Weights,
    WeightsAlone,
    batches,
    fit,
    loader,
    parameters_of,
)
from packaging.version import Version
from small_trainings import make_trainer
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, NonMonotonicAveraging


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
                self.trainer.optimizers[0].add_param_group({"params": list(self.extra.parameters())})

    saving, module, averaging = SaveAt(tmp_path, (8 * (EPOCHS - 2) + 1,)), Grows(), NonMonotonicAveraging(n=0)
    fit(module, saving, averaging)
    assert averaging.started_at_step < 8 * (EPOCHS - 2)
    assert torch.equal(averaging.state_dict()["averages"]["extra.weight"], module.extra.weight)
    for name in ("33.ckpt", "end.ckpt"):
        saved = torch.load(tmp_path / name, weights_only=True)["state_dict"]
        assert torch.equal(saved["extra.weight"], module.extra.weight)


def test_a_copy_that_nobody_trains_is_what_it_was_last_made(tmp_path):
    class WithATarget(Noisy):
        """A target network, or a baseline: the trained one as it was some steps ago."""

        def __init__(self):
            super().__init__()
            self.target, self.copied = nn.Linear(3, 3, dtype=torch.float64), None

        def configure_optimizers(self):
            return torch.optim.SGD([*self.inner.parameters(), *self.norm.parameters()], lr=self.lr)

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx % 3 == 0:
                self.target.load_state_dict(self.inner.state_dict())
                self.copied = self.target.weight.detach().clone()

    module, averaging = WithATarget(), NonMonotonicAveraging(n=0)
    fit(module, averaging, SaveAt(tmp_path, (16,)))
    assert averaging.started_at_step is not None
    assert set(averaging.state_dict()["averages"]) == {"inner.weight", "inner.bias", "norm.weight", "norm.bias"}
    assert torch.equal(module.target.weight, module.copied)
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["target.weight"], module.copied)


def test_where_an_optimizer_holds_copies_of_the_weights_all_are_averaged():
    class OnCopies(Noisy):
        def configure_optimizers(self):
            self.pairs = [(p, nn.Parameter(p.detach().clone())) for p in self.parameters()]
            return torch.optim.SGD([copy for _, copy in self.pairs], lr=self.lr)

        def on_before_optimizer_step(self, optimizer):
            for parameter, copy in self.pairs:
                copy.grad, parameter.grad = parameter.grad, None

        def on_before_zero_grad(self, optimizer):
            for parameter, copy in self.pairs:
                parameter.data.copy_(copy)

    module, averaging = OnCopies(), NonMonotonicAveraging(n=0)
    fit(module, averaging)
    assert set(averaging.state_dict()["averages"]) == set(parameters_of(module))


def test_a_validation_of_an_earlier_checkpoint_leaves_what_is_known_and_another_metrics_history_alone(tmp_path):
    module, averaging, other = Noisy(), NonMonotonicAveraging(n=0), NonMonotonicAveraging("val/other")
    fit(module, averaging, SaveAt(tmp_path, (3,)))
    before = averaging.state_dict()
    assert before["averages"]
    for callback in (averaging, other):
        trainer = make_trainer(callback)
        trainer.validate(module, loader(batches(2)), ckpt_path=tmp_path / "3.ckpt", verbose=False)
    after = averaging.state_dict()
    assert_close(after.pop("averages"), before.pop("averages"), rtol=0, atol=0)
    assert after == before
    assert not other.history
