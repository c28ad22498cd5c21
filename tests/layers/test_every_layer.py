"""Every cell in every kind of layer, and what users do with layers that no single block's tests would see."""

from concurrent.futures import ThreadPoolExecutor

import oracles
import pytest
import torch
import zoo
import zoo_layers
from torch.testing import assert_close

import rnn_blocks
from rnn_blocks import (
    LSTM,
    Bidirectional,
    Cell,
    CellWrapper,
    DecoderCell,
    DilatedRecurrent,
    GRUCell,
    Layer,
    LinearCell,
    LSTMCell,
    Recurrent,
    RecurrentStack,
)
from rnn_blocks.engine import map_state, state_tensors

CLOSE = {"rtol": 1e-10, "atol": 1e-10, "check_stride": False}
TO_DERIVE_FROM = {Cell, CellWrapper, Layer, LinearCell}
every_cell = pytest.mark.parametrize("name", zoo.CELLS)
every_layer = pytest.mark.parametrize("name", zoo_layers.LAYERS)


def public(kind):
    found = [getattr(rnn_blocks, name) for name in rnn_blocks.__all__]
    return {thing for thing in found if isinstance(thing, type) and issubclass(thing, kind)} - TO_DERIVE_FROM


def kinds_in(modules):
    return {base for module in modules for part in module.modules() for base in type(part).__mro__}


def test_every_public_cell_and_layer_is_among_those_that_are_tested_here():
    cells = [make(3, 4) for make in zoo.CELLS.values()]
    assert public(Cell) - kinds_in(cells) == {DecoderCell}  # whose memory is no initial state: tests/seq2seq
    layers = [make() for make in zoo_layers.LAYERS.values()]
    assert public(Layer) - kinds_in(layers) == set()


def sequences(layer, batch=3, time=5):
    inputs = torch.randn(batch, time, layer.input_size, dtype=torch.float64)
    return inputs, oracles.random_state(layer.initial_state(batch, inputs))


@every_cell
@torch.no_grad()
def test_every_cell_reads_both_ways_with_lengths_resets_and_a_state(name):
    ahead, back = (zoo.CELLS[name](3, 4).double().eval() for _ in range(2))
    layer = Bidirectional(Recurrent(ahead), Recurrent(back))
    inputs, (first, last) = sequences(layer)
    lengths = [5, 0, 3]
    resets = [[False, True, False, False, True], [True] * 5, [True, False, True, False, True]]
    outputs, after = layer(inputs, (first, last), lengths=torch.tensor(lengths), resets=torch.tensor(resets))
    forward, (final,) = oracles.run_by_hand([ahead], inputs, [first], lengths, resets)
    assert_close(outputs[..., : ahead.hidden_size], forward, **CLOSE)
    assert_close(state_tensors(after[0]), state_tensors(final), **CLOSE)
    for n, length in enumerate(lengths):
        # a cut between two steps is before the later one of them, in whichever order they are read
        cuts = [[False, *(resets[n][t] for t in range(length - 1, 0, -1))]]
        mirrored, (final,) = (
            oracles.run_by_hand([back], inputs[n : n + 1, :length].flip(1), [oracles.rows(last, [n])], None, cuts)
            if length
            else (inputs.new_zeros(1, 0, back.hidden_size), (oracles.rows(last, [n]),))
        )
        assert_close(outputs[n, :length, ahead.hidden_size :], mirrored[0].flip(0), **CLOSE)
        assert not outputs[n, length:].any()
        assert_close(state_tensors(oracles.rows(after[1], [n])), state_tensors(final), **CLOSE)


@every_cell
@torch.no_grad()
def test_every_cell_reads_the_state_of_several_steps_before(name):
    cell = zoo.CELLS[name](3, 4).double().eval()
    layer = DilatedRecurrent(cell, 2)
    inputs, state = sequences(layer)
    lengths = torch.tensor([5, 0, 2])
    outputs, after = layer(inputs, state, lengths=lengths)
    for phase in range(2):
        counts = (lengths - phase + 1) // 2
        before = map_state(lambda tensor, phase=phase: tensor[:, phase], state)
        expected, (final,) = oracles.run_by_hand([cell], inputs[:, phase::2], [before], counts.tolist())
        assert_close(outputs[:, phase::2], expected, **CLOSE)
        for n, length in enumerate(lengths.tolist()):  # the phase of the next step comes first
            found = map_state(lambda tensor, n=n, place=(phase - length) % 2: tensor[n, place], after)
            assert_close(state_tensors(found), state_tensors(oracles.rows(final, n)), **CLOSE)


@every_cell
@torch.no_grad()
def test_layers_of_every_cell_are_stacked_with_a_state_for_each(name):
    layer = RecurrentStack(zoo.CELLS[name], 3, 4, num_layers=2).double().eval()
    cells = [level.cell for level in layer.layers]
    inputs, state = sequences(layer, time=4)
    lengths, resets = [4, 0, 2], [[False, False, True, False], [True] * 4, [True, True, False, True]]
    outputs, after = layer(inputs, state, lengths=torch.tensor(lengths), resets=torch.tensor(resets))
    expected, final = oracles.run_by_hand(cells, inputs, state, lengths, resets)
    assert_close(outputs, expected, **CLOSE)
    assert_close(state_tensors(after), state_tensors(tuple(final)), **CLOSE)


@every_layer
def test_the_layout_of_inputs_and_the_types_of_lengths_and_resets_do_not_matter(name):
    layer = zoo_layers.LAYERS[name]().double()
    inputs, state = sequences(layer)
    lengths, resets = torch.tensor([5, 0, 3]), torch.rand(3, 5) < 0.3
    given = [inputs, inputs.permute(2, 0, 1).contiguous().permute(1, 2, 0), inputs.repeat_interleave(2, 1)[:, ::2]]
    results = []
    for x, whole in zip(given, (torch.int64, torch.int32, torch.uint8), strict=True):
        torch.manual_seed(1)
        outputs, after = layer(x, state, lengths=lengths.to(whole), resets=resets.to(whole))
        gradients = oracles.gradients_of(oracles.weighted_sum(outputs, after), list(layer.parameters()))
        results.append([outputs, *state_tensors(after), *gradients])
    for result in results[1:]:
        assert_close(result, results[0], **CLOSE)


@pytest.mark.parametrize("engine", ["auto", "fused", "loop"])
def test_one_input_for_all_sequences_and_steps_is_as_good_as_its_copies(engine):
    layer = LSTM(3, 4, engine=engine).double()
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    outputs, _ = layer(x.expand(2, 5, 3))
    expected, _ = layer(x.expand(2, 5, 3).contiguous())
    assert_close(outputs, expected, **CLOSE)
    assert_close(torch.autograd.grad(outputs.sum(), x), torch.autograd.grad(expected.sum(), x), **CLOSE)


@pytest.mark.parametrize("make", [GRUCell, LSTMCell])
@pytest.mark.parametrize("engine", ["auto", "native", "fused", "loop"])
def test_threads_may_share_a_layer(make, engine):
    layer = Recurrent(make(3, 4), engine=engine).double()
    batches = [torch.randn(1 + k % 3, 4, 3, dtype=torch.float64) for k in range(12)]

    def gradients(inputs):
        return oracles.gradients_of(oracles.weighted_sum(*layer(inputs)), list(layer.parameters()))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(gradients, batches))
    assert_close(found, [gradients(inputs) for inputs in batches], **CLOSE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own import
def test_forward_mode_and_batched_derivatives_go_through_the_loop():
    layer = LSTM(3, 4, engine="loop").double()
    inputs = torch.randn(5, 2, 6, 3, dtype=torch.float64)
    direction = torch.randn_like(inputs[0])

    def run(x):
        return layer(x)[0]

    mapped = torch.func.vmap(run)(inputs)
    assert_close(mapped, torch.stack([run(x) for x in inputs]), **CLOSE)
    _, tangent = torch.func.jvp(run, (inputs[0],), (direction,))
    step = 1e-6
    expected = (run(inputs[0] + step * direction) - run(inputs[0] - step * direction)) / (2 * step)
    assert_close(tangent, expected, rtol=1e-6, atol=1e-8, check_stride=False)
