"""Dilated layers against their phases run alone, step by step."""

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks import Dilated, DilatedRecurrent, GRUCell, LSTMCell, Recurrent
from rnn_blocks.engine import map_state, state_tensors

EXACT = {"rtol": 1e-10, "atol": 1e-10, "check_stride": False}


def by_hand(layer, inputs, state, lengths, resets):
    """The definition: a list of the states of all steps so far, from which each takes that of ``dilation`` before."""
    cell, d = layer.cell, layer.dilation
    fresh = map_state(lambda tensor: tensor[0], cell.initial_state(1, inputs))
    outputs, finals = [], []
    for n, length in enumerate(lengths):
        states = [map_state(lambda tensor: tensor[n, p], state) for p in range(d)]  # noqa: B023 (used at once)
        steps = []
        for t in range(inputs.shape[1]):
            if t >= length:
                steps.append(inputs.new_zeros(cell.hidden_size))
                continue
            if resets is not None and resets[n][t]:
                states = states[:-d] + [fresh] * d
            output, after = oracles.equations(cell, inputs[n, t], states[-d])
            steps.append(output)
            states.append(after)
        outputs.append(torch.stack(steps))
        finals.append(map_state(lambda *phases: torch.stack(phases), *states[-d:]))
    return torch.stack(outputs), map_state(lambda *rows: torch.stack(rows), *finals)


@pytest.mark.parametrize("make", [LSTMCell, oracles.LeakySum], ids=["lstm", "own"])
@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 4), st.booleans(), st.data())
def test_every_step_reads_the_state_of_as_many_steps_before(make, batch, time, dilation, ragged, data):
    layer = DilatedRecurrent(make(2, 3), dilation, engine="loop").double()
    inputs = torch.randn(batch, time, 2, dtype=torch.float64, requires_grad=True)
    state = oracles.random_state(layer.initial_state(batch, inputs))
    lengths = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch)) if ragged else [time] * batch
    marks = st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=batch, max_size=batch)
    resets = data.draw(st.none() | marks)
    outputs, after = layer(
        inputs,
        state,
        lengths=torch.tensor(lengths) if ragged else None,
        resets=None if resets is None else torch.tensor(resets),
    )
    expected, final = by_hand(layer, inputs, state, lengths, resets)
    assert_close(outputs, expected, **EXACT)
    assert_close(state_tensors(after), state_tensors(final), **EXACT)
    leaves = [inputs, *layer.parameters()]
    found = oracles.gradients_of(oracles.weighted_sum(outputs, after), leaves)
    assert_close(found, oracles.gradients_of(oracles.weighted_sum(expected, final), leaves), **EXACT)


@pytest.mark.parametrize("engine", ["auto", "native", "fused"])
@pytest.mark.parametrize("dilation", [2, 3])
def test_the_phases_are_the_cell_run_over_every_so_many_steps(engine, dilation):
    cell = LSTMCell(2, 3).double()
    layer, alone = DilatedRecurrent(cell, dilation, engine=engine), Recurrent(cell, engine="loop")
    inputs = torch.randn(4, 7, 2, dtype=torch.float64)
    outputs, (h, _) = layer(inputs)
    for p in range(dilation):
        expected, (final, _) = alone(inputs[:, p::dilation])
        assert_close(outputs[:, p::dilation], expected, **EXACT)
        assert_close(h[:, (p - 7) % dilation], final, **EXACT)


@settings(max_examples=10)
@given(st.integers(1, 3), st.integers(2, 8), st.integers(2, 4), st.data())
def test_a_reset_before_a_chunk_ends_reaches_the_phases_whose_steps_are_in_the_next(batch, time, dilation, data):
    layer = DilatedRecurrent(GRUCell(2, 3), dilation, engine="loop").double()
    inputs = torch.randn(batch, time, 2, dtype=torch.float64)
    state = oracles.random_state(layer.initial_state(batch, inputs))
    resets = torch.rand(batch, time) < 0.3
    whole, after = layer(inputs, state, resets=resets)
    cut = data.draw(st.integers(1, time - 1))
    first, carried = layer(inputs[:, :cut], state, resets=resets[:, :cut])
    second, final = layer(inputs[:, cut:], carried, resets=resets[:, cut:])
    assert_close(torch.cat([first, second], dim=1), whole, **EXACT)
    assert_close(final, after, **EXACT)


def test_without_a_dilation_a_layer_is_the_cell_alone():
    cell = GRUCell(3, 4)
    inputs, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
    outputs, state = DilatedRecurrent(cell, 1)(inputs, lengths=lengths)
    expected, final = Recurrent(cell)(inputs, lengths=lengths)
    assert_close(outputs, expected)
    assert_close(state[:, 0], final)


def test_a_dilated_network_is_its_layers_one_after_the_other():
    cells = [LSTMCell(3, 4), GRUCell(4, 2)]
    network = Dilated(cells, [1, 3])
    inputs = torch.randn(2, 7, 3)
    below, first = DilatedRecurrent(cells[0], 1)(inputs)
    expected, second = DilatedRecurrent(cells[1], 3)(below)
    outputs, after = network(inputs)
    assert torch.equal(outputs, expected)
    assert all(map(torch.equal, state_tensors(after), state_tensors((first, second))))


def test_one_cell_for_several_dilations_is_copied_with_weights_of_its_own():
    first, second, third = (layer.cell for layer in Dilated(GRUCell(3, 3), [1, 2, 4], skip="residual").layers)
    assert not torch.equal(first.weight_ih, second.weight_ih)
    assert not torch.equal(second.weight_ih, third.weight_ih)
    assert len(Dilated(GRUCell(3, 5), 4).layers) == 1


def test_dilations_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="dilation must be at least 1, got 0"):
        Dilated(GRUCell(3, 3), [1, 0])
    with pytest.raises(ValueError, match=r"one cell a dilation, got 1 cells and dilations \[1, 2\]"):
        Dilated([GRUCell(3, 3)], [1, 2])
    with pytest.raises(ValueError, match="layer 1 takes 3 features, but layer 0 below it gives 5"):
        Dilated(GRUCell(3, 5), [1, 2])
    with pytest.raises(ValueError, match="a stack needs at least one layer, got none"):
        Dilated([], [])
