"""What the gradient-flow monitor tells of its measurements: its warnings, the history that it keeps, its figures."""

import math
import warnings

import pytest
import torch
from flow_trainings import LastStep, batches, monitor_of, torch_lstm
from lightnings import CSVLogger
from small_trainings import Remember, fit_module
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import GradientFlowMonitor, GradientNormMonitor
from rnn_blocks.callbacks.gradient_flow import callback, state_replay
from rnn_blocks.callbacks.gradient_flow.history import MAX_DISTANCES, MAX_ROWS, FlowHistory, decay_rate
from rnn_blocks.callbacks.gradient_flow.plot import flow_figure


def warnings_of(module, count, monitor, steps):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_module(module, batches(count, steps), monitor)
    return [str(w.message) for w in caught if "GradientFlowMonitor" in str(w.message)]


@pytest.mark.parametrize(
    ("factor", "told", "advice"),
    [(0.2, "vanishing", "LSTM with init="), (6.0, "exploding", "Clip gradients"), (2.0, "", "")],
)
def test_vanishing_and_exploding_gradients_are_told_once_with_what_to_do(factor, told, advice):
    torch.manual_seed(0)
    net = nn.RNN(3, 16, batch_first=True, nonlinearity="relu" if factor == 6 else "tanh")
    module, monitor = LastStep(net, factor), monitor_of(exploding=1e2)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    found = warnings_of(module, 3, monitor, steps=12)
    if not told:
        assert found == []
        return
    [message] = found
    assert f"the gradient through 'net' is {told}" in message
    assert advice in message
    assert monitor.history["net"].alarm == told


@pytest.mark.parametrize(("weak", "strong", "times"), [(1e-4, 0.9, 3), (0.09, 0.11, 1)])
def test_an_alarm_sounds_again_after_the_layer_had_well_recovered(weak, strong, times):
    class Wavering(LastStep):
        def on_train_batch_start(self, batch, batch_idx):
            with torch.no_grad():
                self.net.weight_hh_l0.copy_(torch.eye(5) * (weak if batch_idx % 2 else strong))

    module = Wavering(nn.RNN(3, 5, batch_first=True, nonlinearity="relu"))
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    nn.init.constant_(module.net.bias_ih_l0, 9.0)  # no unit is at rest
    found = warnings_of(module, 6, monitor_of(vanishing=1e-5), steps=6)
    assert len(found) == times
    assert all("vanishing" in message for message in found)


def test_gradients_that_are_not_finite_count_as_exploding():
    class Overflowing(LastStep):
        def training_step(self, batch, batch_idx):
            outputs = self.net(batch)[0]
            outputs.register_hook(lambda gradient: gradient * math.inf)
            return outputs.sum()

    module = Overflowing(nn.RNN(3, 5, batch_first=True))
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    monitor = monitor_of()
    [message] = warnings_of(module, 1, monitor, steps=6)
    assert "exploding" in message


def test_a_layer_whose_replay_differs_is_left_out_with_a_warning(monkeypatch):
    monkeypatch.setattr(state_replay, "_set_numbers", lambda device, numbers: None)  # as cuDNN's masks cannot be had
    monitor = monitor_of()
    found = warnings_of(LastStep(torch_lstm(num_layers=2, dropout=0.5)), 2, monitor, steps=6)
    assert [message.split(":")[1] for message in found] == [" 'net.l0' was left out", " 'net.l1' was left out"]
    assert not monitor.history


def test_the_history_is_exact_on_resume_and_loads_with_weights_only(tmp_path):
    whole = monitor_of(every_n_steps=3, vanishing=0.5)
    with pytest.warns(UserWarning, match="vanishing"):
        fit_module(LastStep(torch_lstm()), batches(8), whole)
    first = monitor_of(every_n_steps=3, vanishing=0.5)
    with pytest.warns(UserWarning, match="vanishing"):
        trainer = fit_module(LastStep(torch_lstm()), batches(8)[:4], first)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert first.state_key in torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]
    second = monitor_of(
        every_n_steps=3, vanishing=0.5
    )  # the alarm is known from the checkpoint, and does not sound again
    fit_module(LastStep(torch_lstm()), batches(8)[4:], second, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert second.history["net"].steps == [0, 3, 6]
    resumed, expected = second.state_dict(), whole.state_dict()
    states = [state["history"]["net"] for state in (resumed, expected)]
    assert states[0].pop("alarm") == states[1].pop("alarm") == "vanishing"
    assert_close(resumed, expected, rtol=0, atol=0)
    assert monitor_of().state_key != monitor_of(source="last").state_key


def test_a_history_is_bounded_and_keeps_the_whole_training_in_view():
    history = FlowHistory()
    for step in range(5 * MAX_ROWS):
        history.add(step, [1.0] * (2 * MAX_DISTANCES))
    assert MAX_ROWS / 2 <= len(history.steps) <= MAX_ROWS
    assert history.steps == list(range(0, 5 * MAX_ROWS, history.stride))
    assert {len(norms) for norms in history.norms} == {MAX_DISTANCES}
    assert history.distances[0][[0, -1]].tolist() == [0, 2 * MAX_DISTANCES - 1]


@pytest.mark.parametrize(
    ("norms", "rate"),
    [
        ([1.0, 0.5, 0.25], 0.5),
        ([0.0, 1.0, 3.0, 9.0], 3.0),
        ([4.0, 2.0, 0.0, 0.0], 0.5),
        ([4.0, 0.0, 0.0], 0.0),
        ([1.0, math.inf], math.inf),
        ([0.0, 0.0], math.nan),
        ([1.0], math.nan),
    ],
)
def test_a_decay_rate_is_the_factor_a_step(norms, rate):
    assert_close(decay_rate(norms), rate, equal_nan=True)


def test_figures_are_drawn_at_a_bounded_rate_and_at_the_end(monkeypatch):
    drawn = []
    monkeypatch.setattr(callback, "flow_figure", lambda name, history: len(history.steps))
    monkeypatch.setattr(callback, "log_figure", lambda trainer, name, figure: drawn.append((name, figure)))
    fit_module(LastStep(torch_lstm()), batches(20), GradientFlowMonitor(every_n_steps=2))
    assert drawn == [("gradient_flow/net", count) for count in (2, 3, 4, 5, 7, 9, 10)]


def test_a_figure_for_each_layer_lies_in_the_log_folder(tmp_path):
    net, monitor = torch_lstm(bidirectional=True), GradientFlowMonitor(every_n_steps=1)
    fit_module(LastStep(net), batches(1), monitor, logger=CSVLogger(tmp_path, name="run"))
    figures = tmp_path / "run" / "version_0" / "plots" / "gradient_flow"
    assert {path.name for path in figures.iterdir()} == {"net.l0.png", "net.l0_reverse.png"}


class ServerIsGone(Remember):
    def log_image(self, key, images, step=None):
        raise ConnectionError("the tracking server is gone")


@pytest.mark.parametrize(
    "monitor", [GradientFlowMonitor(every_n_steps=1), GradientNormMonitor(histogram_every_n_steps=1)]
)
def test_a_logger_that_fails_does_not_hide_why_a_training_broke_off(monitor, tmp_path):
    class Breaks(LastStep):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise ValueError("the cause")
            return super().training_step(batch, batch_idx)

    told = r"ServerIsGone did not take the figure '[a-z_/]*': the tracking server is gone"
    options = {"logger": ServerIsGone(), "default_root_dir": tmp_path}
    with pytest.warns(UserWarning, match=told), pytest.raises(ValueError, match="the cause"):
        fit_module(Breaks(torch_lstm()), batches(2), monitor, **options)


def test_a_figure_takes_zeros_infinities_curves_of_any_length_and_a_single_one():
    history = FlowHistory()
    history.add(0, [1.0, 0.0, 0.0])
    flow_figure("net", history)
    history.add(5, [1.0, 1e-30, math.inf, math.nan, 1.0])
    history.add(9, [0.0])
    mesh = flow_figure("net", history).axes[0].collections[0]
    assert mesh.get_array().shape == (5, 3)
    assert mesh.get_array().mask[2:, 2].all()
