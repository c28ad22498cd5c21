"""The gradient-flow monitor at layers that are changed, subclassed, or called in another way than torch's."""

import pytest
import torch
from flow_trainings import KeepTrueNorms, LastStep, batches, monitor_of, torch_lstm
from small_trainings import fit_module
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from rnn_blocks import GRU, Recurrent


@pytest.mark.parametrize("method", ["step", "run"])
def test_a_method_put_on_a_layer_or_its_cell_stays_there_and_is_measured(method):
    def train(*callbacks):
        torch.manual_seed(0)
        layer = GRU(3, 5).layers[0]
        owner = layer if method == "run" else layer.cell
        plain = getattr(owner, method)
        changed = vars(owner)[method] = lambda inputs, *others: plain(inputs * 2, *others)
        module = LastStep(layer)
        fit_module(module, batches(3), *callbacks)
        assert vars(owner)[method] is changed
        return module.state_dict()

    monitors = monitor_of(), monitor_of(source="last")
    assert_close(train(*monitors), train(), rtol=0, atol=0)
    for monitor in monitors:
        assert monitor.history["net"].steps == [0, 1, 2]


def test_a_run_that_is_not_made_of_the_cells_steps_is_told_of():
    layer = Recurrent(GRU(3, 5).layers[0].cell)
    plain = GRU(3, 5).layers[0]
    vars(layer)["run"] = lambda *args: plain.run(*args)
    with pytest.warns(UserWarning, match="'net' was not measured: in 6 steps of time it took 0 of its cell's"):
        fit_module(LastStep(layer), batches(1), monitor_of(layers=["net"]))


class OutputsAlone(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


class WithLengths(nn.LSTM):
    def forward(self, input, lengths):
        return super().forward(input)


class OtherName(nn.LSTM):
    def forward(self, x, hx=None):
        return super().forward(x, hx)


class Three(nn.LSTM):
    def forward(self, input, hx=None):
        outputs, state = super().forward(input, hx)
        return outputs, state, outputs[:, -1]


class AList(nn.LSTM):
    def forward(self, input, hx=None):
        return list(super().forward(input, hx))


CALLS = {
    "outputs alone": (OutputsAlone, lambda net, batch: net(batch)),
    "outputs alone, of two": (OutputsAlone, lambda net, batch: net(batch[:2])),
    "lengths": (WithLengths, lambda net, batch: net(batch, torch.tensor([2, 3, 4, 5]))[0]),
    "other name": (OtherName, lambda net, batch: net(x=batch)[0]),
    "three": (Three, lambda net, batch: net(batch)[2]),
    "a list": (AList, lambda net, batch: torch.stack(net(batch)[:1])),
}


class Calls(LastStep):
    """A net called by a function, which gives what is to be small."""

    def __init__(self, net, call):
        super().__init__(net)
        self.call = call

    def training_step(self, batch, batch_idx):
        return self.call(self.net, batch).square().mean()


@pytest.mark.parametrize("name", CALLS)
def test_a_subclass_of_torchs_with_another_call_trains_as_ever_and_is_told_of(name):
    kind, call = CALLS[name]

    def train(*callbacks):
        torch.manual_seed(0)
        module = Calls(kind(3, 5, batch_first=True), call)
        fit_module(module, batches(2), *callbacks)
        return module.state_dict()

    with pytest.warns(UserWarning, match="'net' was not measured: it takes or gives something else than torch's LSTM"):
        measured = train(monitor_of())
    assert_close(measured, train(), rtol=0, atol=0)


def test_a_hook_that_changes_what_a_layer_gives_is_let_do_so():
    net = torch_lstm()
    net.register_forward_hook(lambda module, args, output: output[0])
    with pytest.warns(UserWarning, match="'net' was not measured: it takes or gives something else"):
        fit_module(Calls(net, lambda net, batch: net(batch)), batches(1), monitor_of())


def test_a_subclass_called_as_torchs_own_is_measured():
    truth, monitor = KeepTrueNorms(), monitor_of()
    torch.manual_seed(0)
    fit_module(LastStep(OtherName(3, 5, batch_first=True)), batches(2), monitor, truth)
    assert_close(monitor.history["net"].norms[1].tolist(), truth.norms[1], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("make", [torch_lstm, lambda: GRU(3, 5)], ids=["torch", "ours"])
def test_an_empty_batch_is_not_measured_and_the_next_one_is(make):
    monitor = monitor_of()
    module = Calls(make(), lambda net, batch: net(batch)[0].sum(1))
    module.training_step = lambda batch, batch_idx: module.net(batch[: 4 * batch_idx])[0].square().sum()
    fit_module(module, batches(3), monitor)
    assert [history.steps for history in monitor.history.values()] == [[1, 2]]


def test_outputs_changed_in_place_are_measured_as_those_that_are_not():
    histories = []
    for relu in (torch.relu_, torch.relu):
        torch.manual_seed(0)
        monitor = monitor_of()
        net = nn.GRU(3, 5, batch_first=True)
        fit_module(Calls(net, lambda net, batch, relu=relu: relu(net(batch)[0])), batches(2), monitor)
        histories.append(monitor.history["net"].norms)
    assert len(histories[0]) == 2
    assert_close(*histories, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda net, batch: net[1](batch)[0].detach() + net[0](batch)[0], "no gradient came back to what it gave"),
        (
            lambda net, batch: (
                checkpoint(lambda x: net[1](x)[0], batch.requires_grad_(), use_reentrant=True) + net[0](batch)[0]
            ),
            "it runs again in the backward pass",
        ),
    ],
)
def test_a_layer_that_no_gradient_is_seen_to_reach_is_told_of(call, told):
    monitor = monitor_of()
    with pytest.warns(UserWarning, match=rf"'net\.1' was not measured.*{told}"):
        fit_module(Calls(nn.ModuleList([torch_lstm(), torch_lstm()]), call), batches(1), monitor)
    assert set(monitor.history) == {"net.0"}


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_step_without_a_backward_pass_is_not_measured_and_the_next_one_is():
    class Skips(LastStep):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx else None

    monitor = monitor_of()
    fit_module(Skips(torch_lstm()), batches(3), monitor)
    assert monitor.history["net"].steps == [1, 2]
