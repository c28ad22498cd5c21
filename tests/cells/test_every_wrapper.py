"""What holds for every wrapper of a cell: its state, gradients, copies, dtypes, and when it changes nothing."""

import copy
import io

import oracles
import pytest
import torch
import zoo
import zoo_wrappers
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from rnn_blocks import (
    Cell,
    CellWrapper,
    Clockwork,
    DeepInput,
    DeepOutput,
    DeepTransition,
    ElmanCell,
    GRUCell,
    Leaky,
    LearnedState,
    LSTMCell,
    Mogrifier,
    Recurrent,
    RecurrentDropout,
    SkipThroughTime,
    Zoneout,
)
from rnn_blocks.engine import hidden_of, state_tensors

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
every_wrapper = pytest.mark.parametrize("name", zoo_wrappers.CELLS)
RANDOM = [name for name in zoo_wrappers.CELLS if "zoneout" in name or "dropout" in name]  # in training


class Rotation(Cell):
    """A complex linear recurrence with an output of its own, and more units than outputs."""

    fusable = True

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.enter = nn.Linear(input_size, hidden_size + 1, bias=False)
        self.leave = nn.Linear(hidden_size + 1, hidden_size)
        self.angle = nn.Parameter(torch.linspace(0.1, 2, hidden_size + 1))

    def project(self, inputs):
        return self.enter(inputs)

    def step(self, projected, state):
        state = torch.polar(torch.full_like(self.angle, 0.9), self.angle) * state + projected
        return self.leave(state.real), state

    def initial_state(self, batch_size, like):
        return torch.zeros(batch_size, self.hidden_size + 1, dtype=torch.complex(like, like).dtype, device=like.device)


AROUND_COMPLEX = {
    "leaky": lambda cell: Leaky(cell, time_constant=(1, 20)),
    "skip": lambda cell: SkipThroughTime(cell, delay=2),
    "clockwork": lambda cell: Clockwork(cell, [1, 2, 3]),
    "deep-input": lambda cell: DeepInput(cell, layers=1),
    "deep-output": lambda cell: DeepOutput(cell, layers=1),
    "zoneout": lambda cell: Zoneout(cell, p=0.3),
    "recurrent-dropout": lambda cell: RecurrentDropout(cell, p=0.3),
    "learned-state": LearnedState,
    "three": lambda cell: LearnedState(Zoneout(SkipThroughTime(cell, delay=2), p=0.3)),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("wrap", AROUND_COMPLEX.values(), ids=AROUND_COMPLEX)
def test_wrappers_take_a_complex_state_of_another_width(wrap, training):
    cell = wrap(Rotation(3, 5)).double().train(training)
    inputs = torch.randn(2, 6, 3, dtype=torch.float64)
    results = []
    for engine in ("loop", "fused"):
        torch.manual_seed(1)
        outputs, after = Recurrent(cell, engine=engine)(inputs)
        assert hidden_of(after).is_complex()
        assert outputs.shape == (2, 6, cell.hidden_size)
        total = oracles.weighted_sum(outputs, after)
        results.append([outputs, *oracles.gradients_of(total, list(cell.parameters()))])
    assert_close(results[1], results[0])


@pytest.mark.parametrize("wrap", [lambda cell: DeepTransition(cell, layers=1), Mogrifier])
def test_a_wrapper_whose_layers_read_h_refuses_a_complex_one(wrap):
    with pytest.raises(ValueError, match="real h, got Rotation"):
        wrap(Rotation(3, 5))


@pytest.mark.parametrize(
    "name",
    zoo.rest_is_slow(
        [*zoo_wrappers.CELLS, *(f"{name} in evaluation" for name in RANDOM)],
        [
            *("leaky-elman-learned", "skip-lstm", "clockwork-gru", "deep-transition-shortcut", "deep-input"),
            *("deep-output", "mogrifier-lstm", "zoneout-lstm", "zoneout-lstm in evaluation", "recurrent-dropout-gru"),
            *("learned-state-lstm", "zoneout-leaky-skip-lstm"),
        ],
    ),
)
def test_gradients_are_those_of_finite_differences(name):
    kind, *evaluation = name.split(" in ")
    cell = zoo_wrappers.CELLS[kind](2, 2).double().train(not evaluation)
    with torch.no_grad():  # away from the corner of a rectifier, at which biases start
        for parameter in cell.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.1)
    layer = Recurrent(cell, engine="fused", batch_first=False)
    names, parameters = zip(*cell.named_parameters(prefix="cell"), strict=True)
    resets = torch.tensor([[False], [False], [True]])

    def run(inputs, *values):
        torch.manual_seed(3)
        outputs, after = functional_call(layer, dict(zip(names, values, strict=True)), (inputs,), {"resets": resets})
        return outputs, *[tensor for tensor in state_tensors(after) if tensor.requires_grad]

    inputs = torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (inputs, *(p.detach().requires_grad_() for p in parameters)), fast_mode=True)


@every_wrapper
def test_copies_behave_and_weigh_the_same_bit_for_bit(name):
    cell = zoo_wrappers.CELLS[name](3, 4)
    file = io.BytesIO()
    torch.save(cell, file)
    file.seek(0)
    loaded = zoo_wrappers.CELLS[name](3, 4)
    loaded.load_state_dict(cell.state_dict())
    inputs = torch.randn(2, 5, 3)
    expected = run_seeded(cell, inputs)
    for twin in (copy.deepcopy(cell), torch.load(file, weights_only=False), loaded, cell.eval().train()):
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), cell.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(run_seeded(twin, inputs), expected, strict=True))


def run_seeded(cell, inputs):
    torch.manual_seed(2)
    outputs, after = Recurrent(cell, engine="loop")(inputs)
    return [outputs, *state_tensors(after)]


@pytest.mark.parametrize("name", RANDOM)
def test_autocast_trains_with_noise_in_bfloat16(name):
    cell = zoo_wrappers.CELLS[name](3, 4)
    for engine in ("fused", "loop"):
        with torch.autocast("cpu", torch.bfloat16):
            outputs, after = Recurrent(cell, engine=engine)(torch.randn(2, 5, 3))
        total = oracles.weighted_sum(outputs, after)
        assert all(gradient.isfinite().all() for gradient in oracles.gradients_of(total, list(cell.parameters())))


@every_wrapper
def test_the_state_is_of_the_inputs_dtype(name):
    cell = zoo_wrappers.CELLS[name](3, 4).bfloat16()
    inputs = torch.randn(2, 5, 3, dtype=torch.bfloat16)
    outputs, after = Recurrent(cell)(inputs)
    tensors = [*state_tensors(cell.initial_state(2, inputs)), *state_tensors(after)]
    assert {tensor.dtype for tensor in [outputs, *tensors] if tensor.is_floating_point()} == {torch.bfloat16}


@every_wrapper
def test_a_wrapper_that_was_made_without_memory_can_be_given_some(name):
    with torch.device("meta"):
        cell = zoo_wrappers.CELLS[name](3, 4)
    cell.to_empty(device="cpu")
    for module in cell.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    expected = dict(zoo_wrappers.CELLS[name](3, 4).named_buffers())
    assert all(torch.equal(buffer, expected[key]) for key, buffer in cell.named_buffers())
    with torch.no_grad():
        assert Recurrent(cell)(torch.randn(2, 5, 3))[0].isfinite().all()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda cell: Leaky(cell, time_constant=1),
        lambda cell: SkipThroughTime(cell, delay=3, strength=0.0),
        lambda cell: Clockwork(cell, [1, 1]),
        lambda cell: Zoneout(cell, p=0.0),
        lambda cell: RecurrentDropout(cell, p=0.0),
        LearnedState,
        lambda cell: Mogrifier(cell, rounds=0),
        CellWrapper,
    ],
    ids=[
        "leaky-1",
        "skip-0",
        "clockwork-1",
        "zoneout-0",
        "recurrent-dropout-0",
        "learned-state",
        "mogrifier-0",
        "base",
    ],
)
@pytest.mark.parametrize("make", [ElmanCell, LSTMCell, GRUCell, oracles.LeakySum])
def test_a_wrapper_set_to_change_nothing_gives_the_inner_cells_numbers(wrap, make):
    inner = make(3, 4)
    inputs = torch.randn(2, 7, 3)
    expected, after = Recurrent(inner, engine="loop")(inputs)
    outputs, wrapped = Recurrent(wrap(inner), engine="loop")(inputs)
    assert_close(outputs, expected, **CLOSE)
    assert_close(hidden_of(wrapped), hidden_of(after), **CLOSE)


def test_the_output_is_the_new_h_where_the_inner_cells_is_and_else_the_inner_cells():
    x = torch.randn(2, 3)
    for cell in (Leaky(LSTMCell(3, 4), time_constant=2.0), Clockwork(GRUCell(3, 4), [2]), Zoneout(LSTMCell(3, 4), 0.5)):
        output, after = cell(x)
        assert output is hidden_of(after)
    own = oracles.LeakySum(3, 4)
    expected, _ = own(x)
    output, (h, _) = Leaky(own, time_constant=2.0)(x)
    assert torch.equal(output, expected)
    assert_close(output, (2 * h) ** 2)


def test_the_output_is_the_new_h_in_half_precision_too():
    class Precise(Cell):
        output_is_hidden = True

        def step(self, projected, state):
            state = 0.5 * state + projected.float()
            return state.to(projected.dtype), state

        def initial_state(self, batch_size, like):
            return torch.zeros(batch_size, self.hidden_size)

    for dtype in (torch.bfloat16, torch.float32):
        outputs, h = Recurrent(Leaky(Precise(4, 4), time_constant=3.0))(torch.randn(2, 5, 4, dtype=dtype))
        assert torch.equal(outputs[:, -1], h.to(dtype))
        kept = DeepOutput(Precise(4, 4), layers=1)
        outputs, _ = Recurrent(Leaky(kept.to(dtype), time_constant=3.0))(torch.randn(2, 5, 4, dtype=dtype))
        assert not torch.equal(outputs[:, -1], h.to(dtype))
