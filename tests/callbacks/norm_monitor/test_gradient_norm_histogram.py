import math
from collections import Counter

import numpy as np
import pytest
import torch
from lightnings import LightningModule, TensorBoardLogger, WandbLogger
from small_trainings import GradientIsBatch, Regression, fit_module, norms_as_batches, regression_batches
from torch import nn
from torch.testing import assert_close
from transfers import CountReads, CountScalars

from rnn_blocks.callbacks import ClippingAdvisor, GradientNormMonitor
from rnn_blocks.callbacks.measuring import norms as gradient_norms
from rnn_blocks.callbacks.measuring import recurrent_weights, step, weight_updates
from rnn_blocks.callbacks.measuring.norm_buffer import NormBuffer
from rnn_blocks.callbacks.norm_monitor.histogram import BINS, MOST_INTERVALS, NormHistogram


def lognormal(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).mul(0.5).exp().tolist()


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def binned(norms):
    logs = np.log10([norm for norm in norms if 0 < norm < math.inf])
    return np.histogram(logs, bins=BINS, range=(-9, 9))[0].tolist()


def test_each_histogram_is_of_all_steps_since_the_last_and_read_on_logging_steps(tmp_path):
    norms = lognormal(20)
    monitor = GradientNormMonitor(histogram_every_n_steps=5)
    batches = norms_as_batches(norms)
    fit_module(GradientIsBatch(), batches, monitor, log_every_n_steps=3, default_root_dir=tmp_path)
    [histogram] = monitor._histograms.values()
    assert histogram.ends == [6, 12, 18, 20]  # the first logging steps that are five steps on, and the end
    for start, end, row in zip([0, 6, 12, 18], histogram.ends, histogram.counts.tolist(), strict=True):
        assert row == binned(norms[start:end])
    assert (tmp_path / "plots" / "gradient_norm_histogram.png").stat().st_size > 10_000


def test_norms_of_zero_and_non_finite_ones_are_in_no_bin_and_outliers_in_the_outermost(tmp_path):
    monitor = GradientNormMonitor(histogram_every_n_steps=6)
    norms = [1.0, 0.0, math.nan, math.inf, 1e-15, 1e12]
    module = GradientIsBatch(make_optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    fit_module(module, norms_as_batches(norms), monitor, default_root_dir=tmp_path)
    [histogram] = monitor._histograms.values()
    assert histogram.nonfinite == 2
    assert {k: int(n) for k, n in enumerate(histogram.counts[0]) if n} == {0: 1, BINS // 2: 1, BINS - 1: 1}


def test_tensorboard_gets_histograms_and_the_figure(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    norms, logger = lognormal(8), TensorBoardLogger(tmp_path)
    monitor = GradientNormMonitor(histogram_every_n_steps=4)
    fit_module(GradientIsBatch(), norms_as_batches(norms), monitor, logger=logger, log_every_n_steps=4)
    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0}).Reload()
    for found, own in zip(events.Histograms("grad_norm/histogram"), (norms[:4], norms[4:]), strict=True):
        logs = np.log10(own)
        value = found.histogram_value
        assert_close([value.num, value.sum, value.max], [4.0, logs.sum(), logs.max()], rtol=1e-5, atol=1e-6)
    assert events.Images("gradient_norm_histogram")


def test_weights_and_biases_gets_histograms(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    rows = []
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    monkeypatch.setattr(WandbLogger, "experiment", type("Run", (), {"log": lambda self, row: rows.append(row)})())
    norms = lognormal(4)
    monitor = GradientNormMonitor(histogram_every_n_steps=4)
    fit_module(GradientIsBatch(), norms_as_batches(norms), monitor, logger=logger, log_every_n_steps=4)
    [histogram] = [row["grad_norm/histogram"] for row in rows if "grad_norm/histogram" in row]
    assert isinstance(histogram, wandb.Histogram)
    assert sum(histogram.histogram) == 4
    logs = np.log10(norms)
    assert_close([histogram.bins[0], histogram.bins[-1]], [logs.min(), logs.max()], rtol=1e-5, atol=1e-6)
    assert [row for row in rows if "gradient_norm_histogram" in row]


def test_a_resumed_training_ends_with_the_same_histograms(tmp_path):
    """Trap 2: state lost on resume, or not loadable with `weights_only`."""
    batches = norms_as_batches(lognormal(20))
    options = {"log_every_n_steps": 4, "default_root_dir": tmp_path}
    whole, resumed = GradientNormMonitor(histogram_every_n_steps=8), GradientNormMonitor(histogram_every_n_steps=8)
    fit_module(GradientIsBatch(), batches, whole, **options)
    path = tmp_path / "half.ckpt"

    class Interrupted(GradientIsBatch):
        def on_train_epoch_end(self):
            self.trainer.save_checkpoint(path)

    fit_module(Interrupted(), batches[:10], GradientNormMonitor(histogram_every_n_steps=8), **options)
    state = torch.load(path, weights_only=True)["callbacks"][whole.state_key]["histograms"]["0"]
    assert len(state["waiting"]["norms"]) == 2
    fit_module(GradientIsBatch(), batches[10:], resumed, max_epochs=2, ckpt_path=path, **options)
    assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert resumed._histograms[0].ends == [8, 16, 20]


def test_monitors_of_different_settings_have_different_state_keys_and_none_without_histograms_has_a_state():
    settings = [{}, {"depth": 2}, {"top_k": 1}, {"max_modules": 3}, {"gates": True}, {"updates": True}]
    monitors = [GradientNormMonitor(**s) for s in [*settings, {"histogram_every_n_steps": 5}]]
    assert len({monitor.state_key for monitor in monitors}) == len(monitors)
    assert all(monitor.state_dict() == {} for monitor in monitors[:-1])


def test_a_new_training_with_the_same_monitor_starts_new_histograms(tmp_path):
    monitor = GradientNormMonitor(histogram_every_n_steps=2)
    for _ in range(2):
        fit_module(GradientIsBatch(), norms_as_batches(lognormal(4)), monitor, default_root_dir=tmp_path)
        assert monitor._histograms[0].ends == [2, 4]


def test_counts_stay_bounded_and_none_is_lost_when_neighbours_are_added_up():
    histogram = NormHistogram()
    for k in range(3 * MOST_INTERVALS):
        for norm in (1.0, 10.0 ** (k % 3)):
            histogram.record(torch.tensor(norm))
        histogram.add(histogram.take().tolist())
        assert len(histogram.ends) == len(histogram.counts) <= MOST_INTERVALS
    assert int(histogram.counts.sum()) == 6 * MOST_INTERVALS
    assert histogram.ends == sorted(histogram.ends)
    assert histogram.ends[-1] == 6 * MOST_INTERVALS
    widths = np.diff([0, *histogram.ends])
    assert histogram.counts.sum(1).tolist() == widths.tolist()
    assert NormHistogram().draw("nothing yet") is None


def test_what_was_never_seen_is_left_white_and_a_single_step_is_not():
    histogram = NormHistogram()
    for norm in [*([1.0] * 999), 100.0]:
        histogram.record(torch.tensor(norm))
    histogram.add(histogram.take().tolist())
    mesh = histogram.draw("norms").axes[0].collections[0]
    seen = mesh.get_array().compressed()
    assert_close(sorted(seen.tolist()), [0.1, 99.9])
    assert min(mesh.cmap(mesh.norm(0.1))[:3]) < 0.9


def test_a_buffer_keeps_the_newest_norms_in_their_order():
    buffer = NormBuffer(300)
    for k in range(1000):
        buffer.append(torch.tensor(float(k)))
        expected = [float(n) for n in range(max(0, k - 299), k + 1)]
        if k in (0, 255, 256, 299, 300, 999):
            assert buffer.norms().tolist() == expected
            again = NormBuffer.from_state_dict(buffer.state_dict(), 300)
            again.append(torch.tensor(-1.0))
            assert again.norms().tolist() == [*expected, -1.0][-300:]
    assert NormBuffer.from_state_dict(buffer.state_dict(), 2).norms().tolist() == [998.0, 999.0]
    buffer.clear()
    assert buffer.norms().tolist() == []
    buffer.append(torch.tensor(5.0))
    assert buffer.norms().tolist() == [5.0]


class Recurrent(LightningModule):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.head(self.lstm(batch[0])[0]).square().mean()

    def configure_optimizers(self):
        return adam(self.parameters())


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """Norms without the look at them that a CPU allows."""
    norms = lambda tensors: gradient_norms._norms(tensors, torch.float64)  # noqa: E731
    for module in (gradient_norms, step, weight_updates):
        monkeypatch.setattr(module, "tensor_norms", norms)
    rows = lambda tensors: [gradient_norms._row_norms(tensor, torch.float64) for tensor in tensors]  # noqa: E731
    monkeypatch.setattr(recurrent_weights, "row_norms", rows)


@pytest.mark.usefixtures("as_on_an_accelerator")
def test_one_transfer_on_a_logging_step_and_none_between(monkeypatch, tmp_path):
    """What the callbacks read in their hooks, with everything switched on."""
    monitor = GradientNormMonitor(top_k=3, gates=True, updates=True, histogram_every_n_steps=4)
    advisor = ClippingAdvisor(steps=100)
    reads, scalars = Counter(), Counter()

    def counted(hook):
        def wrapped(trainer, *args):
            with CountReads() as functions, CountScalars() as dispatched:
                result = hook(trainer, *args)
            reads[trainer.fit_loop.epoch_loop.batch_idx] += functions.counts.total()
            scalars[trainer.fit_loop.epoch_loop.batch_idx] += dispatched.count
            return result

        return wrapped

    for callback in (monitor, advisor):
        for name in ("on_before_optimizer_step", "on_train_batch_end"):
            monkeypatch.setattr(callback, name, counted(getattr(callback, name)))
    options = {"log_every_n_steps": 4, "default_root_dir": tmp_path}
    fit_module(Recurrent(), regression_batches(8), monitor, advisor, **options)
    assert [reads[k] for k in range(8)] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert scalars.total() == 0


def test_a_histogram_needs_a_number_of_steps():
    with pytest.raises(ValueError, match="histogram_every_n_steps is 0; it must be at least 1"):
        GradientNormMonitor(histogram_every_n_steps=0)


def test_a_training_that_breaks_off_still_has_its_picture(tmp_path):
    class Breaks(Regression):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    with pytest.raises(ZeroDivisionError):
        fit_module(
            Breaks(adam),
            regression_batches(5),
            GradientNormMonitor(histogram_every_n_steps=50),
            default_root_dir=tmp_path,
        )
    assert (tmp_path / "plots" / "gradient_norm_histogram.png").exists()
