from functools import partial

import numpy
import pytest
import torch
from jsonargparse import ArgumentParser
from lightnings import Callback, MisconfigurationException, Trainer
from small_trainings import Regression, fit_module, make_trainer, regression_batches
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import (
    AdaptiveGradientClipping,
    Auto,
    Clip,
    ClippingPolicy,
    EmaRatio,
    Fixed,
    GradientNormMonitor,
    LogNormal,
    Percentile,
    SkipOutliers,
    Unitwise,
    ZScore,
)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9)


assert_equal = partial(assert_close, rtol=0, atol=0, equal_nan=True)  # NaN: no loss has been seen


@pytest.mark.parametrize("make_optimizer", [adam, momentum])
def test_a_resumed_training_ends_in_the_same_parameters_bit_for_bit(make_optimizer, tmp_path):
    """Trap 2: state lost on resume, or not loadable with `weights_only`."""
    batches = regression_batches(20)
    for index in (7, 15):
        batches[index] = (batches[index][0], batches[index][1] + 50)
    whole = Regression(make_optimizer)
    undisturbed = AdaptiveGradientClipping(Auto(deviations=0.5))
    fit_module(whole, batches, undisturbed, max_steps=20, log_every_n_steps=7)

    first = fit_module(
        Regression(make_optimizer), batches[:10], AdaptiveGradientClipping(Auto(deviations=0.5)), log_every_n_steps=7
    )
    path = tmp_path / "half.ckpt"
    first.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["callbacks"][undisturbed.state_key]["optimizers"]["0"]
    assert state["history"]["count"] == 10
    assert state["counts"]["clipped"] >= 1
    assert (state["by_reason"][1] >= 5) == (state["history"]["share"] > 0.2) == (make_optimizer is momentum)

    resumed, clipping = Regression(make_optimizer), AdaptiveGradientClipping(Auto(deviations=0.5))
    fit_module(resumed, batches[10:], clipping, max_epochs=2, ckpt_path=path, log_every_n_steps=7)
    assert_close(dict(resumed.named_parameters()), dict(whole.named_parameters()), rtol=0, atol=0)
    assert_equal(clipping.state_dict()["optimizers"], undisturbed.state_dict()["optimizers"])

    forgetful = Regression(make_optimizer)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        fit_module(forgetful, batches[10:], AdaptiveGradientClipping(), max_epochs=2, ckpt_path=path)
    assert not torch.equal(forgetful.net[0].weight, whole.net[0].weight)


@pytest.mark.parametrize(
    ("policy", "scope"),
    [
        (Auto(deviations=0.5), "parameter"),
        (Percentile(percent=50.0), "group"),
        (ZScore(warmup=4, deviations=0.5), "parameter"),
        (EmaRatio(warmup=4), None),
        (Unitwise(), None),
        (LogNormal(warmup=4, deviations=0.5), "group"),
        (SkipOutliers(window=4, deviations=1.0), "parameter"),
    ],
)
def test_a_training_resumed_in_another_scope_than_the_global_is_the_same_bit_for_bit(policy, scope, tmp_path):
    batches = regression_batches(20)
    whole, undisturbed = Regression(momentum), AdaptiveGradientClipping(policy, scope=scope)
    fit_module(whole, batches, undisturbed, max_steps=20, log_every_n_steps=7)
    first = fit_module(
        Regression(momentum), batches[:10], AdaptiveGradientClipping(policy, scope=scope), log_every_n_steps=7
    )
    first.save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"][undisturbed.state_key]
    assert state["optimizers"]["0"]["counts"]["clipped"] >= 1

    resumed, clipping = Regression(momentum), AdaptiveGradientClipping(policy, scope=scope)
    fit_module(resumed, batches[10:], clipping, max_epochs=2, ckpt_path=tmp_path / "half.ckpt", log_every_n_steps=7)
    assert_close(dict(resumed.named_parameters()), dict(whole.named_parameters()), rtol=0, atol=0)
    assert_equal(clipping.state_dict()["optimizers"], undisturbed.state_dict()["optimizers"])


def test_of_a_history_of_another_policy_scope_or_model_both_are_named():
    clipping = AdaptiveGradientClipping(Fixed(1.0), scope="parameter")
    trainer = fit_module(Regression(adam), regression_batches(3), clipping)
    state = clipping.state_dict()
    with pytest.raises(ValueError, match=r"of the policy Fixed\(threshold=1\.0\), and this instance has Fixed\(thresh"):
        AdaptiveGradientClipping(Fixed(2.0)).load_state_dict(state)
    with pytest.raises(ValueError, match="of the scope parameter, and this instance has unit"):
        AdaptiveGradientClipping(Fixed(1.0), scope="unit").load_state_dict(state)

    clipping = AdaptiveGradientClipping()
    fit_module(Regression(adam), regression_batches(3), clipping)
    other = AdaptiveGradientClipping()
    trainer = fit_module(Regression(adam, nn.Linear(3, 1)), regression_batches(3), other)
    other.load_state_dict(clipping.state_dict())
    with pytest.warns(UserWarning, match=r"4 parameters of 41 elements, but here they have 2 .* of 4 el"):
        other.on_train_start(trainer, trainer.lightning_module)

    smaller = AdaptiveGradientClipping(Fixed(1.0), scope="parameter")
    trainer = fit_module(Regression(adam, nn.Linear(3, 1)), regression_batches(3), smaller)
    smaller.load_state_dict(state)
    with pytest.warns(UserWarning, match=r"groups have \[4\] units, but here they have \[2\]"):
        smaller.on_train_start(trainer, trainer.lightning_module)


def test_a_history_of_another_number_of_ranks_is_continued_with_a_warning(tmp_path):
    first = fit_module(Regression(adam), regression_batches(3), AdaptiveGradientClipping())
    first.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    [state] = [state for key, state in checkpoint["callbacks"].items() if "AdaptiveGradientClipping" in key]
    assert state["num_ranks"] == 1
    state["num_ranks"] = 8
    torch.save(checkpoint, tmp_path / "eight.ckpt")
    clipping = AdaptiveGradientClipping()
    with pytest.warns(UserWarning, match="norms are of a training on 8 ranks, and there are 1 now"):
        fit_module(Regression(adam), regression_batches(3), clipping, max_epochs=2, ckpt_path=tmp_path / "eight.ckpt")
    assert clipping.state_dict()["optimizers"]["0"]["history"]["count"] == 6
    assert clipping.state_dict()["num_ranks"] == 1


def test_a_state_dict_is_a_copy_that_later_steps_leave_alone():
    clipping = AdaptiveGradientClipping()
    fit_module(Regression(adam), regression_batches(3), clipping)
    state = clipping.state_dict()
    clipping._clippers[0]._record.history["log_norms"][:] = [0.0] * 64
    assert state["optimizers"]["0"]["history"]["log_norms"][0] != 0


def test_instances_of_different_settings_have_different_state_keys_and_equal_ones_the_same():
    """Trap 2: two instances need distinct keys."""
    instances = [
        AdaptiveGradientClipping(),
        AdaptiveGradientClipping(Fixed(1.0)),
        AdaptiveGradientClipping(Fixed(2.0)),
        AdaptiveGradientClipping(nonfinite="zero"),
        AdaptiveGradientClipping(scope="parameter"),
        AdaptiveGradientClipping(name="again"),
        AdaptiveGradientClipping(Auto(longest_update=0.01)),
    ]
    assert len({instance.state_key for instance in instances}) == len(instances)
    assert AdaptiveGradientClipping("auto").state_key == AdaptiveGradientClipping(Auto()).state_key
    make_trainer(*instances)


class TimesTheLast(ClippingPolicy):
    """A policy that is no dataclass."""

    def __init__(self, factor):
        self.factor = factor

    def initial_history(self, norm):
        return {"last": torch.full_like(norm, torch.inf)}

    def clip(self, history, step):
        return Clip(self.factor * history["last"], self.factor * history["last"])

    def observe(self, history, step):
        return {"last": step.norm}


@pytest.mark.parametrize(
    ("one", "equal", "other"),
    [
        (Fixed(5), Fixed(5.0), Fixed(6)),
        (Fixed(numpy.float32(5)), Fixed(5), Fixed(6)),
        (Auto(deviations=3, longest_update=1), Auto(deviations=3.0, longest_update=1.0), Auto(deviations=3)),
        (ZScore(3, max_norm=4), ZScore(3.0, max_norm=4.0), ZScore(3)),
        (TimesTheLast(0.5), TimesTheLast(0.5), TimesTheLast(0.6)),
    ],
)
def test_a_checkpoint_is_of_the_settings_however_they_were_written(one, equal, other, tmp_path):
    first = AdaptiveGradientClipping(one)
    trainer = fit_module(Regression(momentum), regression_batches(4), first)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = AdaptiveGradientClipping(equal)
    assert again.state_key == first.state_key != AdaptiveGradientClipping(other).state_key
    fit_module(Regression(momentum), regression_batches(4), again, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert again.state_dict()["optimizers"]["0"]["steps"] == 8


def test_a_command_line_builds_the_callbacks_from_yaml():
    parser = ArgumentParser()
    parser.add_argument("--callbacks", type=list[Callback])
    config = parser.parse_string("""
        callbacks:
          - class_path: rnn_blocks.callbacks.AdaptiveGradientClipping
            init_args:
              policy: {class_path: rnn_blocks.callbacks.Fixed, init_args: {threshold: 5.0}}
              nonfinite: zero
          - class_path: rnn_blocks.callbacks.AdaptiveGradientClipping
            init_args: {scope: parameter, name: second}
          - class_path: rnn_blocks.callbacks.GradientNormMonitor
            init_args: {top_k: 5}
    """)
    fixed, auto, monitor = parser.instantiate(config).callbacks
    assert isinstance(fixed, AdaptiveGradientClipping)
    assert fixed.policy == Fixed(5.0)
    assert fixed.nonfinite == "zero"
    assert auto.policy == Auto()
    assert (fixed.scope, auto.scope, auto.name) == ("global", "parameter", "second")
    assert isinstance(monitor, GradientNormMonitor)
    assert monitor.top_k == 5
    Trainer(callbacks=[fixed, auto, monitor], logger=False, enable_checkpointing=False, accelerator="cpu")


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("had", ["no callback of ours", "the monitor alone", "another policy"])
def test_a_checkpoint_without_this_clippings_history_resumes_with_one_line_that_says_so(had, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("rnn_blocks.callbacks.clipping.callback.rank_zero_info", said.append)
    before = {
        "no callback of ours": [],
        "the monitor alone": [GradientNormMonitor()],
        "another policy": [AdaptiveGradientClipping(Fixed(9.0))],
    }[had]
    trainer = fit_module(Regression(momentum), regression_batches(4), *before)
    trainer.save_checkpoint(tmp_path / "before.ckpt")
    clipping = AdaptiveGradientClipping()
    monitors = [callback for callback in before if isinstance(callback, GradientNormMonitor)]
    resumed = fit_module(
        Regression(momentum),
        regression_batches(4),
        clipping,
        *monitors,
        max_epochs=2,
        ckpt_path=tmp_path / "before.ckpt",
    )
    [line] = [line for line in said if "steps clipped" not in line]
    assert "the checkpoint has no history of this clipping, so it begins here, at step 4" in line
    assert resumed.global_step == 8
    assert clipping.state_dict()["optimizers"]["0"]["history"]["count"] == 4
    said.clear()
    fit_module(Regression(momentum), regression_batches(4), AdaptiveGradientClipping())  # a new training is no news
    assert [line for line in said if "steps clipped" not in line] == []


def test_a_package_that_clips_for_its_users_is_told_how_to_leave_it():
    """As GluonTS does, by 10."""
    with pytest.raises(
        MisconfigurationException, match="pass `gradient_clip_val=None` where a package sets it for you"
    ):
        fit_module(Regression(momentum), regression_batches(1), AdaptiveGradientClipping(), gradient_clip_val=10.0)


@pytest.mark.parametrize("resumes", [True, False], ids=["from a checkpoint", "in the same trainer"])
def test_a_model_of_other_parameters_is_trained_on_with_a_new_history_and_a_warning(resumes, tmp_path):
    class Other(Regression):
        """As a project that drops its optimizer's state with the layers that it replaces."""

        def on_load_checkpoint(self, checkpoint):
            checkpoint["optimizer_states"], checkpoint["state_dict"] = [], self.state_dict()

    first, other = AdaptiveGradientClipping(), Other(adam, nn.Linear(3, 1))
    trainer = fit_module(Regression(adam), regression_batches(8), first)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    clipping, ckpt_path = first, None
    if resumes:
        clipping, ckpt_path = AdaptiveGradientClipping(), tmp_path / "first.ckpt"
        trainer = make_trainer(clipping)
    trainer.fit_loop.max_epochs = 2
    loader = torch.utils.data.DataLoader(regression_batches(8), batch_size=None)
    with pytest.warns(UserWarning, match="has the history of an optimizer whose parameter groups have .* begins anew"):
        trainer.fit(other, loader, ckpt_path=ckpt_path)
    state = clipping.state_dict()["optimizers"]["0"]
    assert state["history"]["count"] == 8
    assert state["counts"]["clipped"] < 8
