"""The gradient-flow monitor in a Trainer: which layers and steps it measures, what it finds, what it leaves alone."""

import warnings
from collections import OrderedDict

import pytest
import torch
from flow_trainings import KeepTrueNorms, LastStep, batches, monitor_of, torch_lstm
from jsonargparse import ArgumentParser
from lightnings import Callback, MisconfigurationException
from small_trainings import GradientIsBatch, Remember, fit_module
from torch import nn
from torch.testing import assert_close
from transfers import CountReads, CountScalars

from rnn_blocks import GRU, LSTM, Recurrent, WeightDrop, Zoneout
from rnn_blocks.callbacks import GradientFlowMonitor


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
    from lightnings import MixedPrecision

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


@pytest.mark.parametrize("times", [1, 2])
def test_several_backward_passes_over_one_call_add_up(times):
    class Manual(LastStep):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx) / times
            for k in range(times):
                self.manual_backward(loss, retain_graph=k < times - 1)
                self.net.zero_grad()

    truth, monitor, module = KeepTrueNorms(), monitor_of(), Manual(torch_lstm())
    module.automatic_optimization = False
    fit_module(module, batches(1), monitor, truth)
    assert_close(monitor.history["net"].norms[0].tolist(), truth.norms[0], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("automatic", [True, False])
def test_what_is_differentiated_besides_the_loss_is_no_part_of_it(automatic):
    class LooksAtItsInput(LastStep):
        def training_step(self, batch, batch_idx):
            batch = batch.requires_grad_()
            loss = super().training_step(batch, batch_idx)
            torch.autograd.grad(loss, batch, retain_graph=True)
            if automatic:
                return loss
            self.manual_backward(loss, retain_graph=True)
            torch.autograd.grad(loss, batch)
            return None

    truth, monitor, module = KeepTrueNorms(), monitor_of(), LooksAtItsInput(torch_lstm())
    module.automatic_optimization = automatic
    fit_module(module, batches(1), monitor, truth)
    assert_close(monitor.history["net"].norms[0].tolist(), truth.norms[0], rtol=1e-4, atol=1e-9)


def test_under_manual_optimisation_a_state_that_is_trained_is_measured_as_it_was():
    class StartsSomewhere(LastStep):
        def __init__(self, net):
            super().__init__(net)
            self.automatic_optimization = False
            self.start = nn.Parameter(torch.ones(2, 1, 1, 5))

        def training_step(self, batch, batch_idx):
            outputs, _ = self.net(batch, tuple(self.start.expand(2, 1, 4, 5)))
            self.manual_backward(outputs.square().sum())
            self.optimizers().step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    monitor = monitor_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*(num_workers|number of training batches).*")
        fit_module(StartsSomewhere(torch_lstm()), batches(1), monitor)
    assert monitor.history["net"].steps == [0]


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


def test_a_training_that_breaks_off_leaves_the_modules_as_they_were():
    class Breaks(LastStep):
        def training_step(self, batch, batch_idx):
            self.net(batch)
            raise KeyboardInterrupt if batch_idx else RuntimeError("broken")

    module = Breaks(GRU(3, 5))
    with pytest.raises(RuntimeError, match="broken"):
        fit_module(module, batches(2), monitor_of())
    assert "run" not in vars(module.net.layers[0])


@pytest.mark.parametrize("skipped", [1, 2])
@pytest.mark.parametrize("make", [torch_lstm, lambda: GRU(3, 5)], ids=["torch", "ours"])
def test_epochs_that_are_skipped_leave_the_modules_as_they_were(make, skipped):
    class Skips(LastStep):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.current_epoch < skipped else None

    module, monitor = Skips(make()), monitor_of(every_n_steps=1000)
    fit_module(module, batches(2), monitor, max_epochs=2)
    assert len(monitor.history) == 2 - skipped
    for part in module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
        assert "run" not in vars(part)


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
        ({"every_n_steps": 0}, "every_n_steps is 0; it must be a whole number of at least 1"),
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
