"""The gradient-flow monitor in trainings that `torch.compile` has a part in: measured rightly, or left out and told."""

import warnings
from functools import cache

import pytest
import torch
from flow_trainings import LastStep, batches, monitor_of, torch_lstm
from small_trainings import fit_module
from torch import nn
from torch._dynamo.utils import counters
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM, GRUCell, Recurrent
from rnn_blocks.engine import compile

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Encoder(nn.Module):
    """Calls a recurrent layer, with something around it to compile."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.projection = rnn, nn.Linear(5, 5)

    def forward(self, inputs):
        outputs, state = self.rnn(inputs)
        return self.projection(outputs), state


class Training(LastStep):
    """The loss of `LastStep`, by `forward`, by a function `run`, or by the net itself."""

    run = None

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        outputs, _ = (self.run or self)(batch)
        return (outputs[:, -1].sum(-1) - 1).square().mean()


def compiled(thing, backend):
    return torch.compile(thing, backend=backend)


def in_place(module, backend):
    module.compile(backend=backend)
    return module


def compiled_module(rnn, backend):
    return compiled(Training(Encoder(rnn)), backend)


def compiled_forward(rnn, backend):
    module = Training(Encoder(rnn))
    module.forward = compiled(module.forward, backend)
    return module


def compiled_training_step(rnn, backend):
    module = Training(Encoder(rnn))
    module.training_step = compiled(module.training_step, backend)
    return module


def module_compiled_in_place(rnn, backend):
    return in_place(Training(Encoder(rnn)), backend)


def compiled_layer(rnn, backend):
    return Training(Encoder(compiled(rnn, backend)))


def layer_compiled_in_place(rnn, backend):
    return Training(Encoder(in_place(rnn, backend)))


def encoder_compiled_in_place(rnn, backend):
    return Training(in_place(Encoder(rnn), backend))


def compiled_forward_of_the_encoder(rnn, backend):
    module = Training(Encoder(rnn))
    module.net.forward = compiled(module.net.forward, backend)
    return module


def compiled_container(rnn, backend):
    return Training(compiled(nn.Sequential(Encoder(rnn)), backend))


def compiled_function(rnn, backend):
    module = Training(Encoder(rnn))
    module.run = compiled(lambda inputs: module.net(inputs), backend)
    return module


INSIDE = {  # what is told to be around a layer of this library
    compiled_module: "the compiled training_step",
    compiled_forward: "the compiled forward of Training",
    compiled_training_step: "the compiled training_step",
    module_compiled_in_place: "the compiled forward of Training",
    compiled_layer: "the compiled 'net.rnn'",
    layer_compiled_in_place: "the compiled 'net.rnn'",
    encoder_compiled_in_place: "the compiled 'net'",
    compiled_forward_of_the_encoder: "the compiled 'net'",
    compiled_container: "the compiled 'net'",
    compiled_function: "a compiled function",
}
FOUND_AT_THE_FIRST_MEASUREMENT = (compiled_forward, module_compiled_in_place, compiled_function)
PLACES = pytest.mark.parametrize("place", INSIDE, ids=lambda place: place.__name__)
SLOW = [pytest.param(place, "aot_eager", marks=pytest.mark.slow) for place in (compiled_module, compiled_function)]
CASES = [*((place, "eager") for place in INSIDE), *SLOW]
PLACES_AND_BACKENDS = pytest.mark.parametrize(
    ("place", "backend"), CASES, ids=lambda value: value if isinstance(value, str) else value.__name__
)


def train(make, rnn, *callbacks, backend="eager"):
    """Weights after a training, the monitor's warnings, and how many graphs were compiled."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    module = make(rnn(), backend)
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_module(module, batches(3, steps=3), *callbacks)
    told = [str(warning.message) for warning in caught if "GradientFlowMonitor" in str(warning.message)]
    weights = {name.replace("_orig_mod.", ""): p.detach().clone() for name, p in module.named_parameters()}
    return weights, told, counters["stats"]["unique_graphs"]


@cache
def eager_curves(rnn):
    monitor = monitor_of(every_n_steps=2)
    train(lambda net, _: Training(Encoder(net)), rnn, monitor)
    return {name: history.norms for name, history in monitor.history.items()}


def assert_measured_as_eagerly(monitor, rnn):
    expected = eager_curves(rnn)
    assert len(expected) == len(monitor.history) > 0
    for (name, norms), (plain_name, plain) in zip(
        sorted((name, history.norms) for name, history in monitor.history.items()),
        sorted(expected.items()),
        strict=True,
    ):
        assert name.replace(".0.rnn", ".rnn") == plain_name  # within a container
        assert monitor.history[name].steps == [0, 2]
        for curve, plain_curve in zip(norms, plain, strict=True):
            assert_close(curve, plain_curve, rtol=1e-5, atol=1e-9)


def two_lstms():
    return torch_lstm(num_layers=2, dropout=0.3)


def two_grus():
    return GRU(3, 5, num_layers=2)


@PLACES_AND_BACKENDS
def test_torchs_layers_are_measured_as_without_a_compiler_that_leaves_them_as_they_are(place, backend):
    monitor = monitor_of(every_n_steps=2)
    alone, _, graphs = train(place, two_lstms, backend=backend)
    weights, told, graphs_with = train(place, two_lstms, monitor, backend=backend)
    assert_close(weights, alone, rtol=0, atol=0)
    assert graphs_with == graphs
    assert told == []
    assert_measured_as_eagerly(monitor, two_lstms)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_so_are_torchs_other_layers(kind):
    monitor = monitor_of(every_n_steps=2)

    def layer():
        return kind(3, 5, batch_first=True)

    _, told, _ = train(compiled_module, layer, monitor)
    assert told == []
    assert_measured_as_eagerly(monitor, layer)


@PLACES_AND_BACKENDS
def test_this_librarys_layers_run_compiled_unseen_which_is_told_once_and_the_training_stays_the_same(place, backend):
    monitor = monitor_of()
    alone, _, graphs = train(place, two_grus, backend=backend)
    weights, told, graphs_with = train(place, two_grus, monitor, backend=backend)
    assert_close(weights, alone, rtol=0, atol=0)
    assert graphs >= 1
    assert graphs_with - graphs == (place in FOUND_AT_THE_FIRST_MEASUREMENT)
    [message] = told
    names = ("net.0.rnn" if place is compiled_container else "net.rnn") + ".layers.{}"
    assert f"measure {names.format(0)!r}, {names.format(1)!r}: inside {INSIDE[place]} (torch.compile)" in message
    assert "torch.compiler.disable" in message
    assert monitor.history == {}


@pytest.mark.parametrize("place", [compiled_layer, compiled_function], ids=lambda place: place.__name__)
def test_a_graph_that_must_not_break_does_not(place, monkeypatch):
    def compiled_whole(thing, backend):
        return torch.compile(thing, backend=backend, fullgraph=True)

    monkeypatch.setitem(globals(), "compiled", compiled_whole)
    weights, told, _ = train(place, lambda: Recurrent(GRUCell(3, 5)), monitor_of())
    assert len(told) == 1
    assert_close(weights, train(place, lambda: Recurrent(GRUCell(3, 5)))[0], rtol=0, atol=0)


@pytest.mark.parametrize("place", [compiled_training_step, compiled_function], ids=lambda place: place.__name__)
def test_what_the_warning_advises_has_a_layer_measured(place):
    def kept_out():
        layer = two_grus()
        layer.forward = torch.compiler.disable(layer.forward)
        return layer

    monitor = monitor_of(every_n_steps=2)
    alone, _, graphs = train(place, kept_out)
    weights, told, graphs_with = train(place, kept_out, monitor)
    assert told == []
    assert graphs_with == graphs
    assert_close(weights, alone, rtol=0, atol=0)
    assert_measured_as_eagerly(monitor, two_grus)


def test_a_compiled_forward_that_training_step_does_not_call_leaves_its_layers_measured():
    def make(rnn, backend):
        module = compiled_forward(rnn, backend)
        module.run = lambda inputs: module.net(inputs)
        return module

    monitor = monitor_of(every_n_steps=2)
    _, told, _ = train(make, two_grus, monitor)
    assert told == []
    assert_measured_as_eagerly(monitor, two_grus)


def test_what_runs_eagerly_beside_a_compiled_layer_is_measured():
    module = LastStep(torch.compile(GRU(3, 5), backend="eager"))
    module.other = GRU(3, 5)
    module.training_step = lambda batch, batch_idx: module.net(batch)[0].sum() + module.other(batch)[0].sum()
    monitor = monitor_of()
    with pytest.warns(UserWarning, match=r"does not measure 'net\.layers\.0': inside the compiled 'net'"):
        fit_module(module, batches(1), monitor)
    assert set(monitor.history) == {"other.layers.0"}


def test_the_engine_that_compiles_steps_is_measured(monkeypatch):
    steps = []
    monkeypatch.setattr(compile, "compile_flat", lambda function, _: steps.append(function) or function)
    monitor = monitor_of(every_n_steps=2)
    weights, told, _ = train(lambda net, _: Training(Encoder(net)), lambda: LSTM(3, 5, engine="compiled"), monitor)
    assert len(steps) == 2  # one forwards and one backwards
    assert told == []
    alone = train(lambda net, _: Training(Encoder(net)), lambda: LSTM(3, 5, engine="compiled"))[0]
    assert_close(weights, alone, rtol=0, atol=0)
    assert_measured_as_eagerly(monitor, lambda: LSTM(3, 5, engine="fused"))


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


@PLACES
def test_states_that_a_compiled_module_hands_out_are_not_taken_for_those_that_it_goes_on_with(place):
    name = "net.0.rnn" if place is compiled_container else "net.rnn"
    monitor = monitor_of(states={name: lambda module, args, output: output[1]})
    weights, told, _ = train(place, Decoder, monitor)
    [message] = told
    assert f"does not measure {name!r}: inside {INSIDE[place]} (torch.compile)" in message
    assert monitor.history == {}
    assert_close(weights, train(place, Decoder)[0], rtol=0, atol=0)


def test_where_the_compiler_is_told_to_take_torchs_layers_too_they_are_left_out():
    with torch._dynamo.config.patch(allow_rnn=True):
        for place in (compiled_training_step, compiled_forward, compiled_function):
            monitor = monitor_of()
            weights, told, _ = train(place, torch_lstm, monitor)
            [message] = told
            assert f"does not measure 'net.rnn': inside {INSIDE[place]} (torch.compile)" in message
            assert_close(weights, train(place, torch_lstm)[0], rtol=0, atol=0)


def test_a_layer_that_a_step_does_not_call_is_told_once_and_measured_when_it_is_called():
    module = LastStep(nn.ModuleDict({"a": torch_lstm(), "b": GRU(3, 5)}))
    module.training_step = lambda batch, batch_idx: module.net["ab"[batch_idx % 2]](batch)[0].sum()
    monitor = monitor_of()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_module(module, batches(4), monitor)
    told = [str(warning.message) for warning in caught if "GradientFlowMonitor" in str(warning.message)]
    assert [message.partition(";")[0] for message in told] == [
        "GradientFlowMonitor: 'net.b.layers.0' was not called in step 0",
        "GradientFlowMonitor: 'net.a' was not called in step 1",
    ]
    assert told[0].endswith("neither by its `step` nor in a function that torch.compile compiled")
    assert told[1].endswith("it is measured in the steps that call it"), "torch's own has no step"
    assert monitor.history["net.a"].steps == [0, 2]
    assert monitor.history["net.b.layers.0"].steps == [1, 3]


def test_a_copy_that_no_optimizer_holds_need_not_be_called():
    module = LastStep(nn.ModuleDict({"policy": torch_lstm(), "baseline": torch_lstm()}))
    module.training_step = lambda batch, batch_idx: module.net["policy"](batch)[0].sum()
    module.configure_optimizers = lambda: torch.optim.SGD(module.net["policy"].parameters(), lr=0.01)
    monitor = monitor_of()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_module(module, batches(3), monitor)
    assert not [one for one in caught if "GradientFlowMonitor" in str(one.message)]
    assert list(monitor.history) == ["net.policy"]


def test_two_monitors_measure_the_same_layer():
    module = LastStep(GRU(3, 5))
    every, last = monitor_of(), monitor_of(source="last", every_n_steps=2)
    fit_module(module, batches(3), every, last)
    curves = [monitor.history["net.layers.0"] for monitor in (every, last)]
    assert [curve.steps for curve in curves] == [[0, 1, 2], [0, 2]]
    for mine, other in zip(curves[0].norms[::2], curves[1].norms, strict=True):  # the loss is at the last step
        assert_close(mine, other, rtol=1e-6, atol=0)
    assert "run" not in vars(module.net.layers[0])
