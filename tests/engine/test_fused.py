"""The fused engine: what is recorded is what the step is, in every setting; what cannot be recorded is refused."""

import copy
import gc
import pickle
import weakref

import oracles
import pytest
import torch
import zoo
from fused_cells import HIDDEN, INPUT, Scaled, both, programs_of
from torch import nn
from torch.testing import assert_close

from rnn_blocks import Cell, ElmanCell, GRUCell, LSTMCell, Recurrent
from rnn_blocks.engine import fused, map_state, state_tensors


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
