import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from rnn_blocks import (
    GRU,
    LSTM,
    Cell,
    ElmanCell,
    GRUCell,
    IndRNNCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    Leaky,
    LSTMCell,
    PeepholeLSTMCell,
    RHNCell,
    SLSTMCell,
    Stack,
    init_chrono,
    init_identity,
    init_orthogonal,
    init_uniform,
    init_unit_forget_bias,
    initialise,
)

SIZES = (5, 8)
# by hand: where the gates that keep the past and let the present in lie in the bias
LSTM_LIKE = {
    "lstm": LSTMCell,
    "peephole": PeepholeLSTMCell,
    "layer norm lstm": LayerNormLSTMCell,
    "slstm": lambda i, h: SLSTMCell(i, h, num_heads=2),
}
GRU_LIKE = {
    "gru": GRUCell,
    "gru of the paper": lambda i, h: GRUCell(i, h, reset_after=False),
    "layer norm gru": LayerNormGRUCell,
}
WITHOUT = {
    "elman": ElmanCell,
    "rhn": RHNCell,
    "slstm, exponential": lambda i, h: SLSTMCell(i, h, forget_gate="exponential"),
}
FORGETTING = LSTM_LIKE | GRU_LIKE
CELLS = FORGETTING | WITHOUT


def values_of(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def changed(before, module):
    return {name for name, value in values_of(module).items() if not torch.equal(value, before[name])}


def squares_of(weight):
    return weight.detach().unflatten(0, (-1, weight.shape[1]))


@pytest.mark.parametrize("name", CELLS)
def test_orthogonal_makes_the_recurrent_block_of_every_gate_orthogonal_by_itself(name):
    cell = CELLS[name](*SIZES)
    before = values_of(cell)
    assert init_orthogonal(cell) is cell
    recurrent = [parameter for key, parameter in cell.named_parameters() if key.endswith("weight_hh")]
    assert recurrent
    for weight in recurrent:
        blocks = squares_of(weight)
        eye = torch.eye(weight.shape[1]).expand_as(blocks)
        assert_close(blocks @ blocks.mT, eye, rtol=1e-5, atol=1e-5)
        assert not torch.equal(blocks[0], blocks[-1]) or len(blocks) == 1
    assert not any("gain" in key or "peephole" in key for key in changed(before, cell))


@pytest.mark.parametrize("name", CELLS)
def test_orthogonal_draws_input_weights_as_glorot_does_for_one_gate_and_zeroes_the_biases(name):
    cell = init_orthogonal(CELLS[name](50, 64))
    bound = math.sqrt(6 / (50 + 64))
    assert 0.98 * bound < cell.weight_ih.abs().max() <= bound
    assert_close(cell.weight_ih.std().item(), bound / math.sqrt(3), rtol=0.05, atol=0.0)
    biases = [parameter for key, parameter in cell.named_parameters() if key.rpartition(".")[2].startswith("bias")]
    assert biases
    if name != "rhn":
        assert not any(bias.any() for bias in biases)
    else:
        for bias in biases:  # its transform gates start shut
            assert bias.tolist() == [0.0] * 64 + [-2.0] * 64


def test_fused_blocks_of_one_orthogonal_matrix_would_not_be_orthogonal():
    fused = nn.init.orthogonal_(torch.empty(32, 8))
    assert not torch.allclose(fused[:8] @ fused[:8].T, torch.eye(8), atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_initialisers_keep_the_dtype(dtype):
    cell = initialise(LSTMCell(*SIZES).to(dtype), "orthogonal+chrono(100)")
    assert {parameter.dtype for parameter in cell.parameters()} == {dtype}
    tolerance = 1e-12 if dtype == torch.float64 else 0.02
    blocks = squares_of(cell.weight_hh).double()
    assert_close(blocks @ blocks.mT, torch.eye(8).double().expand_as(blocks), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FORGETTING)
def test_unit_forget_bias_is_exactly_one_and_touches_nothing_else(name):
    cell = FORGETTING[name](*SIZES)
    before = values_of(cell)
    init_unit_forget_bias(cell)
    expected = before["bias"].clone()
    expected[8:16] = 1
    assert torch.equal(cell.bias, expected)
    assert changed(before, cell) == {"bias"}


@pytest.mark.parametrize("name", FORGETTING)
def test_an_open_forget_gate_keeps_the_past(name):
    cell = init_orthogonal(FORGETTING[name](*SIZES)).double()
    with torch.no_grad():
        cell.bias.fill_(-50)
        cell.gate_bias(cell.forget_block).fill_(50)
    inputs, state = torch.randn(3, 5).double(), cell.initial_state(3, torch.zeros(1).double())
    kept = 1 if isinstance(state, tuple) else 0
    if kept:
        state = (state[0], torch.randn(3, 8).double(), *(torch.zeros_like(part) for part in state[2:]))
        after = cell(inputs, state)[1][1]
    else:
        state = torch.randn(3, 8).double()
        after = cell(inputs, state)[1]
    assert_close(after, state[1] if kept else state)


@pytest.mark.parametrize("name", LSTM_LIKE)
def test_chrono_spreads_the_forget_bias_and_mirrors_it_in_the_input_gate(name):
    cell = LSTM_LIKE[name](5, 400)
    before = values_of(cell)
    init_chrono(cell, 784)
    i, f = cell.bias.detach()[:400], cell.bias.detach()[400:800]
    assert torch.equal(i, -f)
    times = f.exp()
    assert 1 <= times.min() < 20
    assert 760 < times.max() <= 783.001
    assert abs(times.mean() - 392) < 40  # uniform: 5 times 783 / sqrt(12 * 400)
    assert torch.equal(cell.bias[800:], before["bias"][800:])
    assert changed(before, cell) == {"bias"}


@pytest.mark.parametrize("name", GRU_LIKE)
def test_chrono_sets_the_update_gate_of_a_gru(name):
    cell = GRU_LIKE[name](5, 400)
    before = values_of(cell)
    init_chrono(cell, 784)
    times = cell.bias.detach()[400:800].exp()
    assert 1 <= times.min() < 20
    assert 760 < times.max() <= 783.001
    assert torch.equal(cell.bias[:400], before["bias"][:400])
    assert torch.equal(cell.bias[800:], before["bias"][800:])
    assert changed(before, cell) == {"bias"}


def test_chrono_of_the_shortest_dependency_has_gates_half_open():
    cell = init_chrono(LSTMCell(*SIZES), 2)
    assert not cell.bias[:16].any()


@pytest.mark.parametrize("name", CELLS)
def test_identity_puts_the_scale_on_the_diagonal_of_each_block(name):
    cell = CELLS[name](*SIZES)
    before = values_of(cell)
    init_identity(cell, 0.25)
    for block in squares_of(cell.weight_hh):
        assert torch.equal(block, 0.25 * torch.eye(len(block)))
    assert torch.equal(cell.weight_ih, before["weight_ih"])
    if name != "rhn":
        assert not cell.bias.any()


def test_an_irnn_keeps_its_state_without_inputs():
    cell = init_identity(ElmanCell(*SIZES, nonlinearity="relu"))
    state = torch.rand(3, 8)
    output, _ = cell(torch.zeros(3, 5), state)
    assert torch.equal(output, state)


def test_uniform_is_what_a_cell_starts_with():
    for make in [*CELLS.values(), IndRNNCell]:
        torch.manual_seed(5)
        cell = make(*SIZES)
        other = values_of(cell)
        state = torch.get_rng_state()
        cell.reset_parameters()
        expected = values_of(cell)
        torch.set_rng_state(state)
        init_uniform(cell)
        assert not changed(expected, cell)
        assert changed(other, cell)
    weights = init_uniform(LSTMCell(50, 64)).weight_hh
    assert 0.98 / 8 < weights.abs().max() <= 1 / 8


def test_a_cell_of_ones_own_is_left_to_itself_by_torchs_beginning():
    class Decay(Cell):
        def step(self, projected, state):
            return state, state

    cell = Decay(3, 3)
    assert initialise(cell, "torch") is cell
    for init in ("orthogonal", "identity", "unit-forget-bias", "chrono(9)"):
        with pytest.raises(ValueError, match="Decay holds no cell with gates, such as an LSTMCell, to initialise"):
            initialise(cell, init)


STRINGS = {
    "torch": init_uniform,
    "orthogonal": init_orthogonal,
    "identity": init_identity,
    "identity(0.5)": lambda cell: init_identity(cell, 0.5),
    "identity(-1e-2)": lambda cell: init_identity(cell, -0.01),
    "unit-forget-bias": init_unit_forget_bias,
    "chrono(784)": lambda cell: init_chrono(cell, 784),
    "orthogonal+chrono(784)": lambda cell: init_chrono(init_orthogonal(cell), 784),
    "chrono(784) + orthogonal": lambda cell: init_chrono(init_orthogonal(cell), 784),
    "torch+unit-forget-bias": lambda cell: init_unit_forget_bias(init_uniform(cell)),
    "identity(0.5)+unit-forget-bias": lambda cell: init_unit_forget_bias(init_identity(cell, 0.5)),
}


@pytest.mark.parametrize("init", STRINGS)
def test_a_string_does_what_the_functions_do(init):
    cell = LSTMCell(*SIZES)
    twin = copy.deepcopy(cell)
    torch.manual_seed(1)
    assert initialise(cell, init) is cell
    torch.manual_seed(1)
    STRINGS[init](twin)
    assert not changed(values_of(twin), cell)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("chorno(784)", "'chorno\\(784\\)' is not known"),
        ("", "'' is not known"),
        ("orthogonal+", "'' is not known"),
        ("Orthogonal", "'Orthogonal' is not known"),
        ("orthogonal(2)", "'orthogonal\\(2\\)' is not known"),
        ("orthogonal(", "'orthogonal\\(' is not known"),
        ("chrono", "'chrono' is not known"),
        ("chrono()", "invalid literal for int"),
        ("chrono(7.5)", "invalid literal for int"),
        ("chrono(1)", "max_length must be at least 2 steps, got 1"),
        ("identity(much)", "could not convert string to float: 'much'"),
        ("identity(nan)", "scale must be finite, got nan"),
        ("orthogonal+identity", "sets the weights 2 times"),
        ("torch+chrono(9)+unit-forget-bias", "sets the biases 2 times"),
        ("orthogonal+chrono(1)", "max_length must be at least 2 steps, got 1"),
    ],
)
def test_a_string_that_is_wrong_is_refused_with_the_choices_before_anything_is_drawn(init, message):
    cell = LSTMCell(*SIZES)
    before, state = values_of(cell), torch.get_rng_state()
    with pytest.raises(ValueError, match=f"{message}.*one of 'torch', 'orthogonal', 'identity'") as caught:
        initialise(cell, init)
    assert repr(init) in str(caught.value)
    assert not changed(before, cell)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize("init", ["orthogonal+unit-forget-bias", "orthogonal+chrono(9)"])
def test_cells_without_a_forget_gate_say_so_before_anything_is_drawn(name, init):
    stack = nn.ModuleList([LSTMCell(*SIZES), WITHOUT[name](*SIZES)])
    before = values_of(stack)
    message = f"{type(stack[1]).__name__} has no forget gate whose bias could be set, as LSTMCell and GRUCell have"
    with pytest.raises(ValueError, match=message):
        initialise(stack, init)
    assert not changed(before, stack)
    for function in (init_unit_forget_bias, lambda module: init_chrono(module, 9)):
        with pytest.raises(ValueError, match=message):
            function(stack)
    assert not changed(before, stack)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="max_length must be at least 2 steps, got 1"):
        init_chrono(LSTMCell(*SIZES), 1)
    with pytest.raises(ValueError, match="scale must be finite, got inf"):
        init_identity(LSTMCell(*SIZES), math.inf)


def test_wrappers_layers_and_stacks_are_reached_through():
    stack = Stack([LSTM(5, 8, num_layers=2), GRU(8, 8)])
    for module in (stack, Leaky(GRUCell(*SIZES), time_constant=2.0)):
        initialise(module, "orthogonal+unit-forget-bias")
        cells = [part for part in module.modules() if isinstance(part, LSTMCell | GRUCell)]
        assert cells
        for cell in cells:
            assert cell.bias[8:16].tolist() == [1.0] * 8
            assert cell.bias.sum() == 8
            blocks = squares_of(cell.weight_hh)
            assert_close(blocks @ blocks.mT, torch.eye(8).expand_as(blocks), rtol=1e-5, atol=1e-5)


COMPUTED = {
    "weight norm": lambda cell, name: parametrizations.weight_norm(cell, name),
    "older weight norm": lambda cell, name: nn.utils.weight_norm(cell, name),
    "pruned": lambda cell, name: prune.identity(cell, name),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("init", STRINGS)
def test_computed_weights_are_set_as_plain_ones_are(init, compute):
    plain = LSTMCell(*SIZES)
    cell = Leaky(copy.deepcopy(plain), time_constant=2.0)
    for name in ("weight_ih", "weight_hh"):
        compute(cell.cell, name)
    prune.identity(cell.cell, "bias")
    for module in (plain, cell):
        torch.manual_seed(1)
        assert initialise(module, init) is module
    plain(torch.randn(3, 5))
    cell.cell(torch.randn(3, 5))  # before which they are computed
    for name, value in plain.named_parameters():
        assert_close(getattr(cell.cell, name), value, rtol=1e-5, atol=1e-6)


def test_pruned_weights_stay_pruned():
    cell = ElmanCell(3, 3)
    mask = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    prune.custom_from_mask(cell, "weight_hh", mask)
    init_identity(cell)
    assert torch.equal(cell.weight_hh, torch.eye(3) * mask)
    assert torch.equal(cell.weight_hh_orig, torch.eye(3))
    assert cell.weight_hh_orig.requires_grad


class Clamped(nn.Module):
    def forward(self, weight):
        return weight.clamp(-0.2, 0.2)


def test_a_parametrised_weight_that_cannot_be_set_is_named_and_nothing_is_changed():
    cell = LSTMCell(*SIZES)
    parametrize.register_parametrization(cell, "bias", Clamped())
    before = values_of(cell)
    for init in ("torch", "orthogonal+chrono(9)", "unit-forget-bias"):
        with pytest.raises(ValueError, match="bias is computed by Clamped without a right_inverse"):
            initialise(cell, init)
        assert not changed(before, cell)


def test_a_row_of_zeros_under_weight_norm_is_refused():
    cell = LSTMCell(*SIZES)
    parametrizations.weight_norm(cell, "bias")
    with pytest.raises(ValueError, match=r"bias cannot be set so: .* not finite"):
        initialise(cell, "orthogonal")


def test_a_parametrised_weight_that_stays_as_it_is_needs_no_inverse():
    cell = LSTMCell(*SIZES)
    parametrize.register_parametrization(cell, "weight_hh", Clamped())
    init_unit_forget_bias(cell)
    assert cell.bias[8:16].tolist() == [1.0] * 8


def test_weights_stay_parameters_that_can_be_trained():
    cell = initialise(LSTMCell(*SIZES), "orthogonal+chrono(9)")
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in cell.parameters())
    output, _ = cell(torch.randn(3, 5))
    output.sum().backward()
    assert cell.weight_ih.grad.any()
