"""Bidirectional layers against their two layers run by hand, piece by piece."""

from itertools import pairwise

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM, Bidirectional, GRUCell, LanguageModel, LSTMCell, Recurrent, Stack
from rnn_blocks.engine import state_tensors
from rnn_blocks.layers.bidirectional import reverse_time

TIGHT = {"rtol": 1e-12, "atol": 1e-12, "check_stride": False}


def both_ways(**options):
    return Bidirectional(
        Recurrent(LSTMCell(3, 4), engine="loop", **options), Recurrent(GRUCell(3, 4), engine="loop", **options)
    ).double()


def alone(layer, inputs, state):
    """One sequence whole, each direction by itself: ``inputs`` (1, time, features)."""
    ahead, back = state
    outputs, ahead = layer.forward_layer(inputs, ahead)
    others, back = layer.backward_layer(inputs.flip(1), back)
    return torch.cat([outputs, others.flip(1)], dim=-1), (ahead, back)


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(1, 6), st.data())
def test_each_direction_starts_at_its_own_end_of_each_sequence(batch, time, data):
    layer = both_ways()
    inputs = torch.randn(batch, time, 3, dtype=torch.float64)
    state = oracles.random_state(layer.initial_state(batch, inputs))
    lengths = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    outputs, after = layer(inputs, state, lengths=torch.tensor(lengths))
    for n, length in enumerate(lengths):
        assert not outputs[n, length:].any()
        expected, final = oracles.rows(state, [n]), oracles.rows(state, [n])
        if length:
            expected, final = alone(layer, inputs[n : n + 1, :length], oracles.rows(state, [n]))
            assert_close(outputs[n : n + 1, :length], expected, **TIGHT)
        assert_close(state_tensors(oracles.rows(after, [n])), state_tensors(final), **TIGHT)


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 6), st.booleans(), st.data())
def test_resets_cut_both_directions_at_the_same_places(batch, time, ragged, data):
    layer = both_ways()
    inputs = torch.randn(batch, time, 3, dtype=torch.float64)
    state = oracles.random_state(layer.initial_state(batch, inputs))
    lengths = data.draw(st.lists(st.integers(1, time), min_size=batch, max_size=batch)) if ragged else [time] * batch
    marks = st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=batch, max_size=batch)
    resets = data.draw(marks)
    outputs, after = layer(
        inputs, state, lengths=torch.tensor(lengths) if ragged else None, resets=torch.tensor(resets)
    )
    for n, length in enumerate(lengths):
        ahead, back = oracles.rows(state, [n])
        fresh = layer.initial_state(1, inputs)
        pieces = list(pairwise(sorted({0, length, *(t for t in range(length) if resets[n][t])})))
        ends = []
        for first, last in pieces:
            before = fresh[0] if first or resets[n][0] else ahead  # what comes before a piece is cut off …
            beyond = back if last == length else fresh[1]  # … and what comes after, but for the state given
            expected, final = alone(layer, inputs[n : n + 1, first:last], (before, beyond))
            assert_close(outputs[n : n + 1, first:last], expected, **TIGHT)
            ends.append(final)
        final = (ends[-1][0], ends[0][1])
        assert_close(state_tensors(oracles.rows(after, [n])), state_tensors(final), **TIGHT)


@pytest.mark.parametrize("lengths", [None, [5, 0, 2]], ids=["whole", "ragged"])
def test_a_reversed_sequence_with_the_directions_swapped_gives_mirrored_outputs(lengths):
    layer = both_ways()
    mirror = Bidirectional(layer.backward_layer, layer.forward_layer)
    inputs = torch.randn(5, 3, 3, dtype=torch.float64)  # (time, batch, features)
    lengths = None if lengths is None else torch.tensor(lengths)
    ahead, back = oracles.random_state(layer.initial_state(3, inputs))
    outputs, after = layer(inputs.transpose(0, 1), (ahead, back), lengths=lengths)
    reversed_inputs = reverse_time(inputs, lengths).transpose(0, 1)
    mirrored, after_mirrored = mirror(reversed_inputs, (back, ahead), lengths=lengths)
    swapped = torch.cat(mirrored.split(4, dim=-1)[::-1], dim=-1)
    assert_close(reverse_time(swapped.transpose(0, 1), lengths).transpose(0, 1), outputs, **TIGHT)
    assert_close(state_tensors(after_mirrored[::-1]), state_tensors(after), **TIGHT)


@pytest.mark.parametrize(("merge", "weight"), [("sum", 1.0), ("mean", 0.5)])
def test_directions_can_be_added_up_or_averaged(merge, weight):
    layer = both_ways()
    merged = Bidirectional(layer.forward_layer, layer.backward_layer, merge=merge)
    inputs, lengths = torch.randn(2, 5, 3, dtype=torch.float64), torch.tensor([5, 2])
    ahead, back = layer(inputs, lengths=lengths)[0].split(4, dim=-1)
    assert merged.output_size == 4
    assert_close(merged(inputs, lengths=lengths)[0], weight * (ahead + back), **TIGHT)


def test_one_layer_given_has_a_twin_with_weights_of_its_own():
    layer = Bidirectional(Stack([LSTM(3, 4, num_layers=2), Recurrent(oracles.LeakySum(4, 4))], skip="highway"))
    ahead, back = layer.forward_layer.state_dict(), layer.backward_layer.state_dict()
    assert ahead.keys() == back.keys()
    for name, weight in ahead.items():
        assert weight.shape == back[name].shape
        if name.endswith("gate.bias"):
            assert (back[name] == -1).all()  # drawn anew as it was drawn at first
        else:
            assert not torch.equal(weight, back[name]), name
    assert {id(p) for p in layer.forward_layer.parameters()}.isdisjoint(map(id, layer.backward_layer.parameters()))


def test_a_shared_layer_reads_both_ways_with_one_set_of_weights():
    layer = GRU(3, 4)
    assert len(list(Bidirectional(layer, layer).parameters())) == len(list(layer.parameters()))


def test_a_bidirectional_layer_and_what_holds_one_has_no_single_steps():
    layer = both_ways()
    inputs = torch.randn(2, 3, dtype=torch.float64)
    for name, ahead in [("Bidirectional", layer), ("Stack", Stack([GRU(3, 3).double(), layer]))]:
        assert not ahead.causal
        with pytest.raises(ValueError, match=f"{name} has no single steps: it reads sequences from both ends"):
            ahead.step(inputs)
    assert Stack([GRU(3, 3)]).causal


def test_a_language_model_refuses_a_layer_that_reads_what_it_is_to_predict():
    with pytest.raises(ValueError, match="this GRU reads it beforehand: the layer must be causal, not bidirectional"):
        LanguageModel(GRU(3, 4, bidirectional=True), vocab_size=5)


def test_directions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the same input_size, got 3 forward and 2 backward"):
        Bidirectional(GRU(3, 4), GRU(2, 4))
    with pytest.raises(ValueError, match="the same batch_first, got True forward and False backward"):
        Bidirectional(GRU(3, 4), GRU(3, 4, batch_first=False))
    with pytest.raises(ValueError, match="the same output_size, got 4 forward and 5 backward"):
        Bidirectional(GRU(3, 4), GRU(3, 5), merge="sum")
    assert Bidirectional(GRU(3, 4), GRU(3, 5)).output_size == 9


def test_another_merge_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="merge must be one of 'concat', 'sum', 'mean', got 'max'"):
        Bidirectional(GRU(3, 4), merge="max")


def test_the_way_back_of_a_parametrised_layer_has_weights_of_its_own():
    ahead = Recurrent(weight_norm(GRUCell(3, 4), "weight_hh"))
    layer = Bidirectional(ahead)
    assert not torch.allclose(layer.backward_layer.cell.weight_hh, ahead.cell.weight_hh, atol=0.01)
