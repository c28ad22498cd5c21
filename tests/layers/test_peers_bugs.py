"""Mistakes that other libraries ship, and that no other test here would catch.

Weights that dropout damages, masks over chunks, minimal LSTMs in chunks, orthogonal gates and empty sequences have
theirs beside the blocks concerned.
"""

import weakref

import oracles
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rnn_blocks import (
    GRU,
    LSTM,
    ElmanCell,
    GRUCell,
    LSTMCell,
    MinLSTM,
    Recurrent,
    RecurrentDropout,
    Stack,
    VariationalDropout,
    Zoneout,
    detach_state,
)
from rnn_blocks.engine import map_state, state_tensors

ENGINES = ("native", "fused", "loop")
EXACT = {"rtol": 1e-10, "atol": 1e-10, "check_stride": False}


def forget_bias(module):
    """What torch's LSTM or GRU adds to the gate that keeps the past, in each layer and direction."""
    suffixes = [name.removeprefix("bias_ih_") for name, _ in module.named_parameters() if name.startswith("bias_ih")]
    totals = [getattr(module, f"bias_ih_{s}") + getattr(module, f"bias_hh_{s}") for s in suffixes]
    return [total.detach().unflatten(0, (-1, module.hidden_size))[1] for total in totals]


@pytest.mark.parametrize("make", [LSTM, GRU])
def test_torchs_two_biases_add_up_to_a_forget_bias_of_one(make):
    layer = make(3, 4, num_layers=2, bidirectional=True, init="unit-forget-bias")
    found = forget_bias(layer.to_torch())
    assert len(found) == 4
    assert_close(found, [torch.ones(4)] * 4, rtol=0, atol=0)


def test_a_forget_bias_of_two_is_seen_when_it_comes_from_torch():
    module = nn.LSTM(3, 4)
    for bias in (module.bias_ih_l0, module.bias_hh_l0):
        nn.init.zeros_(bias)
        bias.detach()[4:8] = 1
    layer = LSTM.from_torch(module)
    assert layer.layers[0].cell.gate_bias(LSTMCell.forget_block).tolist() == [2.0] * 4


def regularised():
    """All the dropouts whose masks a sequence keeps, and the one of single steps."""
    return Stack(
        [
            VariationalDropout(3, 0.4),
            Recurrent(RecurrentDropout(LSTMCell(3, 6), p=0.4)),
            Recurrent(Zoneout(GRUCell(6, 6), p=0.4)),
            VariationalDropout(6, 0.4),
        ]
    ).double()


def test_masks_outlive_what_happens_between_chunks():
    """Detached states, steps of an optimiser, a validation in evaluation, and other batches change no mask."""
    layer = regularised()
    inputs = torch.randn(2, 9, 3, dtype=torch.float64)
    start = layer.initial_state(2, inputs)
    torch.manual_seed(1)
    whole, after = layer(inputs, start)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    state, outputs = start, []
    for chunk in inputs.split(3, dim=1):
        output, state = layer(chunk, state)
        output.square().sum().backward()
        optimizer.step()
        state = detach_state(state)
        outputs.append(output.detach())
        drawn = torch.get_rng_state()
        layer.eval()(torch.randn(5, 4, 3, dtype=torch.float64))
        layer.train()(torch.randn(3, 2, 3, dtype=torch.float64))
        torch.set_rng_state(drawn)
    assert_close(torch.cat(outputs, 1), whole.detach(), **EXACT)
    assert_close(state_tensors(state), state_tensors(detach_state(after)), **EXACT)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VariationalDropout(8, 0.5),
        lambda: Recurrent(RecurrentDropout(LSTMCell(8, 8), p=0.5)),
        lambda: Recurrent(Zoneout(GRUCell(8, 8), p=0.5)),
        lambda: GRU(8, 8, num_layers=2, dropout=0.5),
    ],
    ids=["variational", "recurrent", "zoneout", "between layers"],
)
def test_equal_sequences_of_a_batch_are_dropped_differently(make):
    inputs = torch.randn(1, 6, 8).expand(3, 6, 8)
    layer = make()
    first, second, third = layer(inputs)[0]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    first, second, third = layer.eval()(inputs)[0]
    assert_close(first, second)
    assert_close(second, third)


def chunks_of(layer, inputs, cuts, state=None):
    for chunk in inputs.split(cuts, dim=1):
        outputs, state = layer(chunk, state)
        yield outputs, state
        state = detach_state(state)


@pytest.mark.parametrize("engine", ENGINES)
def test_truncated_gradients_are_those_of_the_chunk_with_its_first_state_given(engine):
    layer = LSTM(3, 4, num_layers=2, engine=engine).double()
    inputs = torch.randn(2, 6, 3, dtype=torch.float64)
    with torch.no_grad():
        _, before = layer(inputs[:, :4])
    (_, _), (outputs, state) = chunks_of(layer, inputs, [4, 2])
    found = oracles.gradients_of(oracles.weighted_sum(outputs, state), list(layer.parameters()))
    cells = [level.cell for level in layer.layers]
    by_hand, after = oracles.run_by_hand(cells, inputs[:, 4:], before)
    expected = oracles.gradients_of(oracles.weighted_sum(by_hand, tuple(after)), list(layer.parameters()))
    assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("make", [ElmanCell, LSTMCell, GRUCell, oracles.LeakySum])
@pytest.mark.parametrize("engine", ["auto", "fused", "loop"])
def test_a_state_that_is_not_detached_is_an_error_and_no_silent_gradient(make, engine):
    layer = Recurrent(make(3, 4), engine=engine)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    outputs, state = layer(torch.randn(2, 3, 3))
    outputs.square().sum().backward()
    optimizer.step()
    outputs, _ = layer(torch.randn(2, 3, 3), state)
    with pytest.raises(RuntimeError, match=r"second time|modified by an inplace operation"):
        outputs.square().sum().backward()


class Saved:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()  # an output that a node keeps would otherwise keep the node


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_a_detached_state_keeps_nothing_of_the_chunks_before(engine, bidirectional):
    layer = LSTM(3, 4, num_layers=2, engine=engine, bidirectional=bidirectional)
    kept = weakref.WeakSet()

    def pack(tensor):
        saved = Saved(tensor)
        kept.add(saved)
        return saved

    counts, state = [], None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        for _ in range(3):
            outputs, state = layer(torch.randn(2, 4, 3), state)
            state = detach_state(state)
            counts.append(len(kept))
            del outputs
    assert counts[0] == counts[1] == counts[2] > 0
    assert not kept


@pytest.mark.parametrize("engine", ENGINES)
def test_the_states_that_come_out_are_nobody_elses(engine):
    """Writing to a state, as users do who reset some sequences by hand, changes nothing else."""
    layer = LSTM(3, 4, num_layers=2, engine=engine)
    inputs = torch.randn(2, 3, 3)
    with torch.no_grad():
        expected, _ = layer(inputs)
        outputs, state = layer(inputs)
        map_state(lambda tensor: tensor.zero_(), state)
        assert torch.equal(outputs, expected)
        again, _ = layer(inputs, state)
        assert torch.equal(again, expected)


@pytest.mark.parametrize("make", [LSTM, GRU, MinLSTM])
def test_what_is_reset_by_hand_is_what_a_reset_marks(make):
    layer = make(3, 4, num_layers=2).double()
    inputs = torch.randn(3, 5, 3, dtype=torch.float64)
    finished = torch.tensor([True, False, True])
    _, state = layer(inputs[:, :2])
    fresh = layer.initial_state(3, inputs)
    by_hand = map_state(lambda new, old: torch.where(finished[:, None], new, old), fresh, state)
    expected, after = layer(inputs[:, 2:], by_hand)
    resets = torch.zeros(3, 3, dtype=torch.bool)
    resets[:, 0] = finished
    outputs, final = layer(inputs[:, 2:], state, resets=resets)
    assert_close(outputs, expected, **EXACT)
    assert_close(state_tensors(final), state_tensors(after), **EXACT)
