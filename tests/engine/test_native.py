"""The native kernels against the plain loop and against the equations in float64, values and every gradient."""

import copy
from types import MethodType

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks import LSTM, ElmanCell, GRUCell, LearnedState, LSTMCell, Recurrent
from rnn_blocks.engine import map_state, state_tensors

# The summation order differs between the ways: 1e-10 of float64, a few dozen roundings of the others, as a part of the
# whole tensor's norm (near its kink, relu's derivative may flip for a number or two).
EXACT = {"rtol": 1e-10, "atol": 1e-10}
RELATIVE = {torch.float32: 5e-6, torch.bfloat16: 0.08}


def assert_near(got, expected, tolerance):
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        a, b = a.detach().double(), b.detach().double()
        error = float((a - b).norm())
        assert error <= tolerance * max(float(b.norm()), 1e-3), (number, error, b)


def outcome(cell, engine, inputs, state, lengths):
    """Outputs, states, and gradients of the inputs, the states before and the weights."""
    inputs = inputs.clone().requires_grad_()
    state = map_state(lambda tensor: tensor.clone().requires_grad_(), state)
    outputs, after = Recurrent(cell, engine=engine)(inputs, state, lengths=lengths)
    total = oracles.weighted_sum(outputs, after)
    leaves = [inputs, *state_tensors(state), *cell.parameters()]
    if not total.requires_grad:  # no sequence has a step
        return [outputs.detach(), *state_tensors(after)], [torch.zeros_like(leaf) for leaf in leaves]
    return [outputs.detach(), *(t.detach() for t in state_tensors(after))], oracles.gradients_of(total, leaves)


@pytest.mark.parametrize("name", oracles.CELLS)
@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 10**6),
    st.booleans(),
    st.data(),
)
def test_native_loop_and_equations_agree_in_float64(name, batch, time, input_size, hidden_size, seed, ragged, data):
    torch.manual_seed(seed)
    cell = oracles.CELLS[name](input_size, hidden_size).double()
    inputs = torch.randn(batch, time, input_size, dtype=torch.float64)
    state = oracles.random_state(cell.initial_state(batch, inputs))
    lengths = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch)) if ragged else None
    given_lengths = None if lengths is None else torch.tensor(lengths)

    native = outcome(cell, "native", inputs, state, given_lengths)
    loop = outcome(cell, "loop", inputs, state, given_lengths)

    x = inputs.clone().requires_grad_()
    before = map_state(lambda tensor: tensor.clone().requires_grad_(), state)
    outputs, (after,) = oracles.run_by_hand([cell], x, [before], lengths)
    total = oracles.weighted_sum(outputs, after)
    by_hand = (
        [outputs.detach(), *(t.detach() for t in state_tensors(after))],
        oracles.gradients_of(total, [x, *state_tensors(before), *cell.parameters()]),
    )
    for found in (native, loop):
        for got, expected in zip(found, by_hand, strict=True):
            assert_close(got, expected, **EXACT, check_stride=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", oracles.CELLS)
@pytest.mark.parametrize("lengths", [None, [7, 0, 1, 4]], ids=["whole", "ragged"])
def test_lower_precisions_stay_near_float64(name, dtype, lengths, device):
    lengths = None if lengths is None else torch.tensor(lengths)
    cell = oracles.CELLS[name](5, 6).to(device, dtype)
    inputs = torch.randn(4, 7, 5).to(device, dtype)
    state = oracles.random_state(cell.initial_state(4, inputs))
    exact = copy.deepcopy(cell).double()
    wide = map_state(lambda tensor: tensor.double(), state)
    expected = outcome(exact, "loop", inputs.double(), wide, lengths)
    for engine in ("native", "loop"):
        for got, reference in zip(outcome(cell, engine, inputs, state, lengths), expected, strict=True):
            assert all(tensor.dtype == dtype for tensor in got)
            assert_near(got, reference, RELATIVE[dtype])


@pytest.mark.parametrize("name", oracles.CELLS)
@pytest.mark.parametrize("engine", ["native", "loop"])
def test_autocast_runs_forward_and_backward_near_float32(name, engine, device):
    layer = Recurrent(oracles.CELLS[name](5, 6), engine=engine).to(device)
    inputs = torch.randn(4, 7, 5, device=device)
    weights = list(layer.parameters())
    for lengths in (None, torch.tensor([7, 0, 1, 4])):
        expected, after = layer(inputs, lengths=lengths)
        exact = oracles.gradients_of(expected.square().sum(), weights)
        with torch.autocast(device.type, torch.bfloat16):
            outputs, state = layer(inputs, lengths=lengths)
            chunked, _ = layer(inputs, state, lengths=lengths)  # a state that autocast made goes in again
        gradients = oracles.gradients_of(outputs.float().square().sum(), weights)
        assert chunked.isfinite().all()
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        found, reference = [outputs, *state_tensors(state)], [expected, *state_tensors(after)]
        assert_near(found + gradients, reference + exact, RELATIVE[torch.bfloat16])


@pytest.mark.parametrize("name", oracles.CELLS)
@pytest.mark.parametrize("engine", ["native", "fused", "loop"])
def test_autocast_leaves_double_precision_as_it_is(name, engine):
    layer = Recurrent(oracles.CELLS[name](5, 6), engine=engine).double()
    inputs = torch.randn(4, 7, 5, dtype=torch.float64)
    expected = layer(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(layer(inputs), expected, **EXACT)


@pytest.mark.parametrize("name", oracles.CELLS)
def test_native_kernels_run_without_gradients_in_eval_mode(name, device):
    layer = Recurrent(oracles.CELLS[name](5, 6), engine="native").to(device)
    inputs = torch.randn(4, 7, 5, device=device)
    expected, _ = layer(inputs)
    with torch.no_grad():
        outputs, _ = layer.eval()(inputs)
    assert not outputs.requires_grad
    assert_close(outputs, expected.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("around", [lambda cell: cell, LearnedState])
def test_a_wide_lstm_of_few_steps_runs_without_the_kernel_that_packs_its_weights_each_time(around, monkeypatch):
    ran = []
    monkeypatch.setattr(LSTMCell, "native", lambda self, *args: ran.append(args[0].shape[:2]))
    cell = around(LSTMCell(5, 300))
    layer = Recurrent(cell, batch_first=False)
    for time, batch in ((3, 1), (1, 3), (4, 1), (2, 2)):
        layer(torch.randn(time, batch, 5))
    assert ran == [(4, 1), (2, 2)]
    with torch.no_grad():
        layer(torch.randn(3, 1, 5))
    assert ran[2:] == [(3, 1)]


def test_few_steps_and_many_agree_on_what_comes_of_them():
    layer = LSTM(16, 400)
    inputs = torch.randn(1, 12, 16, requires_grad=True)
    whole, after = layer(inputs)
    total = oracles.weighted_sum(whole, after)
    expected = oracles.gradients_of(total, [inputs, *layer.parameters()])
    first, state = layer(inputs[:, :5])
    rest, last = layer(inputs[:, 5:], state)
    joined = torch.cat([first, rest], 1)
    assert_close((joined, *last), (whole, *after), rtol=1e-5, atol=1e-6)
    total = oracles.weighted_sum(joined, last)
    assert_close(oracles.gradients_of(total, [inputs, *layer.parameters()]), expected, rtol=1e-4, atol=1e-5)


def halving(kind, method):
    """A method that is not what the kernel of ``kind`` does."""
    return {
        "project": lambda self, inputs: kind.project(self, 0.5 * inputs),
        "advance": lambda self, projected, state, hidden: kind.advance(self, projected, state, 0.5 * hidden),
    }[method]


def changed(kind, method):
    return type("Changed", (kind,), {method: halving(kind, method)})


def mixed_in(kind, method):
    return type("Mixed", (type("Mixin", (), {method: halving(kind, method)}), kind), {})


@pytest.mark.parametrize("around", [lambda cell: cell, LearnedState], ids=["bare", "learned state"])
@pytest.mark.parametrize("make", [changed, mixed_in])
@pytest.mark.parametrize("method", ["project", "advance"])
@pytest.mark.parametrize("kind", [LSTMCell, GRUCell, ElmanCell])
def test_a_subclass_that_changes_a_step_does_not_run_on_the_kernel_of_its_base(kind, method, make, around):
    assert_runs_as_the_loop(around(make(kind, method)(3, 4).double()))


@pytest.mark.parametrize("method", ["project", "advance"])
@pytest.mark.parametrize("kind", [LSTMCell, GRUCell, ElmanCell])
def test_nor_does_a_cell_that_a_method_was_put_on(kind, method):
    cell = kind(3, 4).double()
    setattr(cell, method, MethodType(halving(kind, method), cell))
    assert_runs_as_the_loop(cell)


def assert_runs_as_the_loop(cell):
    inputs = torch.randn(2, 5, 3, dtype=torch.float64)
    expected, state = Recurrent(cell, engine="loop")(inputs)
    layer = Recurrent(cell)
    assert_close(layer(inputs), (expected, state), **EXACT)
    with torch.no_grad():
        assert_close(layer(inputs)[0], expected, **EXACT)
    with pytest.raises(ValueError, match=r"engine='native' cannot run this: \w+ has no native kernel"):
        Recurrent(cell, engine="native")(inputs)


def test_a_subclass_that_changes_no_step_keeps_the_kernel_and_one_may_bring_its_own():
    class Named(LSTMCell):
        """Only its weights start otherwise."""

    class Kernel(changed(LSTMCell, "advance")):
        def native(self, inputs, state, lengths):
            return inputs.new_ones(*inputs.shape[:2], 4), state

    inputs = torch.randn(2, 5, 3)
    cell = Named(3, 4)
    expected, _ = Recurrent(cell, engine="loop")(inputs)
    assert_close(Recurrent(cell, engine="native")(inputs)[0], expected)
    assert Recurrent(Kernel(3, 4))(inputs)[0].eq(1).all()
