"""The fused engine: what is recorded is what the step is, in every setting; what cannot be recorded is refused."""

import copy
import gc
import pickle
import re
import weakref

import oracles
import pytest
import torch
import zoo
from torch import nn
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.testing import assert_close
from torch.utils.module_tracker import ModuleTracker

from rnn_blocks import Cell, ElmanCell, GRUCell, LayerNormLSTMCell, LSTMCell, Recurrent, RecurrentDropout
from rnn_blocks.engine import fused, graph, map_state, products, split, state_tensors

INPUT, HIDDEN = 3, 4


def both(cell, inputs, state=None, **options):
    """Outputs, states and all gradients by the loop and by the fused engine."""
    results = []
    for engine in ("loop", "fused"):
        torch.manual_seed(3)
        x = inputs.clone().requires_grad_()
        outputs, after = Recurrent(cell, engine=engine)(x, state, **options)
        total = oracles.weighted_sum(outputs, after)
        gradients = oracles.gradients_of(total, [x, *(p for p in cell.parameters() if p.requires_grad)])
        results.append([outputs.detach(), *(t.detach() for t in state_tensors(after)), *gradients])
    return results


def programs_of(cell):
    return fused._programs.get(cell, {})


class Scaled(Cell):
    """A cell with a plain number, a plain tensor, a buffer and noise of its own."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.factor = 0.5
        self.offset = torch.tensor(0.1, dtype=torch.float64)
        self.register_buffer("shift", torch.full((hidden_size,), 0.2))
        self.mix = nn.Linear(input_size, hidden_size, bias=False)
        self.noisy = False

    def step(self, projected, state):
        state = self.factor * state + self.mix(projected) + self.offset + self.shift
        if self.noisy:
            state = nn.functional.dropout(state, 0.5, self.training)
        return state.tanh(), state


@pytest.mark.parametrize("name", oracles.CELLS)
def test_derivatives_of_a_recorded_step_are_numerically_right(name):
    layer = Recurrent(oracles.CELLS[name](2, 3), engine="fused").double()
    inputs = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    state = map_state(torch.Tensor.requires_grad_, oracles.random_state(layer.initial_state(2, inputs)))
    names, weights = zip(*layer.named_parameters(), strict=True)

    def run(x, *rest):
        given, parameters = rest[: len(state_tensors(state))], rest[len(state_tensors(state)) :]
        before = given[0] if isinstance(state, torch.Tensor) else given
        outputs, after = torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), (x, before), {"lengths": torch.tensor([4, 2])}
        )
        return outputs, *state_tensors(after)

    assert torch.autograd.gradcheck(run, (inputs, *state_tensors(state), *weights))


def test_a_step_is_recorded_once_for_each_shape():
    cell = GRUCell(INPUT, HIDDEN)
    layer = Recurrent(cell, engine="fused")
    for batch, time in [(2, 3), (2, 3), (2, 7), (5, 3)]:
        layer(torch.randn(batch, time, INPUT))[0].sum().backward()
    assert len(programs_of(cell)) == 2


def test_a_changed_setting_is_seen():
    cell = Scaled(INPUT, HIDDEN).double()
    inputs = torch.randn(2, 3, INPUT, dtype=torch.float64)
    for change in (
        lambda: setattr(cell, "factor", 0.9),
        lambda: setattr(cell, "offset", torch.tensor(-0.3, dtype=torch.float64)),
        lambda: cell.offset.add_(1.0),
        lambda: cell.shift.add_(1.0),
        lambda: cell.mix.weight.data.mul_(2.0),
        lambda: setattr(cell, "noisy", True),
        lambda: cell.eval(),
    ):
        loop, recorded = both(cell, inputs)
        assert_close(recorded, loop, rtol=1e-12, atol=1e-12)
        change()
    assert_close(*both(cell, inputs), rtol=1e-12, atol=1e-12)


def test_noise_is_drawn_anew_at_every_step_and_recording_draws_none():
    cell = Scaled(INPUT, HIDDEN).double()
    cell.noisy = True
    inputs = torch.randn(2, 6, INPUT, dtype=torch.float64)
    loop, recorded = both(cell, inputs)  # the first run records
    assert_close(recorded, loop, rtol=1e-12, atol=1e-12)
    layer = Recurrent(cell, engine="fused")
    first, second = layer(inputs)[0], layer(inputs)[0]
    assert not torch.equal(first, second)
    zeros = (first == 0).double().mean(dim=(0, 2))
    assert len(zeros.unique()) > 1


def test_weights_that_are_frozen_or_unused_take_no_gradient():
    cell = LSTMCell(INPUT, HIDDEN).double()
    cell.weight_hh.requires_grad_(False)
    inputs = torch.randn(2, 3, INPUT, dtype=torch.float64)
    assert_close(*both(cell, inputs), rtol=1e-12, atol=1e-12)
    layer = Recurrent(cell, engine="fused")
    layer(inputs)[0].sum().backward()
    assert cell.weight_hh.grad is None
    assert cell.weight_ih.grad is not None


def test_a_backward_pass_can_be_repeated_where_the_graph_is_retained():
    layer = Recurrent(GRUCell(INPUT, HIDDEN), engine="fused")
    inputs = torch.randn(2, 3, INPUT, requires_grad=True)
    total = layer(inputs)[0].square().sum()
    first = torch.autograd.grad(total, inputs, retain_graph=True)[0]
    second = torch.autograd.grad(total, inputs)[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("engine", ["fused", "auto"])
@pytest.mark.parametrize("loss", [torch.sum, lambda outputs: outputs.square().sum()], ids=["linear", "square"])
def test_a_second_derivative_is_refused(loss, engine):
    layer = Recurrent(GRUCell(INPUT, HIDDEN), engine=engine)
    inputs = torch.randn(2, 3, INPUT, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(layer(inputs)[0]), inputs)
    (gradient,) = torch.autograd.grad(loss(layer(inputs)[0]), inputs, create_graph=True)
    assert torch.equal(gradient, expected)
    with pytest.raises(RuntimeError, match="no second derivative: use engine='loop'"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("name", ["gru", "layer-norm-lstm", "slstm", "rhn-3"])
@pytest.mark.parametrize("option", ["lengths", "resets"])
def test_a_batch_of_none_has_gradients_of_nothing(option, name):
    cell = zoo.CELLS[name](5, 8)
    inputs = torch.randn(0, 4, 5, requires_grad=True)
    options = {"lengths": torch.zeros(0, dtype=torch.long), "resets": torch.zeros(0, 4, dtype=torch.bool)}
    outputs, _ = Recurrent(cell, engine="fused")(inputs, **{option: options[option]})
    outputs.sum().backward()
    assert outputs.shape == (0, 4, 8)
    assert all(weight.grad is None or not weight.grad.any() for weight in cell.parameters())


@pytest.mark.parametrize("what", ["weights", "outputs"])
def test_what_is_changed_in_place_before_the_backward_pass_is_noticed(what):
    layer = Recurrent(ElmanCell(INPUT, HIDDEN), engine="fused")
    outputs, _ = layer(torch.randn(2, 3, INPUT))
    total = outputs.square().sum()
    with torch.no_grad():
        (layer.cell.weight_hh if what == "weights" else outputs).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize(
    ("name", "what", "noticed"),
    [
        ("mogrifier-lstm", "inputs", True),
        ("deep-output", "state", True),
        ("deep-output", "outputs", True),
        ("skip-lstm", "history", True),
        ("gru", "resets", True),
        ("deep-output", "after", False),
    ],
)
def test_what_others_hold_is_noticed_where_it_was_changed_and_is_read(name, what, noticed):
    cell = zoo.CELLS[name](INPUT, HIDDEN)
    layer, factor = Recurrent(cell, engine="fused", batch_first=False), torch.ones(INPUT, requires_grad=True)

    def total(*changed):
        torch.manual_seed(1)
        inputs, resets = torch.randn(5, 2, INPUT) * factor, torch.rand(5, 2) < 0.3
        state = map_state(torch.rand_like, cell.initial_state(2, inputs))
        outputs, after = layer(inputs, state, resets=resets if what == "resets" else None)
        held = {"inputs": inputs, "resets": resets, "outputs": outputs}
        held |= {
            "state": state_tensors(state)[0],
            "history": state_tensors(state)[-1],
            "after": state_tensors(after)[0],
        }
        found = (torch.randn_like(outputs) * outputs).sum()
        with torch.no_grad():
            for part in changed:
                held[part].logical_not_() if part == "resets" else held[part].add_(1)
        return found

    weights = [factor, *cell.parameters()]
    expected = oracles.gradients_of(total(), weights)
    if noticed:
        with pytest.raises(RuntimeError, match="modified by an inplace operation: a tensor of shape"):
            total(what).backward()
    else:
        assert_close(oracles.gradients_of(total(what), weights), expected, rtol=0, atol=0)


def test_a_returned_state_may_be_changed_in_place():
    layer = Recurrent(ElmanCell(INPUT, HIDDEN), engine="fused")
    inputs = torch.randn(2, 3, INPUT, requires_grad=True)
    expected = torch.autograd.grad(layer(inputs)[0].square().sum(), inputs)[0]
    outputs, state = layer(inputs)
    with torch.no_grad():
        state.zero_()
    assert torch.equal(torch.autograd.grad(outputs.square().sum(), inputs)[0], expected)


def test_nothing_is_kept_once_outputs_and_cell_are_gone():
    cell = LSTMCell(INPUT, HIDDEN)
    outputs, state = Recurrent(cell, engine="fused")(torch.randn(2, 3, INPUT))
    (program,) = programs_of(cell).values()
    saved = weakref.ref(outputs._base.grad_fn.chunks[0].saved[0][0] if outputs._base is not None else None)
    known = weakref.ref(cell)
    assert saved() is not None
    del outputs, state, program
    assert saved() is None  # at once, without the collector: no cycle holds what was saved
    del cell
    gc.collect()
    assert known() is None


def test_programs_are_bounded(monkeypatch):
    monkeypatch.setattr(fused, "MOST_PROGRAMS", 3)
    cell = ElmanCell(INPUT, HIDDEN)
    for batch in range(1, 8):
        Recurrent(cell, engine="fused")(torch.randn(batch, 2, INPUT))
    assert len(programs_of(cell)) == 3


def test_copies_of_a_cell_that_has_run_are_their_own():
    cell = GRUCell(INPUT, HIDDEN)
    inputs = torch.randn(2, 3, INPUT)
    expected = Recurrent(cell, engine="fused")(inputs)[0]
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert torch.equal(Recurrent(twin, engine="fused")(inputs)[0], expected)
        with torch.no_grad():
            twin.weight_hh.zero_()
        assert not torch.equal(Recurrent(twin, engine="fused")(inputs)[0], expected)
        assert torch.equal(Recurrent(cell, engine="fused")(inputs)[0], expected)


def test_a_step_may_work_in_place_on_what_it_made_but_not_on_what_it_was_given():
    class InPlace(Cell):
        def step(self, projected, state):
            made = state + projected
            made.mul_(0.5).add_(projected)
            return made, made

    class Careless(Cell):
        def step(self, projected, state):
            return state.mul_(0.5), state + projected

    inputs = torch.randn(2, 3, INPUT, dtype=torch.float64)
    assert_close(*both(InPlace(INPUT, INPUT), inputs), rtol=1e-12, atol=1e-12)
    with torch.no_grad(), pytest.raises(ValueError, match="this step cannot be recorded: it changes an input in place"):
        Recurrent(Careless(INPUT, INPUT), engine="fused")(inputs)


def test_a_step_that_looks_at_numbers_is_refused():
    class Choosy(Cell):
        def step(self, projected, state):
            state = state + projected if projected.sum() > 0 else state
            return state, state

    with pytest.raises(ValueError, match="this step cannot be recorded"):
        Recurrent(Choosy(INPUT, INPUT), engine="fused")(torch.randn(2, 3, INPUT, requires_grad=True))


def test_outputs_that_are_inputs_or_states_are_handed_on():
    class Delay(Cell):
        """Gives what came in one step before."""

        def step(self, projected, state):
            return state, projected

    class Echo(Cell):
        def step(self, projected, state):
            return projected, state

    inputs = torch.randn(2, 4, INPUT, dtype=torch.float64)
    for cell in (Delay(INPUT, INPUT), Echo(INPUT, INPUT)):
        for options in ({}, {"lengths": torch.tensor([3, 0])}):
            loop, recorded = both(cell, inputs, **options)
            assert_close(recorded, loop, rtol=0, atol=0)


def test_an_output_that_is_no_state_may_be_a_factor_of_the_same_step():
    class Fed(Cell):
        """What it gives out goes through weights into its state."""

        def __init__(self, size):
            super().__init__(size, size)
            self.feedback = nn.Parameter(torch.randn(size, size))

        def step(self, projected, state):
            output = (projected + state).tanh()
            return output, state * 0.5 + output @ self.feedback

    assert_close(*both(Fed(4).double(), torch.randn(2, 5, 4, dtype=torch.float64)), rtol=1e-12, atol=1e-12)


def test_weights_of_any_use_get_the_gradients_of_the_loop():
    class Odd(Cell):
        """Weights in places that are neither a product with the batch nor a sum over it."""

        def __init__(self, size):
            super().__init__(size, size)
            self.outer = nn.Parameter(torch.randn(size, size))
            self.scale = nn.Parameter(torch.randn(()))
            self.bias = nn.Parameter(torch.randn(size))
            self.tied = self.outer

        def step(self, projected, state):
            symmetric = self.outer + self.outer.t()
            mixed = (
                projected @ self.outer + (symmetric.exp() * 0.01).sum(0) + torch.einsum("bi,ij->bj", state, symmetric)
            )
            state = (mixed * self.scale.sigmoid() + self.bias.repeat(1) * projected).tanh()
            return state * self.scale, state

    assert_close(*both(Odd(4).double(), torch.randn(2, 5, 4, dtype=torch.float64)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["lstm", "gru", "gru-reset-before", "rhn-3", "layer-norm-lstm", "recurrent-dropout"])
def test_packed_factors_give_the_gradients_of_plain_ones(name, monkeypatch):
    monkeypatch.setattr(split, "packing_pays", products.can_pack)  # as on a CPU with AVX-512
    builders = zoo.CELLS | {"recurrent-dropout": lambda i, h: RecurrentDropout(LSTMCell(i, h), 0.3)}
    cell = builders[name](5, 8)
    start = cell.initial_state(3, torch.zeros(1))
    for options in ({}, {"lengths": torch.tensor([6, 0, 2])}):
        found, expected = both(cell, torch.randn(3, 6, 5), start, **options)[::-1]
        for got, reference in zip(found, expected, strict=True):
            assert float((got - reference).norm()) <= 5e-6 * max(float(reference.norm()), 1e-2)
    assert all(program.packed for program in programs_of(cell).values())


@pytest.mark.parametrize("name", [*oracles.CELLS, "own"])
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
def test_autocast_is_near_float32(name, ragged, device):
    cell = (oracles.CELLS | {"own": oracles.LeakySum})[name](5, 6).to(device)
    layer = Recurrent(cell, engine="fused")
    inputs = torch.randn(4, 7, 5, device=device)
    options = {"lengths": torch.tensor([7, 0, 1, 4])} if ragged else {}
    weights = list(layer.parameters())
    expected, after = layer(inputs, **options)
    exact = oracles.gradients_of(expected.square().sum(), weights)
    with torch.autocast(device.type, torch.bfloat16):
        outputs, state = layer(inputs, **options)
        chunked, _ = layer(inputs, state, **options)  # a state that autocast made goes in again
        total = outputs.float().square().sum()
        inside = oracles.gradients_of(total, weights) if name == "gru" else None  # a backward pass within autocast
    gradients = inside or oracles.gradients_of(outputs.float().square().sum(), weights)
    assert chunked.isfinite().all()
    found, references = [outputs, *state_tensors(state), *gradients], [expected, *state_tensors(after), *exact]
    for got, reference in zip(found, references, strict=True):
        error = float((got.float() - reference).detach().norm())
        assert error <= 0.08 * max(float(reference.detach().norm()), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", oracles.CELLS)
def test_lower_precisions_stay_near_float64(name, dtype, device):
    cell = oracles.CELLS[name](5, 6).to(device, dtype)
    inputs = torch.randn(4, 7, 5).to(device, dtype)
    exact = copy.deepcopy(cell).double()
    found, expected = both(cell, inputs)[1], both(exact, inputs.double())[1]
    for got, reference in zip(found, expected, strict=True):
        assert got.dtype == dtype
        error = float((got.double() - reference).norm())
        assert error <= {torch.float32: 5e-6, torch.bfloat16: 0.08}[dtype] * max(float(reference.detach().norm()), 1e-3)


def test_without_gradients_the_outputs_are_the_same():
    layer = Recurrent(LSTMCell(INPUT, HIDDEN), engine="fused")
    inputs = torch.randn(2, 3, INPUT)
    expected, _ = layer(inputs)
    with torch.no_grad():
        outputs, _ = layer(inputs)
    assert not outputs.requires_grad
    assert torch.equal(outputs, expected)
    with torch.inference_mode():
        assert torch.equal(layer(inputs)[0], expected)


@pytest.mark.parametrize("around", ["anomalies", "checkpoint", "all modules' hooks", "another tracing"])
def test_recording_knows_nothing_of_what_is_around_it(around):
    layer, inputs = Recurrent(LayerNormLSTMCell(INPUT, HIDDEN), engine="fused"), torch.randn(2, 3, INPUT)
    loop = Recurrent(layer.cell, engine="loop")

    def run(inputs):
        return layer(inputs)[0].square().sum()

    if around == "checkpoint":
        total = torch.utils.checkpoint.checkpoint(run, inputs, use_reentrant=False)
    else:
        contexts = {
            "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
            "all modules' hooks": ModuleTracker,
            "another tracing": lambda: tracing(TracingContext(FakeTensorMode())),
        }
        with contexts[around]():
            total = run(inputs)
            if around == "another tracing":
                assert TracingContext.try_get() is not None
    found = torch.autograd.grad(total, list(layer.parameters()))
    assert_close(found, torch.autograd.grad(loop(inputs)[0].square().sum(), list(layer.parameters())))


class Mixed(Scaled):
    fusable = True


@pytest.mark.parametrize("which", ["step", "forward of a part"])
def test_a_method_put_on_a_cell_or_a_part_reads_the_weights_as_they_are(which):
    cell, inputs = Mixed(INPUT, HIDDEN).double(), torch.randn(2, 3, INPUT, dtype=torch.float64)
    expected = Recurrent(copy.deepcopy(cell))(inputs)[0]
    owner, name = (cell, "step") if which == "step" else (cell.mix, "forward")
    method = getattr(owner, name)
    setattr(owner, name, lambda *arguments: method(*arguments))
    outputs, _ = Recurrent(cell)(inputs)
    assert_close(outputs, expected)
    outputs.sum().backward()
    assert cell.mix.weight.grad.any()
    with pytest.raises(ValueError, match="this step cannot be recorded: it reads weights elsewhere than in its module"):
        Recurrent(cell, engine="fused")(inputs)


@pytest.mark.parametrize("name", ["lstm", "gru-reset-before", "layer-norm-lstm", "rhn-3"])
def test_where_bfloat16_is_slow_its_products_are_made_in_float32_with_weights_cast_once(name, monkeypatch):
    cell = zoo.CELLS[name](5, 6)
    inputs, weights = torch.randn(4, 7, 5), list(cell.parameters())
    expected, _ = Recurrent(cell, engine="loop")(inputs)
    exact = oracles.gradients_of(expected.square().sum(), weights)
    texts = []
    for slow in (True, False):
        monkeypatch.setattr(graph, "multiplies_slowly", lambda dtype, _, slow=slow: slow and dtype == torch.bfloat16)
        twin = copy.deepcopy(cell)
        with torch.autocast("cpu", torch.bfloat16):
            outputs, _ = Recurrent(twin, engine="fused")(inputs)
        found = oracles.gradients_of(outputs.float().square().sum(), list(twin.parameters()))
        for got, reference in zip([outputs, *found], [expected, *exact], strict=True):
            error = float((got.float() - reference).detach().norm())
            assert error <= 0.08 * max(float(reference.detach().norm()), 1e-3)
        (program,) = (p for p in programs_of(twin).values() if not isinstance(p, tuple))
        texts.append(program.text)
        given = {f"v{k}" for k in range(40)} & set(program.text.split("(", 1)[1].split(")", 1)[0].split(", "))
        forward = program.text.split("def forward")[1].split("def ")[0]
        assert not [cast for cast in re.findall(r"_to_copy\w*\((\w+)", forward) if cast in given]  # of a weight
    assert texts[0].count("_to_copy") > texts[1].count("_to_copy")
