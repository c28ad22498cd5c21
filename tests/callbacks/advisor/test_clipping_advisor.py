import math

import numpy as np
import pytest
import torch
from lightnings import Callback, LightningModule, MisconfigurationException
from small_trainings import GradientIsBatch, Remember, fit_module, norms_as_batches
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import AdaptiveGradientClipping, ClippingAdvice, ClippingAdvisor, Fixed


def lognormal(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).mul(0.3).exp().mul(2).tolist()


@pytest.fixture(autouse=True)
def _files_are_thrown_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def with_spikes(norms, at=(20, 33), size=1000.0):
    return [norm * size if k in at else norm for k, norm in enumerate(norms)]


def test_advice_is_the_average_norm_without_spikes_and_the_percentiles_with_them():
    usual = lognormal(60)
    norms = with_spikes(usual)
    norms[40] = math.inf
    advisor, logger = ClippingAdvisor(steps=60), Remember()
    assert advisor.recommendation is None
    fit_module(GradientIsBatch(), norms_as_batches(norms), advisor, logger=logger)

    advice = advisor.recommendation
    kept = np.array([norm for k, norm in enumerate(usual) if k not in (20, 33, 40)])
    finite = np.array([norm for norm in norms if math.isfinite(norm)])
    assert (advice.spikes, advice.nonfinite) == ([20, 33], [40])
    assert_close(advice.average, kept.mean(), rtol=1e-6, atol=0)
    assert advice.threshold == float(f"{kept.mean():.2g}")
    assert_close(list(advice.percentiles.values()), np.percentile(finite, [50, 90, 95, 99]).tolist(), rtol=1e-6, atol=0)
    for name, value in advice.candidates():
        assert advice.clipped_by(value) == sum(norm > value for norm in finite), name
    [row] = [row for _, row in logger.rows if row]
    expected = {f"clipping_advice/percentile_{k}": value for k, value in advice.percentiles.items()}
    expected |= {"clipping_advice/threshold": advice.threshold, "clipping_advice/spikes": 2.0}
    assert_close(row, expected | {"clipping_advice/nonfinite_steps": 1.0}, rtol=1e-6, atol=0)


def test_the_table_says_what_each_candidate_would_have_clipped_and_how_to_use_it(capsys, tmp_path):
    advisor = ClippingAdvisor(steps=40)
    fit_module(GradientIsBatch(), norms_as_batches([1.0, 1.2, 0.8, 1.0] * 10), advisor)
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "ClippingAdvisor: gradient norms of 40 steps"
    assert [line.split() for line in lines if "recommended" in line] == [
        ["average", "norm,", "recommended", "1", "10", "of", "40", "(25.0%)"]
    ]
    assert "  spikes: none" in lines
    assert "  To use it: AdaptiveGradientClipping(Fixed(1))" in lines
    assert max(map(len, lines)) <= 80
    assert (tmp_path / "plots" / "clipping_advice.png").stat().st_size > 10_000


def test_the_training_it_watches_is_the_training_without_it():
    def make(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    watched, alone = GradientIsBatch(make_optimizer=make), GradientIsBatch(make_optimizer=make)
    batches = norms_as_batches(with_spikes(lognormal(40)))
    fit_module(watched, batches, ClippingAdvisor(steps=20))
    fit_module(alone, batches)
    assert_close(watched.weight, alone.weight, rtol=0, atol=0)


@pytest.mark.parametrize("stop", [True, False])
def test_it_reports_after_its_steps_and_can_end_the_training_there(stop, capsys):
    advisor = ClippingAdvisor(steps=10, stop=stop)
    trainer = fit_module(GradientIsBatch(), norms_as_batches(lognormal(25)), advisor)
    assert trainer.global_step == (10 if stop else 25)
    assert_close(advisor.recommendation.norms, np.array(lognormal(25)[:10]), rtol=1e-6, atol=0)
    assert capsys.readouterr().out.count("ClippingAdvisor:") == 1


def test_if_the_fit_ends_early_it_reports_on_what_it_saw(capsys):
    advisor = ClippingAdvisor(steps=100)
    fit_module(GradientIsBatch(), norms_as_batches(lognormal(7)), advisor)
    assert_close(advisor.recommendation.norms, np.array(lognormal(7)), rtol=1e-6, atol=0)
    assert "gradient norms of 7 steps" in capsys.readouterr().out


def test_if_the_user_breaks_off_it_reports_too(capsys):
    class Interrupted(GradientIsBatch):
        def training_step(self, batch, batch_idx):
            if batch_idx == 5:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    advisor = ClippingAdvisor(steps=100)
    with pytest.raises(SystemExit):
        fit_module(Interrupted(), norms_as_batches(lognormal(7)), advisor)
    assert len(advisor.recommendation.norms) == 5
    assert "gradient norms of 5 steps" in capsys.readouterr().out


class Broken(GradientIsBatch):
    def training_step(self, batch, batch_idx):
        if batch_idx == 5:
            raise ArithmeticError("the loss is no number")
        return super().training_step(batch, batch_idx)


def test_if_an_error_ends_the_training_it_reports_and_the_error_comes_through(capsys):
    advisor = ClippingAdvisor(steps=100)
    with pytest.raises(ArithmeticError, match="the loss is no number"):
        fit_module(Broken(), norms_as_batches(lognormal(7)), advisor)
    assert len(advisor.recommendation.norms) == 5
    assert "gradient norms of 5 steps" in capsys.readouterr().out


def test_a_report_that_fails_does_not_hide_the_error_that_ended_the_training(monkeypatch):
    def fail(*_):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("rnn_blocks.callbacks.advisor.callback.read_together", fail)
    with (
        pytest.warns(UserWarning, match="could not report.*: the device is gone"),
        pytest.raises(ArithmeticError, match="the loss is no number"),
    ):
        fit_module(Broken(), norms_as_batches(lognormal(7)), ClippingAdvisor(steps=100))


class HalveGradients(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            parameter.grad.mul_(0.5)


@pytest.mark.parametrize("advisor_first", [True, False])
def test_a_clipper_of_another_library_is_seen_by_neither_order_of_callbacks(advisor_first):
    callbacks = [HalveGradients(), advisor := ClippingAdvisor(steps=5)]
    fit_module(GradientIsBatch(), norms_as_batches([1.0, 2.0, 3.0]), *callbacks[:: -1 if advisor_first else 1])
    assert_close(advisor.recommendation.norms, np.array([1.0, 2.0, 3.0]), rtol=1e-6, atol=0)


class TwoOptimizers(LightningModule):
    """The second optimizer makes half as many steps as the first, or one in `every` batches."""

    def __init__(self, every=1):
        super().__init__()
        self.automatic_optimization = False
        self.every = every
        self.parts = nn.ParameterList([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))])

    def training_step(self, batch, batch_idx):
        for k, optimizer in enumerate(self.optimizers()):
            for _ in range(2 - k if k == 0 or batch_idx % self.every == 0 else 0):
                optimizer.zero_grad()
                loss = (self.parts[k] * batch * 10**k).sum()
                if loss.requires_grad:
                    self.manual_backward(loss)
                optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([part], lr=0.1) for part in self.parts]


def test_each_optimizer_gets_its_own_advice_after_its_own_steps(capsys):
    advisor, logger = ClippingAdvisor(steps=6, stop=True), Remember()
    batches = [torch.tensor([float(k)]) for k in range(1, 11)]
    trainer = fit_module(TwoOptimizers(), batches, advisor, logger=logger)
    assert trainer.fit_loop.epoch_loop.batch_idx == 5  # until the slower one has made six steps
    assert advisor.recommendations[0].norms.tolist() == [1, 1, 2, 2, 3, 3]
    assert advisor.recommendations[1].norms.tolist() == [10, 20, 30, 40, 50, 60]
    assert advisor.recommendation is advisor.recommendations[0]
    assert set(logger.column("clipping_advice/threshold/optimizer_1").values()) == {35.0}
    assert "of optimizer_1" in capsys.readouterr().out


class SecondIsFrozen(TwoOptimizers):
    def __init__(self):
        super().__init__()
        self.parts[1].requires_grad_(False)


def test_an_optimizer_without_gradients_is_waited_for_until_another_has_made_ten_times_the_steps(capsys):
    advisor = ClippingAdvisor(steps=2, stop=True)
    with pytest.warns(UserWarning, match="no advice on optimizer 1: it had no gradient"):
        trainer = fit_module(SecondIsFrozen(), [torch.ones(1)] * 15, advisor)
    assert trainer.fit_loop.epoch_loop.batch_idx == 9  # the first made two steps a batch
    assert list(advisor.recommendations) == [0]
    assert capsys.readouterr().out.count("gradient norms of 2 steps of optimizer_0") == 1


def test_an_optimizer_that_lags_behind_gets_advice_on_what_it_made(capsys):
    advisor = ClippingAdvisor(steps=2, stop=True)
    trainer = fit_module(TwoOptimizers(every=10), [torch.ones(1)] * 15, advisor)
    assert trainer.fit_loop.epoch_loop.batch_idx == 9
    assert "gradient norms of 1 steps of optimizer_1" in capsys.readouterr().out


def test_how_long_it_has_waited_is_in_the_checkpoint(tmp_path):
    path, advisor = tmp_path / "waiting.ckpt", ClippingAdvisor(steps=2, stop=True)
    batches = [torch.ones(1)] * 15
    with pytest.warns(UserWarning, match="no advice on optimizer 1"):
        first = fit_module(SecondIsFrozen(), batches[:6], ClippingAdvisor(steps=2, stop=True))
    first.save_checkpoint(path)
    with pytest.warns(UserWarning, match="no advice on optimizer 1"):
        trainer = fit_module(SecondIsFrozen(), batches, advisor, max_epochs=2, ckpt_path=path)
    assert trainer.fit_loop.epoch_loop.batch_idx == 3


def test_a_resumed_training_goes_on_watching(tmp_path):
    """Trap 2: state lost on resume, or not loadable with `weights_only`."""
    batches, path = norms_as_batches(lognormal(30)), tmp_path / "half.ckpt"
    whole, first, resumed = (ClippingAdvisor(steps=25) for _ in range(3))
    fit_module(GradientIsBatch(), batches, whole)
    trainer = fit_module(GradientIsBatch(), batches[:10], first)
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["callbacks"][first.state_key]
    assert len(state["optimizers"]["0"]["norms"]) == 10
    fit_module(GradientIsBatch(), batches[10:], resumed, max_epochs=2, ckpt_path=path)
    assert_close(resumed.recommendation.norms, whole.recommendation.norms, rtol=0, atol=0)
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_advice_that_was_given_is_not_given_again_after_resuming(capsys, tmp_path):
    batches, path = norms_as_batches(lognormal(30)), tmp_path / "done.ckpt"
    fit_module(GradientIsBatch(), batches[:10], ClippingAdvisor(steps=5)).save_checkpoint(path)
    resumed = ClippingAdvisor(steps=5)
    fit_module(GradientIsBatch(), batches[10:], resumed, max_epochs=2, ckpt_path=path)
    assert capsys.readouterr().out.count("ClippingAdvisor:") == 1
    assert len(resumed.recommendation.norms) == 5


def test_instances_of_different_settings_have_different_state_keys():
    advisors = ClippingAdvisor(), ClippingAdvisor(steps=10), ClippingAdvisor(stop=True)
    assert len({advisor.state_key for advisor in advisors}) == 3


def test_a_training_that_is_clipped_is_warned_about():
    clipping = AdaptiveGradientClipping(Fixed(1.0))
    with pytest.warns(UserWarning, match="a training that AdaptiveGradientClipping clips"):
        fit_module(GradientIsBatch(), norms_as_batches([3.0, 4.0]), clipping, advisor := ClippingAdvisor(steps=2))
    assert_close(advisor.recommendation.norms, np.array([3.0, 4.0]), rtol=1e-6, atol=0)
    with pytest.warns(UserWarning, match=r"a training that Trainer\(gradient_clip_val=0.5\) clips"):
        fit_module(GradientIsBatch(), norms_as_batches([3.0]), ClippingAdvisor(steps=2), gradient_clip_val=0.5)


def test_norms_that_fall_while_it_watches_are_told_of():
    falling = ClippingAdvice((np.geomspace(100, 1, 200) * np.array(lognormal(200))).tolist())
    assert falling.spikes == []
    assert "The norms fell to 0.0" in falling.table()
    assert "no constant fits both ends" not in ClippingAdvice(lognormal(200)).table()


@pytest.mark.parametrize("norms", [[], [math.nan], [math.inf] * 6, [0.0] * 20])
def test_without_a_finite_norm_above_zero_there_is_no_recommendation(norms):
    advice = ClippingAdvice(norms)
    assert math.isnan(advice.threshold)
    assert "nothing to recommend" in advice.table()
    assert advice.metrics() == {"spikes": 0.0, "nonfinite_steps": float(len(norms) if 0.0 not in norms else 0)}
    advice.draw()


@pytest.mark.parametrize("norms", [[1.0], [2.0] * 6, [0.0, 1.0] * 10])
def test_few_equal_and_zero_norms_are_drawn_and_told_too(norms):
    advice = ClippingAdvice(norms)
    assert advice.spikes == []
    assert_close(advice.average, sum(norms) / len(norms))
    assert "recommended" in advice.table()
    advice.draw("optimizer_0")


def test_spikes_are_found_among_norms_that_drift_and_next_to_each_other():
    norms = np.geomspace(1, 1000, 300) * np.array(lognormal(300, seed=3))
    norms[[50, 51, 52, 200, 299]] *= 100
    assert ClippingAdvice(norms.tolist()).spikes == [50, 51, 52, 200, 299]


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_steps_without_gradients_are_not_counted():
    """Trap 6: `training_step` returning None still fires the hook."""

    class SometimesNone(GradientIsBatch):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx % 2 else None

    advisor = ClippingAdvisor()
    fit_module(SometimesNone(), norms_as_batches([1.0, 2.0, 3.0, 4.0]), advisor)
    assert_close(advisor.recommendation.norms, np.array([2.0, 4.0]), rtol=1e-6, atol=0)


def test_lbfgs_is_refused_and_so_is_a_number_of_steps_below_one():
    module = GradientIsBatch(make_optimizer=lambda p: torch.optim.LBFGS(p))
    with pytest.raises(MisconfigurationException, match="ClippingAdvisor cannot be used with LBFGS"):
        fit_module(module, [torch.ones(4)], ClippingAdvisor())
    with pytest.raises(ValueError, match=r"steps is 1\.5; it must be at least 1, a whole number"):
        ClippingAdvisor(steps=1.5)
    with pytest.raises(ValueError, match="steps is 0; it must be at least 1"):
        ClippingAdvisor(steps=0)
