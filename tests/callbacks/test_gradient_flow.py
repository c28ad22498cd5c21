"""The gradient-flow monitor in a Trainer: when it measures, what it logs, draws, warns of, keeps and leaves alone."""

import math
import warnings
from collections import OrderedDict

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger
from small_trainings import GradientIsBatch, Remember, fit_module
from test_clipping_distributed import run_two_ranks
from torch import nn
from torch.testing import assert_close
from transfers import CountReads, CountScalars

from rnn_blocks import GRU, LSTM, Recurrent, WeightDrop, Zoneout
from rnn_blocks.callbacks import GradientFlowMonitor, gradient_flow, state_replay
from rnn_blocks.callbacks.flow_history import MAX_DISTANCES, MAX_ROWS, FlowHistory, decay_rate
from rnn_blocks.callbacks.flow_plot import flow_figure


class LastStep(LightningModule):
    """The last output's sum against a target, of any recurrent net that gives ``(outputs, state)``."""

    def __init__(self, net, factor=1.0):
        super().__init__()
        self.net = net
        self.factor = factor
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if "weight_hh" in name:
                    parameter.mul_(factor)

    def training_step(self, batch, batch_idx):
        return (self.net(batch)[0][:, -1].float().sum(-1) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def torch_lstm(**options):
    torch.manual_seed(0)
    return nn.LSTM(3, 5, batch_first=True, **options)


def batches(count, steps=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, steps, 3, generator=generator) for _ in range(count)]


def monitor_of(**options):
    return GradientFlowMonitor(**({"every_n_steps": 1, "figures": False} | options))


class KeepTrueNorms(Callback):
    """``‖∂L/∂h_t‖`` of an `nn.LSTM` by a loop of cells over each batch, before the update, last step first."""

    def __init__(self):
        self.norms = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        net, state, hidden = pl_module.net, (torch.zeros(4, 5), torch.zeros(4, 5)), []
        for x in batch.unbind(1):
            state = torch.lstm_cell(x, state, *net._flat_weights)
            hidden.append(state[0])
        loss = (state[0].sum(-1) - 1).square().mean()
        self.norms.append([float(g.norm()) for g in torch.autograd.grad(loss, hidden[::-1])])


def test_norms_and_decay_rates_are_those_of_a_loop_of_cells_at_every_measuring_step():
    monitor, truth, logger = monitor_of(every_n_steps=2), KeepTrueNorms(), Remember()
    trainer = fit_module(LastStep(torch_lstm()), batches(5), monitor, truth, logger=logger)
    assert monitor.history["net"].steps == [0, 2, 4]
    for step, norms in zip([0, 2, 4], monitor.history["net"].norms, strict=True):
        assert_close(norms.tolist(), truth.norms[step], rtol=1e-4, atol=1e-9)
    rates = logger.column("gradient_flow/net/decay_rate")
    slopes = {step: torch.tensor(truth.norms[step]).log() for step in (0, 2, 4)}
    design = torch.stack([torch.ones(6), torch.arange(6.0)], dim=1)
    fitted = {step: float(torch.linalg.lstsq(design, logs[:, None]).solution[1].exp()) for step, logs in slopes.items()}
    assert_close(rates, fitted, rtol=1e-3, atol=0)
    assert_close(float(trainer.callback_metrics["gradient_flow/net/decay_rate"]), rates[4], rtol=1e-6, atol=0)


NETS = {
    "torch, dropout": lambda: torch_lstm(num_layers=2, dropout=0.3),
    "ours": lambda: LSTM(3, 5, num_layers=2, dropout=0.3),
    "loop": lambda: GRU(3, 5, engine="loop", bidirectional=True),
    "weight drop": lambda: WeightDrop(LSTM(3, 5), 0.3),
    "zoneout": lambda: Recurrent(Zoneout(GRU(3, 5).layers[0].cell, 0.3)),
}


@pytest.mark.parametrize("name", NETS)
def test_the_training_is_bit_for_bit_the_one_without_the_monitor(name):
    def train(*callbacks):
        torch.manual_seed(0)
        module = LastStep(NETS[name]())
        torch.manual_seed(1)
        fit_module(module, batches(5), *callbacks)
        return dict(module.named_parameters())

    monitor = monitor_of(every_n_steps=2)
    measured, plain = train(monitor), train()
    assert monitor.history
    assert_close(measured, plain, rtol=0, atol=0)


def test_spectral_norms_vectors_are_not_moved_by_a_replay():
    def train(*callbacks):
        torch.manual_seed(0)
        net = GRU(3, 5, engine="loop")
        nn.utils.parametrizations.spectral_norm(net.layers[0].cell, "weight_hh")
        module = LastStep(net)
        fit_module(module, batches(3), *callbacks)
        return module.state_dict()

    monitor = monitor_of()
    measured = train(monitor)
    assert monitor.history["net.layers.0"].steps == [0, 1, 2]
    assert_close(measured, train(), rtol=0, atol=0)


def test_with_accumulation_the_first_micro_batch_is_measured_at_the_loss_of_training_step():
    truth, monitor = KeepTrueNorms(), monitor_of()
    fit_module(LastStep(torch_lstm()), batches(4), monitor, truth, accumulate_grad_batches=2)
    assert monitor.history["net"].steps == [0, 1]
    for norms, expected in zip(monitor.history["net"].norms, truth.norms[::2], strict=True):
        assert_close(norms.tolist(), expected, rtol=1e-4, atol=1e-9)


def test_gradients_are_unscaled_under_a_gradient_scaler():
    from lightning.pytorch.plugins import MixedPrecision

    class OnCpu(MixedPrecision):
        def __init__(self):
            super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))

    def curves(**options):
        monitor = monitor_of()
        fit_module(LastStep(GRU(3, 5)), batches(1), monitor, **options)
        return monitor.history["net.layers.0"].norms[0]

    torch.manual_seed(0)
    plain = curves()
    torch.manual_seed(0)
    assert_close(curves(plugins=[OnCpu()]), plain, rtol=0.05, atol=1e-4)


def test_manual_optimisation_is_measured_whether_or_not_the_trainer_sees_the_backward_pass():
    class Manual(LastStep):
        def __init__(self, net):
            super().__init__(net)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss) if batch_idx % 2 else loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    truth, monitor = KeepTrueNorms(), monitor_of()
    fit_module(Manual(torch_lstm()), batches(4), monitor, truth)
    for norms, expected in zip(monitor.history["net"].norms, truth.norms, strict=True):
        assert_close(norms.tolist(), expected, rtol=1e-4, atol=1e-9)


class Decoder(nn.Module):
    """A loop of its own; hands out its states."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 5)

    def forward(self, inputs):
        states = [inputs.new_zeros(4, 5)]
        for x in inputs.unbind(1):
            states.append(self.cell(x, states[-1]))
        return torch.stack(states[1:], dim=1), states[1:]


@pytest.mark.parametrize("slices", [False, True])
def test_a_module_that_hands_out_its_states_is_measured_at_them(slices):
    torch.manual_seed(0)
    net = Decoder()
    states = {"net": (lambda module, args, output: output[0].unbind(1)) if slices else (lambda *call: call[2][1])}
    monitor = monitor_of(states=states)
    if slices:
        with pytest.warns(UserWarning, match="'net' was not measured: no gradient reached the states"):
            fit_module(LastStep(net), batches(1), monitor)
        return
    hidden = net(batches(1)[0])[1]
    loss = (hidden[-1].sum(-1) - 1).square().mean()
    expected = [float(g.norm()) for g in torch.autograd.grad(loss, hidden[::-1])]
    fit_module(LastStep(net), batches(1), monitor)
    assert_close(monitor.history["net"].norms[0].tolist(), expected, rtol=1e-4, atol=1e-9)


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


def test_an_alarm_sounds_again_after_the_layer_had_recovered():
    class Wavering(LastStep):
        def on_train_batch_start(self, batch, batch_idx):
            with torch.no_grad():
                self.net.weight_hh_l0.copy_(torch.eye(5) * (1e-4 if batch_idx % 2 else 0.9))

    found = warnings_of(Wavering(nn.RNN(3, 5, batch_first=True)), 6, monitor_of(), steps=6)
    assert len(found) == 3
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


def test_measuring_starts_with_the_first_step_and_nothing_is_read_in_between():
    per_step = []

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch_lstm(num_layers=2, bidirectional=False)

        def forward(self, inputs):
            return self.lstm(inputs)[0]

    class Counted(GradientFlowMonitor):
        def on_train_batch_end(self, *args):
            with CountReads() as reads, CountScalars() as scalars:
                super().on_train_batch_end(*args)
            per_step.append((reads.counts.total(), scalars.count))

        def on_after_backward(self, *args):
            with CountReads() as reads, CountScalars() as scalars:
                super().on_after_backward(*args)
            assert (reads.counts.total(), scalars.count) == (0, 0)

    monitor = Counted(every_n_steps=3, figures=False)
    fit_module(LastStep(nn.Sequential(OrderedDict(first=First(), second=GRU(5, 5)))), batches(7), monitor)
    assert monitor.history["net.first.lstm.l1"].steps == monitor.history["net.second.layers.0"].steps == [0, 3, 6]
    assert per_step == [(1, 0), (0, 0), (0, 0)] * 2 + [(1, 0)]


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
    monkeypatch.setattr(gradient_flow, "flow_figure", lambda name, history: len(history.steps))
    monkeypatch.setattr(gradient_flow, "log_figure", lambda trainer, name, figure: drawn.append((name, figure)))
    fit_module(LastStep(torch_lstm()), batches(20), GradientFlowMonitor(every_n_steps=2))
    assert drawn == [("gradient_flow/net", count) for count in (2, 3, 4, 5, 7, 9, 10)]


def test_a_figure_for_each_layer_lies_in_the_log_folder(tmp_path):
    net, monitor = torch_lstm(bidirectional=True), GradientFlowMonitor(every_n_steps=1)
    fit_module(LastStep(net), batches(1), monitor, logger=CSVLogger(tmp_path, name="run"))
    figures = tmp_path / "run" / "version_0" / "plots" / "gradient_flow"
    assert {path.name for path in figures.iterdir()} == {"net.l0.png", "net.l0_reverse.png"}


def test_a_figure_takes_zeros_infinities_curves_of_any_length_and_a_single_one():
    history = FlowHistory()
    history.add(0, [1.0, 0.0, 0.0])
    flow_figure("net", history)
    history.add(5, [1.0, 1e-30, math.inf, math.nan, 1.0])
    history.add(9, [0.0])
    mesh = flow_figure("net", history).axes[0].collections[0]
    assert mesh.get_array().shape == (5, 3)
    assert mesh.get_array().mask[2:, 2].all()


def test_a_training_that_breaks_off_leaves_the_modules_as_they_were():
    class Breaks(LastStep):
        def training_step(self, batch, batch_idx):
            self.net(batch)
            raise KeyboardInterrupt if batch_idx else RuntimeError("broken")

    module = Breaks(GRU(3, 5))
    with pytest.raises(RuntimeError, match="broken"):
        fit_module(module, batches(2), monitor_of())
    assert "run" not in vars(module.net.layers[0])


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_step_without_a_backward_pass_is_not_measured_and_the_next_one_is():
    class Skips(LastStep):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx else None

    monitor = monitor_of()
    fit_module(Skips(torch_lstm()), batches(3), monitor)
    assert monitor.history["net"].steps == [1, 2]


def test_layers_are_chosen_by_name_and_what_cannot_be_measured_is_told():
    module = LastStep(nn.ModuleDict({"a": nn.LSTM(3, 5, num_layers=2), "b": GRU(3, 5)}))
    module.training_step = lambda batch, batch_idx: module.net["a"](batch)[0].sum() + module.net["b"](batch)[0].sum()
    monitor = monitor_of(layers=["net.b"])
    fit_module(module, batches(1), monitor)
    assert set(monitor.history) == {"net.b.layers.0"}
    with pytest.raises(
        ValueError, match=r"'decoder' is no module of this LastStep; .* are 'net\.a', 'net\.b\.layers\.0'"
    ):
        fit_module(module, batches(1), monitor_of(layers=["decoder"]))
    with pytest.warns(UserWarning, match="measures the first 1 of 2 layers"):
        fit_module(module, batches(1), monitor_of(max_layers=1))
    with (
        pytest.warns(UserWarning, match="'net' has a projection of its outputs"),
        pytest.raises(MisconfigurationException, match="finds no recurrent layer"),
    ):
        fit_module(LastStep(torch_lstm(proj_size=2)), batches(1), monitor_of())
    with pytest.raises(MisconfigurationException, match="finds no recurrent layer to measure in this GradientIsBatch"):
        fit_module(GradientIsBatch(), [torch.ones(4)], monitor_of())


def test_a_layer_within_a_compiled_module_is_left_out_with_a_warning():
    module = LastStep(torch.compile(GRU(3, 5), backend="eager"))
    module.other = torch_lstm()
    module.training_step = lambda batch, batch_idx: module.net(batch)[0].sum() + module.other(batch)[0].sum()
    monitor = monitor_of()
    with pytest.warns(UserWarning, match=r"'net\.layers\.0' is within a torch.compile'd module"):
        fit_module(module, batches(1), monitor)
    assert set(monitor.history) == {"other"}


def test_a_layer_that_is_called_once_a_step_is_told_to_name_its_states():
    class Stepwise(LastStep):
        def training_step(self, batch, batch_idx):
            state = None
            for x in batch.split(1, dim=1):
                outputs, state = self.net(x, state)
            return outputs.sum()

    with pytest.warns(UserWarning, match="'net' is called more than 16 times a training step"):
        fit_module(Stepwise(torch_lstm()), batches(1, steps=20), monitor_of())


def test_it_is_made_by_its_short_name_on_a_command_line():
    parser = ArgumentParser()
    parser.add_subclass_arguments(Callback, "callback")
    parsed = parser.parse_args(["--callback", "GradientFlowMonitor", "--callback.source", "last"])
    monitor = parser.instantiate(parsed).callback
    assert isinstance(monitor, GradientFlowMonitor)
    assert (monitor.source, monitor.every_n_steps) == ("last", 500)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0; it must be at least 1"),
        ({"max_layers": 0}, "max_layers is 0"),
        ({"source": "first"}, "source is 'first'; choose one of 'all', 'last'"),
        ({"vanishing": 2.0}, "vanishing is 2.0"),
        ({"exploding": 1.0}, "exploding is 1.0"),
        ({"layers": "net"}, "layers is 'net'; it must be a list of names"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"GradientFlowMonitor: {message}"):
        GradientFlowMonitor(**options)


DDP = """
import torch, warnings
from rnn_blocks.callbacks import GradientFlowMonitor
from small_trainings import make_trainer
from test_gradient_flow import LastStep, batches, torch_lstm
from torch.testing import assert_close
from torch.utils.data import DataLoader

torch.set_num_threads(1)
warnings.simplefilter("ignore")

def train(*callbacks):
    module = LastStep(torch_lstm(num_layers=2, dropout=0.3))
    torch.manual_seed(1)
    trainer = make_trainer(*callbacks, strategy="ddp", devices=2)
    trainer.fit(module, DataLoader(torch.cat(batches(8)), batch_size=4))
    return trainer, dict(module.named_parameters())

monitor = GradientFlowMonitor(every_n_steps=2, figures=False)
trainer, measured = train(monitor)
_, plain = train()
assert_close(measured, plain, rtol=0, atol=0)
assert {name: history.steps for name, history in monitor.history.items()} == (
    {"net.l0": [0, 2], "net.l1": [0, 2]} if trainer.global_rank == 0 else {}
)
"""


def test_under_ddp_the_first_rank_measures_and_the_training_is_the_one_without():
    run_two_ranks(DDP)


FSDP2 = """
import torch, warnings
from lightning.pytorch.strategies import ModelParallelStrategy
from rnn_blocks import LSTM
from rnn_blocks.callbacks import GradientFlowMonitor
from rnn_blocks.callbacks.flow_recorder import FlowRecorder, recurrences
from small_trainings import make_trainer
from test_gradient_flow import LastStep, batches
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close
from torch.utils.data import DataLoader

torch.set_num_threads(1)
warnings.simplefilter("ignore")

def module(kind=LastStep):
    torch.manual_seed(0)
    return kind(LSTM(3, 5, num_layers=2))

class Sharded(LastStep):
    seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return super().training_step(batch, batch_idx)

    def configure_model(self):
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

def train(*callbacks):
    trained = module(Sharded)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = make_trainer(*callbacks, strategy=strategy, devices=2)
    trainer.fit(trained, DataLoader(torch.cat(batches(8)), batch_size=4))
    return trainer, {name: parameter.full_tensor() for name, parameter in trained.named_parameters()}

monitor = GradientFlowMonitor(every_n_steps=2, figures=False)
trainer, measured = train(monitor)
_, plain = train()
assert_close(measured, plain, rtol=0, atol=0)
if trainer.global_rank == 0:
    alone = module()
    recorder = FlowRecorder(recurrences(alone)[0], {}, "all")
    recorder.attach()
    alone.training_step(Sharded.seen[0], 0).backward()
    recorder.collect(1.0)
    for name, (norms, _) in recorder.read().items():
        assert_close(monitor.history[name].norms[0].tolist(), norms, rtol=1e-4, atol=0)
    assert {name: history.steps for name, history in monitor.history.items()} == {
        "net.layers.0": [0, 2], "net.layers.1": [0, 2]
    }
else:
    assert monitor.history == {}
"""


def test_under_fsdp2_the_first_rank_measures_with_the_weights_of_all():
    run_two_ranks(FSDP2)
