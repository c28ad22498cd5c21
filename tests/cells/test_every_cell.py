"""Every cell, on every engine that runs it, against its equations step by step in float64: values and all gradients."""

import oracles
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks import Recurrent
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


@every_cell
@settings(max_examples=6)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6), st.data())
def test_every_engine_computes_the_equations(name, batch, time, input_size, hidden_size, seed, data):
    torch.manual_seed(seed)
    cell = zoo.CELLS[name](input_size, hidden_size).double().eval()
    inputs = torch.randn(batch, time, input_size, dtype=torch.float64)
    start = oracles.random_state(cell.initial_state(batch, inputs))
    lengths = data.draw(st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    marks = st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=batch, max_size=batch)
    resets = data.draw(st.none() | marks)

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


@every_cell
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_chunks_of_a_sequence_give_the_gradients_of_the_whole(name, training):
    cell = zoo.CELLS[name](3, 4).double().train(training)
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
