"""Ready-made layers against torch.nn's with the same weights: outputs, final states, every gradient."""

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM, Elman
from rnn_blocks.engine import state_tensors

LAYERS = {
    "elman-tanh": lambda *sizes, **options: Elman(*sizes, **options),
    "elman-relu": lambda *sizes, **options: Elman(*sizes, nonlinearity="relu", **options),
    "lstm": LSTM,
    "gru": GRU,
}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def cells_of(layer):
    return [recurrent.cell for recurrent in layer.layers]


def grouped(state, num_layers):
    """Torch's states, (layers, batch, hidden), as ours: a part for each layer, in the order of `state_tensors`."""
    parts = state if isinstance(state, tuple) else (state,)
    return [part[k] for k in range(num_layers) for part in parts]


def stacked(state):
    """Our states as torch's."""
    if isinstance(state[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*state, strict=True))
    return torch.stack(state)


@pytest.mark.parametrize("engine", ["native", "loop"])
@pytest.mark.parametrize("name", LAYERS)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.data())
def test_outputs_states_and_gradients_are_those_of_torch(name, engine, batch, time, input_size, hidden, depth, data):
    layer = LAYERS[name](input_size, hidden, num_layers=depth, engine=engine).double()
    twin = oracles.torch_twin(cells_of(layer))
    inputs = torch.randn(batch, time, input_size, dtype=torch.float64, requires_grad=True)
    copied = inputs.detach().clone().requires_grad_()
    state = oracles.random_state(layer.initial_state(batch, inputs)) if data.draw(st.booleans()) else None
    lengths = data.draw(st.none() | st.lists(st.integers(1, time), min_size=batch, max_size=batch))

    theirs = None if state is None else stacked(state)
    if lengths is None:
        outputs, after = layer(inputs, state)
        expected, final = twin(copied, theirs)
    else:
        outputs, after = layer(inputs, state, lengths=torch.tensor(lengths))
        packed = pack_padded_sequence(copied, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        packed, final = twin(packed, theirs)
        expected, _ = pad_packed_sequence(packed, batch_first=True, total_length=time)
    assert_close(outputs, expected, **EXACT, check_stride=False)
    assert_close(state_tensors(after), grouped(final, depth), **EXACT, check_stride=False)

    oracles.weighted_sum(outputs, after).backward()
    oracles.weighted_sum(expected, tuple(grouped(final, depth))).backward()
    assert_close(inputs.grad, copied.grad, **EXACT)
    cells = cells_of(layer)
    gradients = [parameter.grad for cell in cells for parameter in cell.parameters()]
    assert_close(gradients, oracles.twin_gradients(twin, cells), **EXACT)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_agrees_with_torch_at_usual_sizes(name, device):
    layer = LAYERS[name](48, 64, num_layers=2).to(device)
    inputs = torch.randn(8, 35, 48, device=device)
    twin = oracles.torch_twin(cells_of(layer))
    outputs, state = layer(inputs)
    expected, final = twin(inputs)
    assert_close(outputs, expected, rtol=1e-5, atol=1e-5, check_stride=False)
    assert_close(state_tensors(state), grouped(final, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ["native", "loop"])
@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=8)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 2), st.data())
def test_lengths_and_resets_are_those_of_the_equations(name, engine, batch, time, depth, data):
    layer = LAYERS[name](2, 3, num_layers=depth, engine="auto" if engine == "native" else engine).double()
    inputs = torch.randn(batch, time, 2, dtype=torch.float64, requires_grad=True)
    state = oracles.random_state(layer.initial_state(batch, inputs))
    lengths = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    resets = data.draw(st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=batch, max_size=batch))
    outputs, after = layer(inputs, state, lengths=torch.tensor(lengths), resets=torch.tensor(resets))
    expected, final = oracles.run_by_hand(cells_of(layer), inputs, state, lengths, resets)
    final = tuple(state_tensors(tuple(final)))
    assert_close(outputs, expected, **EXACT, check_stride=False)
    assert_close(state_tensors(after), list(final), **EXACT, check_stride=False)
    leaves = [inputs, *layer.parameters()]
    gradients = oracles.gradients_of(oracles.weighted_sum(outputs, after), leaves)
    by_hand = sum(oracles.weighted_sum(expected, final)[None])
    if by_hand.requires_grad:
        assert_close(gradients, oracles.gradients_of(by_hand, leaves), **EXACT)


def test_the_one_bias_learns_as_torchs_first_does():
    layer = LSTM(3, 4)
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in nn.LSTM(3, 4).parameters()) - 16
