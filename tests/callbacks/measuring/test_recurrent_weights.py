import pytest
import torch
from small_trainings import Regression, Remember, fit_module
from torch import nn
from torch.testing import assert_close

import rnn_blocks
from rnn_blocks.callbacks import AdaptiveGradientClipping, Fixed, GradientNormMonitor
from rnn_blocks.callbacks.measuring.recurrent_weights import gate_norms, recurrent_modules

LAYERS = {
    "lstm": (lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, batch_first=True), "ifgo"),
    "gru": (lambda: nn.GRU(3, 4, batch_first=True), "rzn"),
    "rnn": (lambda: nn.RNN(3, 4, batch_first=True), ""),
    "LSTM": (lambda: rnn_blocks.LSTM(3, 4), "ifgo"),
    "GRU": (lambda: rnn_blocks.GRU(3, 4), "rzn"),
    "Elman": (lambda: rnn_blocks.Elman(3, 4), ""),
    "PeepholeLSTM": (lambda: rnn_blocks.PeepholeLSTM(3, 4), "ifgo"),
    "LayerNormLSTM": (lambda: rnn_blocks.LayerNormLSTM(3, 4), "ifgo"),
    "LayerNormGRU": (lambda: rnn_blocks.LayerNormGRU(3, 4), "rzn"),
    "SLSTM": (lambda: rnn_blocks.SLSTM(3, 4, num_heads=2), "ifzo"),
    "MinGRU": (lambda: rnn_blocks.MinGRU(3, 4), "zn"),
    "MinLSTM": (lambda: rnn_blocks.MinLSTM(3, 4), "fin"),
    "SRU": (lambda: rnn_blocks.SRU(3, 4), "frn"),
    "RGLRU": (lambda: rnn_blocks.RGLRU(3, 4), "ri"),
}


class Last(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer(torch.zeros(1, 2, 3))[0].shape[-1], 1)

    def forward(self, inputs):
        return self.head(self.layer(inputs)[0])


class Remembers(Regression):
    """Keeps each parameter's gradient, as it is before clipping, in float64."""

    def __init__(self, make_optimizer, net):
        super().__init__(make_optimizer, net)
        self.gradients = []

    def on_after_backward(self):
        self.gradients.append({name: p.grad.double().clone() for name, p in self.named_parameters()})


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 2, 5, 3, generator=generator)
    return list(zip(inputs, inputs.sum(-1, keepdim=True).sin(), strict=True))


def total(tensors):
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", LAYERS)
def test_recurrent_and_input_weights_and_gates_are_told_apart(name):
    make, gates = LAYERS[name]
    module, logger = Remembers(sgd, Last(make())), Remember()
    fit_module(module, batches(2), GradientNormMonitor(gates=True), logger=logger)
    where = "net.layer" if name.islower() else next(n for n, p in module.named_parameters() if "weight_ih" in n)
    where = where.removesuffix(".weight_ih")
    for gradients, (_, row) in zip(module.gradients, logger.rows, strict=True):
        own = {key.removeprefix(f"{where}."): g for key, g in gradients.items() if key.startswith(f"{where}.")}
        inputs = [g for key, g in own.items() if key.startswith("weight_ih")]
        recurrent = [g for key, g in own.items() if key.startswith("weight_hh") or key == "forgetting"]
        assert_close(row[f"grad_norm/input/{where}"], total(inputs), rtol=1e-5, atol=0)
        assert (f"grad_norm/recurrent/{where}" in row) == bool(recurrent)
        if recurrent:
            assert_close(row[f"grad_norm/recurrent/{where}"], total(recurrent), rtol=1e-5, atol=0)
        assert {key for key in row if "/gate/" in key} == {f"grad_norm/gate/{where}/{gate}" for gate in gates}
        for k, gate in enumerate(gates):
            rows = [g[4 * k : 4 * k + 4] for g in own.values() if len(g) >= 4 * len(gates)]
            assert_close(row[f"grad_norm/gate/{where}/{gate}"], total(rows), rtol=1e-5, atol=0)


def test_the_gates_of_a_gru_are_reset_update_and_candidate():
    """Only the candidate's rows have a gradient where the output is all candidate: z = σ(-50) = 0."""
    for cell in (nn.GRUCell(2, 3), rnn_blocks.GRUCell(2, 3)):
        with torch.no_grad():
            (cell.bias_ih if isinstance(cell, nn.GRUCell) else cell.bias)[3:6] = -50.0
        output = cell(torch.ones(1, 2))
        (output if isinstance(output, torch.Tensor) else output[0]).sum().backward()
        [module] = recurrent_modules(cell)
        norms = dict(zip(module.gates, gate_norms(module, set(cell.parameters())).tolist(), strict=True))
        assert norms["n"] > 0.1
        assert norms["z"] < 1e-15


VECTORS = ("IndRNN", "LRU", "RGLRU")


def test_a_state_that_is_carried_by_a_vector_has_recurrent_weights_too():
    found = {name: recurrent_modules(layer(2, 3))[0] for name, layer in vars(rnn_blocks).items() if name in VECTORS}
    shapes = {name: [tuple(weight.shape) for weight in module.recurrent] for name, module in found.items()}
    assert shapes == {"IndRNN": [(3,)], "LRU": [(3,), (3,)], "RGLRU": [(3,)]}


@pytest.mark.parametrize("monitor_first", [True, False])
def test_gates_are_measured_before_clipping_whatever_the_order_of_callbacks(monitor_first):
    """Trap 7: a monitor listed after a clipper sees clipped norms."""
    rows = {}
    for clipped in (True, False):
        torch.manual_seed(0)
        logger = Remember()
        callbacks = [GradientNormMonitor(gates=True)] + [AdaptiveGradientClipping(Fixed(0.01))] * clipped
        ordered = callbacks if monitor_first else callbacks[::-1]
        fit_module(Regression(sgd, Last(nn.LSTM(3, 4))), batches(1), *ordered, logger=logger)
        rows[clipped] = {name: norm for _, row in logger.rows for name, norm in row.items() if "/gate/" in name}
    assert len(rows[True]) == 4
    assert_close(rows[True], rows[False], rtol=1e-6, atol=0)


def test_recurrent_modules_past_max_modules_share_their_metrics():
    logger = Remember()
    net = Last(rnn_blocks.LSTM(3, 4, num_layers=4))
    fit_module(Regression(sgd, net), batches(1), GradientNormMonitor(gates=True, max_modules=2), logger=logger)
    [(_, row)] = logger.rows
    for kind in ("recurrent/{}", "input/{}", "gate/{}/f"):
        names = [name for name in row if name.startswith(f"grad_norm/{kind.split('/')[0]}/")]
        assert len(names) == 3 * (4 if "gate" in kind else 1)
        assert f"grad_norm/{kind.format('other')}" in names


def test_gate_norms_of_sparse_half_and_huge_gradients_are_right():
    cell = nn.LSTMCell(2, 3)
    [module] = recurrent_modules(cell)
    assert gate_norms(module, set(cell.parameters())) is None
    generator = torch.Generator().manual_seed(0)
    expected = torch.zeros(4, dtype=torch.float64)
    for parameter in cell.parameters():
        gradient = torch.randn(parameter.shape, generator=generator) * 1e25
        parameter.grad = gradient.to_sparse() if parameter.dim() == 2 else gradient
        expected += gradient.double().reshape(4, -1).square().sum(1)
    assert_close(gate_norms(module, set(cell.parameters())), expected.sqrt())
    half = nn.LSTMCell(2, 3).half()
    for parameter in half.parameters():
        parameter.grad = torch.full_like(parameter, 60_000.0)
    [module] = recurrent_modules(half)
    assert_close(gate_norms(module, set(half.parameters())), torch.full((4,), 60_000 * 21**0.5).double())


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh"])
@pytest.mark.parametrize("make", [lambda: nn.GRU(3, 4), lambda: rnn_blocks.GRU(3, 4)], ids=["torch", "ours"])
def test_parametrised_weights_are_measured_at_what_is_trained(make, name):
    net = make()
    [cell] = [part for part in net.modules() if any(key.startswith(name) for key in part._parameters)]
    weight = next(key for key in cell._parameters if key.startswith(name))
    nn.utils.parametrize.register_parametrization(cell, weight, Doubled())
    net(torch.randn(2, 5, 3))[0].sum().backward()
    [module] = recurrent_modules(net)
    gradients = {key: parameter.grad.double() for key, parameter in net.named_parameters()}
    assert len(gradients) == 4
    for part, found in (("weight_ih", module.inputs), ("weight_hh", module.recurrent)):
        expected = [gradient for key, gradient in gradients.items() if part in key]
        assert_close([parameter.grad.double() for parameter in found], expected, rtol=0, atol=0)
    rows = [gradient.reshape(len(gradient) // 4, -1) for gradient in gradients.values()]
    expected = torch.stack([torch.cat([own[k] for own in rows if len(own) == 3]).norm() for k in range(3)])
    assert_close(gate_norms(module, set(net.parameters())), expected)


def test_both_parts_of_a_normed_weight_and_the_one_of_a_pruned_are_recurrent_weights():
    net = nn.GRU(3, 4)
    nn.utils.parametrizations.weight_norm(net, "weight_hh_l0")
    shapes = [tuple(weight.shape) for weight in recurrent_modules(net)[0].recurrent]
    assert shapes == [(12, 1), (12, 4)]
    cell = rnn_blocks.RGLRUCell(3, 4)
    [name] = cell.recurrent_names
    nn.utils.prune.random_unstructured(cell, name, amount=0.5)
    assert recurrent_modules(cell)[0].recurrent == [getattr(cell, f"{name}_orig")]


def test_a_compiled_layer_goes_by_its_own_name():
    net = Last(nn.GRU(3, 4))
    net.layer = torch.compile(net.layer, backend="eager")
    assert [module.name for module in recurrent_modules(net)] == ["layer"]
