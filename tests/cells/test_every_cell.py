"""Every cell, on every engine that runs it, against its equations step by step in float64: values and all gradients."""

import functools

import oracles
import pytest
import torch
import zoo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks import LSTMCell, Recurrent
from rnn_blocks.engine import map_state, state_tensors

EXACT = {"rtol": 1e-10, "atol": 1e-10, "check_stride": False}
ENGINES = ("auto", "fused", "loop")
every_cell = pytest.mark.parametrize("name", zoo.CELLS)


def leaves_of(state):
    return [tensor for tensor in state_tensors(state) if tensor.requires_grad]


def with_gradient(state):
    def mark(tensor):
        return tensor.clone().requires_grad_(tensor.is_floating_point() or tensor.is_complex())

    return map_state(mark, state)


def assert_engines_compute_the_equations(cell, batch, time, lengths=None, resets=None):
    inputs = torch.randn(batch, time, cell.input_size, dtype=torch.float64)
    start = oracles.random_state(cell.initial_state(batch, inputs))

    def outcome(run):
        x, state = inputs.clone().requires_grad_(), with_gradient(start)
        outputs, after = run(x, state)
        total = oracles.weighted_sum(outputs, after)
        leaves = [x, *leaves_of(state), *cell.parameters()]
        return [outputs, *state_tensors(after)], oracles.gradients_of(total, leaves)

    def by_hand(x, state):
        outputs, (after,) = oracles.run_by_hand([cell], x, [state], lengths, resets)
        return outputs, after

    expected, gradients = outcome(by_hand)
    options = {
        "lengths": None if lengths is None else torch.tensor(lengths),
        "resets": None if resets is None else torch.tensor(resets),
    }
    for engine in ENGINES:
        layer = Recurrent(cell, engine=engine)
        values, found = outcome(lambda x, state, layer=layer: layer(x, state, **options))
        assert_close(values, expected, **EXACT)
        assert_close(found, gradients, **EXACT)


def make(name, input_size, hidden_size):
    return zoo.CELLS[name](input_size, hidden_size).double().eval()


make_once = functools.cache(make)  # what the engines record of a cell's step serves all examples


def lengths_for(batch, time):
    return st.lists(st.integers(0, time), min_size=batch, max_size=batch)


def resets_for(batch, time):
    return st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=batch, max_size=batch)


@every_cell
@settings(max_examples=2)
@given(lengths_for(3, 4), resets_for(3, 4))
@example([4, 0, 2], [[0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 0, 1]])
def test_every_engine_computes_the_equations_for_any_lengths_and_resets(name, lengths, resets):
    torch.manual_seed(0)
    assert_engines_compute_the_equations(make_once(name, 2, 3), 3, 4, lengths, resets)


@every_cell
def test_every_engine_computes_the_equations_of_whole_sequences(name):
    assert_engines_compute_the_equations(make(name, 3, 2), 2, 3)


@pytest.mark.parametrize("gradient_only", [False, True], ids=["values", "gradients"])
def test_an_error_in_the_ninth_digit_is_seen(gradient_only, monkeypatch):
    class Off(LSTMCell):
        def advance(self, projected, state, hidden):
            h, (_, c) = super().advance(projected, state, hidden)
            wrong = h * (1 + 1e-9)
            h = h.detach() + wrong - wrong.detach() if gradient_only else wrong
            return h, (h, c)

    monkeypatch.setitem(oracles.EQUATIONS, Off, oracles.lstm)
    with pytest.raises(AssertionError, match="not close"):
        assert_engines_compute_the_equations(Off(3, 2).double(), 2, 3)


@pytest.mark.slow
@every_cell
@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6), st.data())
def test_every_engine_computes_the_equations_at_any_size(name, batch, time, input_size, hidden_size, seed, data):
    torch.manual_seed(seed)
    lengths = data.draw(st.none() | lengths_for(batch, time))
    resets = data.draw(st.none() | resets_for(batch, time))
    assert_engines_compute_the_equations(make(name, input_size, hidden_size), batch, time, lengths, resets)


RANDOM = [name for name in zoo.CELLS if "zoneout" in name or "dropout" in name]  # which steps otherwise in training


@pytest.mark.parametrize(
    "name",
    zoo.rest_is_slow(
        [*zoo.CELLS, *(f"{name} in evaluation" for name in RANDOM)],
        [*zoo.SOME, "zoneout-lstm", "recurrent-dropout-gru", "zoneout-lstm in evaluation"],
    ),
)
def test_chunks_of_a_sequence_give_the_gradients_of_the_whole(name):
    kind, *evaluation = name.split(" in ")
    cell = zoo.CELLS[kind](3, 4).double().train(not evaluation)
    inputs = torch.randn(6, 2, 3, dtype=torch.float64)
    start = oracles.random_state(cell.initial_state(2, inputs))
    results = []
    for engine in ENGINES:
        layer = Recurrent(cell, engine=engine, batch_first=False)
        for cuts in ([6], [2, 3, 1]):
            torch.manual_seed(1)  # noise of single steps is drawn in the order of the steps
            x = inputs.clone().requires_grad_()
            state, outputs = start, []
            for chunk in x.split(cuts):
                output, state = layer(chunk, state)
                outputs.append(output)
            total = oracles.weighted_sum(torch.cat(outputs), state)
            results.append(oracles.gradients_of(total, [x, *cell.parameters()]))
    for result in results[1:]:
        assert_close(result, results[0], **EXACT)
