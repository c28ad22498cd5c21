import math

import pytest
import torch
import zoo
import zoo_linear
from oracles import gradients_of, random_state, weighted_sum
from torch.testing import assert_close

from rnn_blocks import (
    Leaky,
    LeakyIntegratorCell,
    LinearCell,
    LRUCell,
    MinGRUCell,
    MinLSTMCell,
    Recurrent,
    RGLRUCell,
    SRUCell,
)
from rnn_blocks.cells.min_gru import positive
from rnn_blocks.engine import scan

every_linear_cell = pytest.mark.parametrize("name", zoo_linear.CELLS)
PAPERS = {
    "leaky integrator": lambda i, h: LeakyIntegratorCell(i, h, time_constant=(2, 1000), learned=True),
    "min-gru": MinGRUCell,
    "min-lstm": MinLSTMCell,
    "sru": SRUCell,
    "rg-lru": RGLRUCell,
    "lru": lambda i, h: LRUCell(i, h, r_min=0.9, r_max=0.999),
}
every_paper = pytest.mark.parametrize("make", PAPERS.values(), ids=PAPERS)


@every_linear_cell
def test_auto_takes_the_scan_training_and_not(name, monkeypatch):
    taken = []
    monkeypatch.setattr(LinearCell, "step", lambda *_: pytest.fail("a step was taken"))
    monkeypatch.setattr(scan, "walk_in_order", count_calls(scan.walk_in_order, taken))
    layer = Recurrent(zoo.CELLS[name](3, 4))
    inputs = torch.randn(2, 70, 3)
    resets = torch.rand(2, 70) < 0.1
    layer(inputs)
    layer(inputs, lengths=torch.tensor([70, 0]), resets=resets)
    with torch.no_grad():
        layer.eval()(inputs, resets=resets)
    assert len(taken) == 3


def count_calls(function, calls):
    def counted(*args, **options):
        calls.append(function)
        return function(*args, **options)

    return counted


@every_linear_cell
def test_a_long_sequence_in_chunks_is_the_whole(name):
    layer = Recurrent(zoo.CELLS[name](3, 4), batch_first=False).double()
    if name == "own-linear":
        layer.cell.mix.weight.data.mul_(0.1)  # its decays go beyond 1
    inputs = torch.randn(300, 2, 3, dtype=torch.float64)
    whole, after = layer(inputs)
    state, outputs = None, []
    for chunk in inputs.split([1, 100, 67, 132]):
        output, state = layer(chunk, state)
        outputs.append(output)
    assert_close(torch.cat(outputs), whole, rtol=1e-12, atol=1e-12)
    assert_close(state, after, rtol=1e-12, atol=1e-12)


def test_single_steps_of_a_minimal_lstm_are_the_whole():
    layer = Recurrent(MinLSTMCell(3, 4)).double()
    inputs = torch.randn(2, 90, 3, dtype=torch.float64)
    whole, after = layer(inputs)
    state, outputs = None, []
    for x in inputs.unbind(1):
        output, state = layer.step(x, state)
        outputs.append(output)
    assert_close(torch.stack(outputs, 1), whole, rtol=1e-12, atol=1e-12)
    assert_close(state, after, rtol=1e-12, atol=1e-12)


@every_linear_cell
def test_whatever_stands_past_a_length_leaves_gradients_alone(name):
    layer = Recurrent(zoo.CELLS[name](3, 4)).double()
    inputs = torch.randn(3, 5, 3, dtype=torch.float64)
    lengths = torch.tensor([5, 2, 0])
    results = []
    for padding in (0.0, 1e30, math.nan):
        x = inputs.clone()
        x[1, 2:] = x[2] = padding
        x.requires_grad_()
        outputs, state = layer(x, lengths=lengths)
        gradients = gradients_of(weighted_sum(outputs, state), [x, *layer.parameters()])
        results.append([outputs, state, *gradients])
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])
    assert not results[0][2][1, 2:].any()


@every_paper
@pytest.mark.parametrize("autocast", [False, True], ids=["half weights", "autocast"])
def test_half_precision_stays_near_single_precision_over_a_long_memory(make, autocast):
    layer = Recurrent(make(8, 8), batch_first=False).bfloat16().float()  # with weights that both precisions have
    inputs = (torch.randn(500, 4, 8) + 0.5).bfloat16().float()
    expected, state = layer(inputs)
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            outputs, after = layer(inputs)
    else:
        outputs, after = layer.bfloat16()(inputs.bfloat16())
    assert after.dtype == state.dtype  # float32, or complex64
    assert (outputs.float() - expected).norm() < 0.03 * expected.norm()
    outputs.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@every_paper
def test_a_step_and_a_scan_agree_on_dtypes(make):
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        cell = make(3, 3).to(dtype)
        inputs = torch.randn(4, 2, 3, dtype=dtype)
        outcomes = [Recurrent(cell, engine=engine, batch_first=False)(inputs) for engine in ("scan", "loop", "fused")]
        for outputs, state in outcomes:
            assert outputs.dtype == dtype
            assert state.dtype == cell.initial_state(2, inputs).dtype
            assert_close(outputs, outcomes[0][0], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@every_paper
def test_a_wrapped_cell_runs_by_its_steps(make):
    cell = Leaky(make(3, 4), time_constant=3.0).double()
    inputs = torch.randn(2, 6, 3, dtype=torch.float64)
    start = random_state(cell.initial_state(2, inputs))
    outcomes = [Recurrent(cell, engine=engine)(inputs, start) for engine in ("auto", "fused", "loop")]
    for outputs, _ in outcomes:
        assert_close(outputs, outcomes[2][0])
    with pytest.raises(ValueError, match="Leaky is no LinearCell; use engine='auto', 'native', 'fused' or 'loop'"):
        Recurrent(cell, engine="scan")(inputs)


@pytest.mark.parametrize("make", [MinGRUCell, PAPERS["lru"]], ids=["min-gru", "lru"])
def test_a_compiled_layer_scans_as_well(make):
    layer = Recurrent(make(3, 4))
    inputs, resets = torch.randn(2, 12, 3), torch.rand(2, 12) < 0.2
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    expected, state = layer(inputs, resets=resets)
    outputs, after = compiled(inputs, resets=resets)
    assert_close(outputs, expected)
    assert_close(after, state)
    weights = list(layer.parameters())
    gradients = gradients_of(weighted_sum(outputs, after), weights)
    assert_close(gradients, gradients_of(weighted_sum(expected, state), weights))


def test_a_linear_cell_of_ones_own_is_two_methods():
    class Sum(LinearCell):
        def coefficients(self, projected):
            return torch.ones(1), projected

    outputs, h = Recurrent(Sum(2, 2))(torch.ones(1, 3, 2))
    assert outputs[0, :, 0].tolist() == [1.0, 2.0, 3.0]
    assert h.tolist() == [[3.0, 3.0]]
    with pytest.raises(NotImplementedError, match="LinearCell needs a `coefficients"):
        LinearCell(2, 2)(torch.ones(1, 2))


def test_a_linear_cell_with_a_step_of_its_own_is_refused():
    with pytest.raises(TypeError, match="Own is a LinearCell, whose step follows from its `coefficients` and `output`"):

        class Own(LinearCell):
            def step(self, projected, state):
                return state, state


def test_a_leaky_integrator_has_gone_most_of_the_way_after_its_time_constant():
    for tau in (50.0, 400.0):
        cell = LeakyIntegratorCell(1, 1, time_constant=tau)
        outputs, _ = Recurrent(cell)(torch.ones(1, int(tau), 1))
        goal = (cell.weight_ih.sum() + cell.bias.sum()).item()
        assert outputs[0, -1, 0].item() / goal == pytest.approx(1 - 1 / math.e, abs=1 / tau)


def test_a_time_constant_of_one_step_remembers_nothing():
    cell = LeakyIntegratorCell(1, 1, time_constant=1)
    assert_close(Recurrent(cell)(torch.tensor([[[9.0], [0.5]]]))[1], cell(torch.tensor([[0.5]]))[1])


def test_time_constants_are_spread_and_learned():
    cell = LeakyIntegratorCell(1, 3, time_constant=(2, 32), learned=True)
    assert_close(cell.time_constants, torch.tensor([2.0, 8.0, 32.0]))
    outputs, _ = Recurrent(cell)(torch.randn(2, 9, 1))
    outputs.square().sum().backward()
    assert cell.log_excess.grad.abs().min() > 0
    fixed = LeakyIntegratorCell(1, 3, time_constant=(2, 32))
    assert "log_excess" not in dict(fixed.named_parameters())
    assert_close(fixed.time_constants, cell.time_constants)


@pytest.mark.parametrize(
    ("time_constant", "learned", "message"),
    [
        (0.5, False, "at least 1, got 0.5"),
        (math.nan, False, "at least 1, got nan"),
        ((10, 2), False, r"at least 1, got \(10, 2\)"),
        ((2, math.inf), False, r"at least 1, got \(2, inf\)"),
        (1, True, "above 1, where they are learned, got 1"),
    ],
)
def test_time_constants_out_of_range_are_refused(time_constant, learned, message):
    with pytest.raises(ValueError, match=message):
        LeakyIntegratorCell(2, 2, time_constant=time_constant, learned=learned)


def test_a_minimal_gru_on_a_constant_input_nears_its_candidate_geometrically():
    cell = MinGRUCell(2, 3).double()
    x, start = torch.randn(2, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    outputs, _ = Recurrent(cell)(x.expand(1, 200, 2), start)
    z, n = (cell.weight_ih @ x + cell.bias).chunk(2)
    steps = torch.arange(1.0, 201.0, dtype=torch.float64)[:, None]
    assert_close(outputs[0], n + (1 - z.sigmoid()) ** steps * (start - n))


def test_a_minimal_lstm_normalises_gates_too_small_to_divide():
    cell = MinLSTMCell(1, 2)
    with torch.no_grad():
        cell.weight_ih.zero_()
        cell.bias.copy_(torch.tensor([-200.0, -200.0, -200.0, -201.0, 1.0, 1.0]))
    output, _ = cell(torch.ones(1, 1))
    assert_close(output, 1 - torch.tensor([[0.5, 1 / (1 + math.exp(-1))]]))


def test_a_positive_candidate_is_positive_and_continuous():
    x = torch.linspace(-5, 5, 1001)
    assert positive(x).min() > 0
    assert positive(x).diff().abs().max() < 0.011
    assert (Recurrent(MinGRUCell(3, 4, candidate="positive"))(torch.randn(2, 9, 3))[0] > 0).all()


@pytest.mark.parametrize("make", [MinGRUCell, MinLSTMCell])
def test_an_unknown_candidate_is_refused_with_the_choices(make):
    with pytest.raises(ValueError, match="candidate must be one of 'identity', 'positive', got 'tanh'"):
        make(2, 3, candidate="tanh")


def test_a_closed_highway_of_a_simple_recurrent_unit_passes_its_input():
    cell = SRUCell(3, 3)
    torch.nn.init.constant_(cell.bias, -100.0)
    inputs = torch.randn(2, 5, 3)
    assert_close(Recurrent(cell)(inputs)[0], inputs)
    with pytest.raises(ValueError, match="activation must be one of 'tanh', 'relu', 'identity', got 'gelu'"):
        SRUCell(3, 3, activation="gelu")


def test_decays_of_a_gated_linear_unit_lie_in_their_range():
    cell = RGLRUCell(4, 500)
    strongest = torch.exp(-8 * torch.nn.functional.softplus(cell.forgetting))
    assert 0.899 < strongest.min() < 0.91
    assert 0.99 < strongest.max() < 0.9991
    decay, drive = cell.coefficients(cell.project(torch.randn(6, 2, 4)))
    assert decay.shape == drive.shape == (6, 2, 500)
    assert ((decay > strongest) & (decay < 1)).all()


@pytest.mark.parametrize("logit", [-1e4, -200.0, -80.0])
def test_a_gated_linear_unit_that_forgets_nothing_has_finite_gradients(logit):
    cell = RGLRUCell(2, 2)
    with torch.no_grad():
        cell.bias[:2] = logit
    outputs, _ = Recurrent(cell)(torch.randn(2, 5, 2), torch.ones(2, 2))
    outputs.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in cell.parameters())
    assert_close(outputs, torch.ones_like(outputs), atol=1e-4, rtol=0)


def test_eigenvalues_of_a_linear_recurrent_unit_start_on_the_ring():
    cell = LRUCell(3, 2000, r_min=0.4, r_max=0.8, max_phase=1.0)
    values = cell.eigenvalues()
    sizes, phases = values.abs(), values.angle()
    assert 0.3999 < sizes.min() < 0.41
    assert 0.79 < sizes.max() < 0.8001
    assert 0 < phases.min() < 0.01
    assert 0.99 < phases.max() < 1.0001
    assert (sizes**2).mean().item() == pytest.approx((0.4**2 + 0.8**2) / 2, abs=0.01)  # uniform in area
    assert_close(cell.log_gamma.exp(), (1 - sizes**2).sqrt())
    whole = LRUCell(3, 2000)
    assert all(parameter.isfinite().all() for parameter in whole.parameters())
    assert (whole.eigenvalues().abs() < 1).all()


def test_a_linear_recurrent_unit_keeps_the_size_of_white_noise():
    cell = LRUCell(16, 200, r_min=0.9, r_max=0.99)
    cell.weight_ih.data[:400].mul_(math.sqrt(2))  # B of variance 1: both parts add up to it
    _, h = Recurrent(cell)(torch.randn(20, 600, 16))
    assert h.abs().square().mean().item() == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_min": 0.9, "r_max": 0.5}, "r_min < r_max <= 1, got r_min=0.9 and r_max=0.5"),
        ({"r_min": -0.1}, "r_min=-0.1"),
        ({"r_max": 1.1}, "r_max=1.1"),
        ({"max_phase": 0.0}, "max_phase must be above 0 and at most 2π, got 0.0"),
        ({"max_phase": 7.0}, "got 7.0"),
        ({"max_phase": "7"}, "max_phase must be above 0 and at most 2π, got '7'"),
        ({"r_min": None}, "r_min < r_max <= 1, got r_min=None and r_max=1.0"),
    ],
)
def test_a_ring_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LRUCell(3, 4, **options)


def test_a_linear_recurrent_unit_is_complex_in_the_precision_of_its_inputs():
    for dtype, expected in ((torch.float32, torch.complex64), (torch.float64, torch.complex128)):
        outputs, h = Recurrent(LRUCell(3, 4).to(dtype))(torch.randn(2, 5, 3, dtype=dtype))
        assert (outputs.dtype, h.dtype) == (dtype, expected)
