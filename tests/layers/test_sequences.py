"""What holds for every layer: however a sequence is cut up, padded, reset or transposed, it is the same sequence."""

import copy
import io
import pickle
from itertools import pairwise

import oracles
import pytest
import torch
import zoo
import zoo_layers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM, Elman, MinGRU, Recurrent, Stack
from rnn_blocks.engine import map_state, state_tensors

INPUT = 3


def mixed(**options):
    return Stack(
        [
            LSTM(INPUT, 4, num_layers=2, **options),
            Recurrent(oracles.LeakySum(4, 5), **options),
            Elman(5, 2, **options),
            GRU(2, 3, **options),
        ]
    )


LAYERS = {
    **{
        f"{name}-{engine}": lambda engine=engine, make=make, **options: Recurrent(
            make(INPUT, 4), engine=engine, **options
        )
        for name, make in oracles.CELLS.items()
        for engine in ("auto", "loop")
    },
    "own cell": lambda **options: Recurrent(oracles.LeakySum(INPUT, 4), **options),
    "LSTM": lambda **options: LSTM(INPUT, 4, num_layers=2, **options),
    "GRU": lambda **options: GRU(INPUT, 4, num_layers=3, **options),
    "Elman": lambda **options: Elman(INPUT, 4, num_layers=2, nonlinearity="relu", **options),
    "mixed stack": mixed,
    **zoo_layers.LAYERS,
}
every_layer = pytest.mark.parametrize("name", LAYERS)
every_causal_layer = pytest.mark.parametrize("name", [name for name, make in LAYERS.items() if make().causal])
TIGHT = {"rtol": 1e-12, "atol": 1e-12, "check_stride": False}


# Without gradients no engine records anything, which takes most of the time of a small run; the engines' agreement, and
# every gradient, is tested with the cells.
def few_examples(test):
    return settings(max_examples=5)(given(st.integers(1, 4), st.integers(1, 6), st.data())(test))


def make(name, **options):
    return LAYERS[name](**options).double()


def sequence(layer, batch, time):
    inputs = torch.randn(batch, time, INPUT, dtype=torch.float64)
    return inputs, oracles.random_state(layer.initial_state(batch, inputs))


def assert_states_close(state, expected):
    assert_close(state_tensors(state), state_tensors(expected), **TIGHT)


@every_causal_layer
@few_examples
@torch.no_grad()
def test_whole_sequence_equals_chunked_carry_equals_single_steps(name, batch, time, data):
    layer = make(name)
    inputs, state = sequence(layer, batch, time)
    start = data.draw(st.sampled_from([state, None]))
    whole, after = layer(inputs, start)

    cuts = data.draw(st.lists(st.integers(1, time), max_size=3))
    edges = sorted({0, time, *cuts})
    carried, chunks = start, []
    for first, last in pairwise(edges):
        outputs, carried = layer(inputs[:, first:last], carried)
        chunks.append(outputs)
    assert_close(torch.cat(chunks, dim=1), whole, **TIGHT)
    assert_states_close(carried, after)

    carried, steps = start, []
    for x in inputs.unbind(1):
        output, carried = layer.step(x, carried)
        steps.append(output)
    assert_close(torch.stack(steps, dim=1), whole, **TIGHT)
    assert_states_close(carried, after)


@every_layer
@few_examples
@torch.no_grad()
def test_a_padded_batch_equals_each_sequence_alone(name, batch, time, data):
    layer = make(name)
    inputs, state = sequence(layer, batch, time)
    lengths = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    outputs, after = layer(inputs, state, lengths=torch.tensor(lengths))
    for n, length in enumerate(lengths):
        assert not outputs[n, length:].any()
        before = oracles.rows(state, [n])
        if length == 0:
            assert_close(state_tensors(oracles.rows(after, [n])), state_tensors(before), rtol=0, atol=0)
            continue
        alone, final = layer(inputs[n : n + 1, :length], before)
        assert_close(outputs[n : n + 1, :length], alone, **TIGHT)
        assert_states_close(oracles.rows(after, [n]), final)


@every_layer
def test_padding_reaches_neither_outputs_nor_gradients(name):
    layer = make(name)
    inputs, state = sequence(layer, 3, 5)
    lengths = torch.tensor([2, 5, 0])
    padded = inputs.clone()
    padded[0, 2:], padded[2] = 1e3, -1e3
    results = []
    for given_inputs in (inputs, padded):
        x = given_inputs.clone().requires_grad_()
        outputs, after = layer(x, state, lengths=lengths)
        total = oracles.weighted_sum(outputs, after)
        gradients = oracles.gradients_of(total, [x, *layer.parameters()])
        assert not gradients[0][0, 2:].any()
        assert not gradients[0][2].any()
        results.append([outputs.detach(), *state_tensors(map_state(torch.Tensor.detach, after)), *gradients])
    assert_close(*results, **TIGHT)


@every_causal_layer
@few_examples
@torch.no_grad()
def test_resets_equal_pieces_run_by_themselves(name, batch, time, data):
    layer = make(name)
    inputs, state = sequence(layer, batch, time)
    marks = data.draw(st.lists(st.booleans(), min_size=batch * time, max_size=batch * time))
    resets = torch.tensor(marks).view(batch, time)
    outputs, after = layer(inputs, state, resets=resets)
    for n in range(batch):
        edges = sorted({0, time, *resets[n].nonzero().flatten().tolist()})
        carried = oracles.rows(state, [n])
        for first, last in pairwise(edges):
            piece, carried = layer(inputs[n : n + 1, first:last], None if resets[n, first] else carried)
            assert_close(outputs[n : n + 1, first:last], piece, **TIGHT)
        assert_states_close(oracles.rows(after, [n]), carried)


@every_layer
@torch.no_grad()
def test_resets_past_a_length_change_nothing(name):
    layer = make(name)
    inputs, state = sequence(layer, 3, 4)
    lengths = torch.tensor([2, 0, 4])
    past = torch.arange(4) >= lengths[:, None]
    outputs, after = layer(inputs, state, lengths=lengths, resets=past)
    expected, final = layer(inputs, state, lengths=lengths)
    assert_close(outputs, expected, **TIGHT)
    assert_states_close(after, final)


@every_layer
@torch.no_grad()
def test_time_first_is_the_transpose(name):
    layer, transposed = make(name), make(name, batch_first=False)
    transposed.load_state_dict(layer.state_dict())
    inputs, state = sequence(layer, 3, 5)
    options = {"lengths": torch.tensor([5, 0, 2])}
    resets = torch.rand(3, 5) < 0.4
    for mine, theirs in [({}, {}), (options, options), ({"resets": resets}, {"resets": resets.t()})]:
        outputs, after = layer(inputs, state, **mine)
        expected, final = transposed(inputs.transpose(0, 1), state, **theirs)
        assert_close(outputs, expected.transpose(0, 1), **TIGHT)
        assert_states_close(after, final)
    if not layer.causal:
        return
    output, after = layer.step(inputs[:, 0], state)
    expected, final = transposed.step(inputs[:, 0], state)
    assert_close(output, expected, **TIGHT)
    assert_states_close(after, final)


@every_layer
@torch.no_grad()
def test_nothing_is_remembered_between_runs(name):
    layer = make(name)
    before = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
    inputs, state = sequence(layer, 2, 4)
    buffers = [buffer.clone() for buffer in layer.buffers()]
    copies = [tensor.clone() for tensor in state_tensors(state)]
    first, after = layer(inputs, state)
    layer(torch.randn(5, 2, INPUT, dtype=torch.float64), lengths=torch.tensor([0, 1, 2, 2, 1]))
    second, again = layer(inputs, state)
    assert torch.equal(first, second)
    assert all(map(torch.equal, state_tensors(after), state_tensors(again)))
    assert all(map(torch.equal, copies, state_tensors(state)))  # what came in is left as it was
    assert {key: value for key, value in vars(layer).items() if not key.startswith("_")} == before
    assert all(map(torch.equal, layer.buffers(), buffers))


@every_layer
def test_sequences_without_any_step_give_zeros_that_can_be_differentiated(name):
    layer = make(name)
    inputs = torch.full((2, 3, INPUT), 1e3, dtype=torch.float64, requires_grad=True)
    outputs, _ = layer(inputs, lengths=torch.tensor([0, 0]))
    assert outputs.requires_grad
    assert not outputs.any()
    outputs.sum().backward()
    assert not inputs.grad.any()
    assert not any(parameter.grad.any() for parameter in layer.parameters() if parameter.grad is not None)


@every_layer
@torch.no_grad()
def test_copies_give_the_same_outputs(name):
    layer = make(name)
    inputs, state = sequence(layer, 2, 4)
    expected, _ = layer(inputs, state)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    loaded = make(name)
    assert not torch.equal(loaded(inputs, state)[0], expected)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(twin(inputs, state)[0], expected)
        assert repr(twin) == repr(layer)


@every_layer
@torch.no_grad()
def test_a_batch_of_no_sequences_runs(name):
    layer = make(name)
    outputs, state = layer(torch.zeros(0, 3, INPUT, dtype=torch.float64))
    assert outputs.shape == (0, 3, layer.output_size)
    assert all(len(tensor) == 0 for tensor in state_tensors(state))


TWICE = {name: lambda make=make: Recurrent(make(INPUT, 4), engine="loop") for name, make in zoo.CELLS.items()}
TWICE |= {
    "scan": lambda: MinGRU(INPUT, 4, engine="scan"),
    "both ways": lambda: GRU(INPUT, 2, bidirectional=True, engine="loop"),
}


@pytest.mark.parametrize("name", zoo.rest_is_slow(TWICE, [*zoo.SOME, "scan", "both ways"]))
def test_the_loop_and_the_scan_can_be_differentiated_twice(name):
    layer = TWICE[name]().double().eval()
    inputs = torch.randn(2, 3, INPUT, dtype=torch.float64, requires_grad=True)
    lengths, resets = torch.tensor([3, 1]), torch.tensor([[0, 0, 1], [0, 0, 0]])
    names = [key for key, _ in layer.named_parameters()]

    def run(x, *weights):
        parameters = dict(zip(names, weights, strict=True))
        outputs, state = torch.func.functional_call(layer, parameters, (x,), {"lengths": lengths, "resets": resets})
        return oracles.weighted_sum(outputs, state)

    weights = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradgradcheck(run, (inputs, *weights), fast_mode=True)


def test_a_native_layer_stepped_by_generation_equals_its_loop():
    native, loop = LSTM(INPUT, 4, engine="native").double(), LSTM(INPUT, 4, engine="loop").double()
    loop.load_state_dict(native.state_dict())
    inputs, state = sequence(native, 2, 1)
    assert_close(native.step(inputs[:, 0], state)[0], loop(inputs, state)[0][:, 0], **TIGHT)
