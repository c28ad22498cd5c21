"""Where matplotlib is not installed the callbacks do all but draw, and say so once, at the start."""

import importlib.util
import sys
import warnings

import pytest
import torch
from flow_trainings import LastStep, batches, torch_lstm
from lightnings import TensorBoardLogger, WandbLogger
from small_trainings import GradientIsBatch, Remember, fit_module, norms_as_batches

from rnn_blocks.callbacks import ClippingAdvisor, GradientFlowMonitor, GradientNormMonitor
from rnn_blocks.callbacks.figures import can_draw, new_figure


class NotInstalled:
    """Finds no matplotlib, and notes who looked for it in order to import it."""

    def __init__(self):
        self.imported = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            self.imported.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def no_matplotlib(monkeypatch, tmp_path):
    """As if matplotlib were not installed: neither found nor imported; files go to a folder that is thrown away."""
    find_spec = importlib.util.find_spec
    blocker = NotInstalled()
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "matplotlib" else find_spec(name, *args)
    )
    monkeypatch.setattr(sys, "meta_path", [blocker, *sys.meta_path])
    monkeypatch.chdir(tmp_path)
    yield blocker
    assert blocker.imported == []


def warnings_of(module, batches, callback, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_module(module, batches, callback, **options)
    return [str(warning.message) for warning in caught if type(callback).__name__ in str(warning.message)]


def assert_told_once(told, who):
    [message] = told
    assert message.startswith(f"{who} leaves its figures out")
    assert "pip install 'rnn-blocks[recipes]'" in message
    assert "\n" not in message


def test_the_fixture_hides_it(no_matplotlib):
    assert not can_draw()
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        new_figure("Title", "step", "norm")
    no_matplotlib.imported.clear()


def test_it_is_seen_where_it_is_installed():
    assert can_draw()


@pytest.mark.usefixtures("no_matplotlib")
def test_the_advisor_prints_and_logs_its_advice(capsys, tmp_path):
    advisor, logger = ClippingAdvisor(steps=6), Remember()
    told = warnings_of(GradientIsBatch(), norms_as_batches([1.0, 1.2, 0.8] * 3), advisor, logger=logger)
    assert_told_once(told, "ClippingAdvisor")
    out = capsys.readouterr().out
    assert "ClippingAdvisor: gradient norms of 6 steps" in out
    assert "To use it: AdaptiveGradientClipping(Fixed(1))" in out
    assert list(logger.column("clipping_advice/threshold").values()) == [1.0]
    assert advisor.recommendation.threshold == 1.0
    assert list(tmp_path.rglob("*.png")) == []


@pytest.mark.usefixtures("no_matplotlib")
def test_the_advisor_reports_on_a_training_that_breaks_off(capsys):
    class Broken(GradientIsBatch):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise ArithmeticError("the loss is no number")
            return super().training_step(batch, batch_idx)

    with (
        pytest.warns(UserWarning, match="ClippingAdvisor leaves its figures out"),
        pytest.raises(ArithmeticError, match="the loss is no number"),
    ):
        fit_module(Broken(), norms_as_batches([1.0, 1.2, 0.8, 1.0]), ClippingAdvisor())
    assert "ClippingAdvisor: gradient norms of 3 steps" in capsys.readouterr().out


@pytest.mark.usefixtures("no_matplotlib")
def test_the_flow_monitor_measures_logs_and_warns_as_with_it(tmp_path):
    monitor, logger = GradientFlowMonitor(every_n_steps=1, vanishing=0.5), Remember()
    told = warnings_of(LastStep(torch_lstm()), batches(6), monitor, logger=logger)
    assert_told_once([message for message in told if "vanishing" not in message], "GradientFlowMonitor")
    assert len(told) == 2
    assert monitor.history["net"].steps == [*range(6)]
    assert len(logger.column("gradient_flow/net/decay_rate")) == 6
    assert list(tmp_path.rglob("*.png")) == []


@pytest.mark.usefixtures("no_matplotlib")
def test_the_norm_monitors_histograms_go_to_tensorboard(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    monitor = GradientNormMonitor(histogram_every_n_steps=4)
    module = GradientIsBatch()
    told = warnings_of(module, norms_as_batches([1.0, 2.0, 3.0, 4.0] * 2 + [5.0]), monitor, logger=logger)
    assert_told_once(told, "GradientNormMonitor(histogram_every_n_steps=...)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0}).Reload()
    assert [found.histogram_value.num for found in events.Histograms("grad_norm/histogram")] == [4.0, 4.0, 1.0]
    assert len(events.Scalars("grad_norm/total")) == 9
    assert events.Tags()["images"] == []


@pytest.mark.usefixtures("no_matplotlib")
def test_the_norm_monitors_histograms_go_to_weights_and_biases(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    rows = []
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    monkeypatch.setattr(WandbLogger, "experiment", type("Run", (), {"log": lambda self, row: rows.append(row)})())
    monitor = GradientNormMonitor(histogram_every_n_steps=4)
    told = warnings_of(GradientIsBatch(), norms_as_batches([1.0, 2.0, 3.0, 4.0]), monitor, logger=logger)
    assert_told_once(told, "GradientNormMonitor(histogram_every_n_steps=...)")
    [histogram] = [row["grad_norm/histogram"] for row in rows if "grad_norm/histogram" in row]
    assert isinstance(histogram, wandb.Histogram)
    assert sum(histogram.histogram) == 4
    assert not any("gradient_norm_histogram" in row for row in rows)


@pytest.mark.usefixtures("no_matplotlib")
def test_what_draws_nothing_says_nothing():
    for callback in (GradientNormMonitor(), GradientFlowMonitor(figures=False)):
        module = LastStep(torch_lstm())
        module.configure_optimizers = lambda module=module: torch.optim.SGD(module.parameters(), lr=0.0)
        assert warnings_of(module, batches(1), callback) == []
