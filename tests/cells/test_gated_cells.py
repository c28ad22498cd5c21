import math

import pytest
import torch
import zoo_gated
from torch import nn
from torch.testing import assert_close

from rnn_blocks import (
    ElmanCell,
    GRUCell,
    IndRNNCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LSTMCell,
    PeepholeLSTMCell,
    Recurrent,
    RHNCell,
    SLSTMCell,
)
from rnn_blocks.engine import map_state, state_tensors

every_gated_cell = pytest.mark.parametrize("name", zoo_gated.CELLS)


def copy_weights(of, to):
    """The parameters that both cells have under one name."""
    theirs = dict(of.named_parameters())
    with torch.no_grad():
        for name, parameter in to.named_parameters():
            if name in theirs and parameter.shape == theirs[name].shape:
                parameter.copy_(theirs[name])


def run_with_gradients(cell, inputs, engine="loop"):
    inputs = inputs.clone().requires_grad_()
    outputs, _ = Recurrent(cell, engine=engine)(inputs)
    gradients = torch.autograd.grad((outputs * torch.arange(1.0, 1 + outputs.numel()).view_as(outputs)).sum(), inputs)
    return outputs, *gradients


@every_gated_cell
def test_the_fused_engines_gradients_are_those_of_finite_differences(name):
    layer = Recurrent(zoo_gated.CELLS[name](2, 2).double(), engine="fused")
    inputs = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    start = layer.initial_state(2, inputs)
    state = [(0.5 * torch.randn_like(part)).requires_grad_() for part in state_tensors(start)]
    parameters = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def run(inputs, *tensors):
        remaining = iter(tensors[: len(state)])
        given = map_state(lambda _: next(remaining), start)
        weights = dict(zip(names, tensors[len(state) :], strict=True))
        outputs, after = torch.func.functional_call(layer, weights, (inputs, given))
        return outputs, *state_tensors(after)

    assert torch.autograd.gradcheck(run, (inputs, *state, *parameters))


@every_gated_cell
def test_a_gated_cell_takes_inputs_that_autocast_made(name):
    layer = Recurrent(zoo_gated.CELLS[name](3, 4), engine="fused")
    inputs = torch.randn(2, 5, 3)
    expected, _ = layer(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = layer(inputs.bfloat16())
    assert_close(outputs.float(), expected, rtol=0.1, atol=0.1)
    outputs.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@every_gated_cell
def test_drawing_anew_changes_weights_and_keeps_their_range(name):
    torch.manual_seed(1)
    cell = zoo_gated.CELLS[name](3, 4)
    cell.reset_parameters()
    before = {key: value.clone() for key, value in cell.named_parameters()}
    torch.manual_seed(2)
    cell.reset_parameters()
    for key, value in cell.named_parameters():
        if "weight" in key or key == "u":
            assert not torch.equal(value, before[key]), key
            assert value.abs().max() <= (1 if key == "u" else 1 / math.sqrt(cell.hidden_size)), key


def test_where_the_reset_gate_is_open_both_forms_of_the_gru_agree():
    after, before = GRUCell(3, 4).double(), GRUCell(3, 4, reset_after=False).double()
    with torch.no_grad():
        after.bias[:4] = 1e3  # r = 1
        after.bias_hn.zero_()
    copy_weights(after, before)
    inputs = torch.randn(2, 5, 3, dtype=torch.float64)
    assert_close(run_with_gradients(before, inputs), run_with_gradients(after, inputs))


def test_the_original_form_of_the_gru_has_no_kernel_and_no_second_bias():
    cell = GRUCell(3, 4, reset_after=False)
    assert not cell.native_on
    assert GRUCell(3, 4).native_on == {"cuda"}
    assert "bias_hn" not in dict(cell.named_parameters())
    inputs = torch.randn(2, 5, 3)
    with pytest.raises(ValueError, match="GRUCell has no native kernel"):
        Recurrent(cell, engine="native")(inputs)
    with torch.no_grad():
        assert_close(Recurrent(cell)(inputs), Recurrent(cell, engine="loop")(inputs))


def test_with_peepholes_of_zero_it_is_the_lstm():
    plain, cell = LSTMCell(3, 4).double(), PeepholeLSTMCell(3, 4).double()
    copy_weights(plain, cell)
    inputs = torch.randn(2, 5, 3, dtype=torch.float64)
    with_peepholes = run_with_gradients(cell, inputs)[0]
    with torch.no_grad():
        for peephole in (cell.peephole_i, cell.peephole_f, cell.peephole_o):
            peephole.zero_()
    expected = run_with_gradients(plain, inputs)
    assert_close(run_with_gradients(cell, inputs), expected)
    assert not torch.allclose(with_peepholes, expected[0])


def test_a_layer_normalised_lstm_starts_as_one_of_plain_normalisation():
    cell = LayerNormLSTMCell(3, 4)
    x, h, c = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    gates = nn.LayerNorm(16)(x @ cell.weight_ih.T) + nn.LayerNorm(16)(h @ cell.weight_hh.T)
    i, f, g, o = gates.chunk(4, dim=1)
    expected_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    expected_h = o.sigmoid() * nn.LayerNorm(4)(expected_c).tanh()
    assert_close(cell(x, (h, c)), (expected_h, (expected_h, expected_c)))


def test_a_layer_normalised_gru_starts_as_one_of_plain_normalisation():
    cell = LayerNormGRUCell(3, 4)
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    from_input, from_before = x @ cell.weight_ih.T, h @ cell.weight_hh.T
    gates = nn.LayerNorm(8)(from_input[:, :8]) + nn.LayerNorm(8)(from_before[:, :8])
    r, z = gates.sigmoid().chunk(2, dim=1)
    n = (nn.LayerNorm(4)(from_input[:, 8:]) + r * nn.LayerNorm(4)(from_before[:, 8:])).tanh()
    assert_close(cell(x, h)[0], (1 - z) * n + z * h)


@pytest.mark.parametrize("kind", [LayerNormLSTMCell, LayerNormGRUCell])
def test_the_scale_of_the_weights_does_not_matter_to_a_layer_normalised_cell(kind):
    cell = kind(3, 4, eps=1e-12).double()
    inputs = torch.randn(2, 5, 3, dtype=torch.float64)
    expected = run_with_gradients(cell, inputs)
    with torch.no_grad():
        cell.weight_ih *= 7.0
        cell.weight_hh *= 0.1
    assert_close(run_with_gradients(cell, inputs), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [LayerNormLSTMCell, LayerNormGRUCell])
def test_gains_start_at_one_and_biases_at_zero(kind):
    for key, value in kind(3, 4).named_parameters():
        if not key.startswith("weight"):
            assert value.unique().tolist() == [1.0 if key.startswith("gain") else 0.0], key


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_an_indrnn_is_an_elman_network_with_a_diagonal_matrix(nonlinearity):
    cell, twin = IndRNNCell(3, 4, nonlinearity=nonlinearity), ElmanCell(3, 4, nonlinearity=nonlinearity)
    copy_weights(cell, twin)
    with torch.no_grad():
        twin.weight_hh.copy_(torch.diag(cell.u))
    inputs = torch.randn(2, 5, 3)
    assert_close(run_with_gradients(cell, inputs), run_with_gradients(twin, inputs))


def test_an_indrnns_recurrent_weights_start_uniform_within_zero_and_one():
    u = IndRNNCell(1, 2000).u
    assert 0 <= u.min() < 0.01 < 0.99 < u.max() <= 1
    assert abs(u.mean() - 0.5) < 0.05


def stabilised(cell, inputs):
    """The paper's eqs. 8-17 as they stand, with ``n`` and a running maximum ``m``, from a memory of nothing."""
    c = n = torch.zeros(len(inputs), cell.hidden_size, dtype=inputs.dtype)
    h, m, outputs = c, None, []
    for x in inputs.unbind(1):
        i, f, z, o = (x @ cell.weight_ih.T + h @ cell.weight_hh.T + cell.bias).chunk(4, dim=1)
        log_f = nn.functional.logsigmoid(f) if cell.forget_gate == "sigmoid" else f
        before, m = m, i if m is None else torch.maximum(log_f + m, i)
        f = torch.zeros_like(f) if before is None else torch.exp(log_f + before - m)
        i = torch.exp(i - m)
        c, n = f * c + i * torch.tanh(z), f * n + i
        h = torch.sigmoid(o) * c / n
        outputs.append(h)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exponential"])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3])
def test_an_slstm_is_the_papers_stabilised_one_however_large_its_gates(forget_gate, scale):
    cell = SLSTMCell(3, 4, forget_gate=forget_gate).double()
    inputs = scale * torch.randn(2, 6, 3, dtype=torch.float64)
    leaf = inputs.clone().requires_grad_()
    expected = stabilised(cell, leaf)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    for engine in ("loop", "fused"):
        x = inputs.clone().requires_grad_()
        outputs, state = Recurrent(cell, engine=engine)(x)
        assert_close(outputs, expected, rtol=1e-8, atol=1e-8)
        assert_close(torch.autograd.grad(outputs.sum(), x)[0], gradient, rtol=1e-7, atol=1e-8)
        assert all(part.isfinite().all() for part in state_tensors(state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", ["loop", "fused"])
def test_an_slstm_stays_finite_with_huge_inputs(engine, dtype):
    cell = SLSTMCell(3, 4, forget_gate="exponential").to(dtype)
    inputs = (1e6 * torch.randn(2, 20, 3)).to(dtype).requires_grad_()
    outputs, state = Recurrent(cell, engine=engine)(inputs)
    outputs.sum().backward()
    finite = [outputs, *state_tensors(state), inputs.grad, *(parameter.grad for parameter in cell.parameters())]
    assert all(tensor.isfinite().all() for tensor in finite)
    assert outputs.abs().max() <= 1


def test_the_first_step_of_an_slstm_writes_all_of_the_cell():
    cell = SLSTMCell(3, 4)
    inputs = torch.randn(2, 3) - 5
    _, (_, c, m) = cell(inputs)
    i, _, z, _ = cell.project(inputs).chunk(4, dim=1)
    assert_close((c, m), (z.tanh(), i))


def test_the_heads_of_an_slstm_do_not_read_each_other():
    cell = SLSTMCell(2, 6, num_heads=3)
    assert cell.weight_hh.shape == (24, 2)
    assert [tuple(block.shape) for block in cell.recurrent_blocks()] == [(2, 2)] * 12
    state = cell.initial_state(1, torch.zeros(1))
    h = torch.zeros(1, 6, requires_grad=True)
    output, _ = cell.advance(cell.project(torch.ones(1, 2)), (h, torch.randn(1, 6), state[2] * 0), h)
    reads = torch.stack([torch.autograd.grad(one, h, retain_graph=True)[0][0] for one in output[0]])
    assert torch.equal(reads != 0, torch.block_diag(*[torch.ones(2, 2)] * 3) != 0)


def test_a_recurrent_highway_network_of_depth_one_by_hand():
    cell = RHNCell(1, 1, depth=1)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.tensor([[0.5], [-1.0]]))
        cell.weight_hh.copy_(torch.tensor([[2.0], [0.25]]))
        cell.bias.copy_(torch.tensor([0.1, 0.2]))
    g, t = math.tanh(0.5 * 3 + 2.0 * 0.4 + 0.1), 1 / (1 + math.exp(-(-1.0 * 3 + 0.25 * 0.4 + 0.2)))
    output, state = cell(torch.tensor([[3.0]]), torch.tensor([[0.4]]))
    assert_close(output.item(), g * t + 0.4 * (1 - t), rtol=1e-6, atol=1e-6)
    assert output is state


def test_a_recurrent_highway_network_with_its_gates_shut_carries_its_state_through():
    cell = RHNCell(3, 4, depth=6, transform_bias=-50.0)
    state = torch.randn(2, 4)
    assert_close(cell(torch.randn(2, 3), state)[0], state)
    assert len(cell.recurrent_blocks()) == 12


@pytest.mark.parametrize("draw", ["reset_parameters", "reset_biases"])
def test_the_transform_gates_of_every_layer_start_at_the_bias_asked_for(draw):
    cell = RHNCell(3, 4, depth=3, transform_bias=-1.5)
    getattr(cell, draw)()
    for layer in [cell, *cell.deeper]:
        assert layer.bias[4:].tolist() == [-1.5] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerNormLSTMCell(3, 4, eps=0.0), "eps must be above 0, got 0.0"),
        (lambda: LayerNormGRUCell(3, 4, eps=-1.0), "eps must be above 0, got -1.0"),
        (lambda: IndRNNCell(3, 4, nonlinearity="gelu"), "nonlinearity must be 'relu' or 'tanh', got 'gelu'"),
        (lambda: SLSTMCell(3, 4, forget_gate="tanh"), "forget_gate must be 'sigmoid' or 'exponential', got 'tanh'"),
        (lambda: SLSTMCell(3, 4, num_heads=3), "num_heads must divide hidden_size, 4, got 3"),
        (lambda: SLSTMCell(3, 4, num_heads=0), "num_heads must divide hidden_size, 4, got 0"),
        (lambda: RHNCell(3, 4, depth=0), "depth must be at least 1, got 0"),
        (lambda: PeepholeLSTMCell(0, 4), "input_size must be at least 1, got 0"),
        (lambda: IndRNNCell(3, 0), "hidden_size must be at least 1, got 0"),
        (lambda: SLSTMCell(3, 0), "hidden_size must be at least 1, got 0"),
    ],
)
def test_a_bad_argument_is_refused_with_its_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
