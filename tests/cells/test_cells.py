import math

import oracles
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rnn_blocks import Cell, ElmanCell, GRUCell, LSTMCell
from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.engine import state_tensors


@pytest.mark.parametrize("name", oracles.CELLS)
def test_a_step_is_the_equations(name):
    cell = oracles.CELLS[name](3, 4).double()
    inputs = torch.randn(5, 3, dtype=torch.float64)
    state = oracles.random_state(cell.initial_state(5, inputs))
    output, after = cell(inputs, state)
    expected, (final,) = oracles.run_by_hand([cell], inputs[:, None], [state])
    assert_close(output, expected[:, 0], rtol=1e-12, atol=1e-12)
    assert_close(state_tensors(after), state_tensors(final), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("cell", "twin"),
    [
        (ElmanCell(3, 4), nn.RNNCell(3, 4)),
        (ElmanCell(3, 4, nonlinearity="relu"), nn.RNNCell(3, 4, nonlinearity="relu")),
        (LSTMCell(3, 4), nn.LSTMCell(3, 4)),
        (GRUCell(3, 4), nn.GRUCell(3, 4)),
    ],
    ids=["elman-tanh", "elman-relu", "lstm", "gru"],
)
def test_a_step_is_that_of_torchs_cell(cell, twin):
    with torch.no_grad():
        for name, value in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), oracles.weights_of(cell), strict=True):
            getattr(twin, name).copy_(value)
    inputs = torch.randn(5, 3)
    state = oracles.random_state(cell.initial_state(5, inputs))
    output, after = cell(inputs, state)
    expected = twin(inputs, state)
    assert_close(state_tensors(after), state_tensors(expected), rtol=1e-6, atol=1e-6)
    assert output is state_tensors(after)[0]


@pytest.mark.parametrize("name", [*oracles.CELLS, "own"])
def test_without_a_state_a_step_starts_from_the_initial_one(name):
    cell = (oracles.CELLS | {"own": oracles.LeakySum})[name](3, 4)
    inputs = torch.randn(5, 3)
    output, after = cell(inputs)
    expected, expected_after = cell(inputs, cell.initial_state(5, inputs))
    assert torch.equal(output, expected)
    assert_close(state_tensors(after), state_tensors(expected_after), rtol=0, atol=0)


@pytest.mark.parametrize("name", oracles.CELLS)
def test_weights_start_uniform_within_one_over_root_hidden_size(name):
    cell = oracles.CELLS[name](50, 64)
    bound = 1 / math.sqrt(64)
    for key, parameter in cell.named_parameters():
        assert parameter.abs().max() <= bound
        count = parameter.numel()
        assert abs(parameter.mean()) < 5 * bound / math.sqrt(3 * count), key
        assert parameter.abs().max() > bound * (1 - 20 / count), key  # the range is used up to its ends
    before = [parameter.clone() for parameter in cell.parameters()]
    cell.reset_parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, cell.parameters(), strict=True))


@pytest.mark.parametrize("make", [*oracles.CELLS.values(), Cell, oracles.LeakySum])
def test_sizes_below_one_are_refused(make):
    for sizes, message in [((0, 4), "input_size must be at least 1, got 0"), ((3, -2), "hidden_size .* got -2")]:
        with pytest.raises(ValueError, match=message):
            make(*sizes)


def test_another_nonlinearity_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh' or 'relu', got 'gelu'"):
        ElmanCell(3, 4, nonlinearity="gelu")


def test_a_cell_without_a_step_says_what_it_needs():
    class Half(Cell):
        pass

    with pytest.raises(NotImplementedError, match=r"Half needs a `step\(projected, state\)"):
        Half(3, 4)(torch.ones(1, 3))


@pytest.mark.parametrize("name", oracles.CELLS)
def test_the_initial_state_is_zero_of_the_inputs_dtype_and_device(name, device):
    like = torch.ones(1, dtype=torch.bfloat16, device=device)
    for tensor in state_tensors(oracles.CELLS[name](3, 4).initial_state(2, like)):
        assert (tensor.dtype, tensor.device, tuple(tensor.shape)) == (like.dtype, like.device, (2, 4))
        assert not tensor.any()


def test_weights_are_stacked_gate_by_gate():
    cell = WeightedCell(2, 3, num_gates=4)
    assert [tuple(p.shape) for p in cell.parameters()] == [(12, 2), (12, 3), (12,)]
    inputs = torch.randn(6, 5, 2)
    expected = torch.stack([torch.stack([cell.weight_ih @ x + cell.bias for x in row]) for row in inputs])
    assert_close(cell.project(inputs), expected)


def test_a_cell_shows_its_sizes():
    assert repr(GRUCell(3, 4)) == "GRUCell(3, 4)"
