"""The fused engine and what is changed or goes on around it: tensors in place, methods, hooks, other tracings."""

import copy

import oracles
import pytest
import torch
import zoo
from fused_cells import HIDDEN, INPUT, Scaled, both
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.testing import assert_close
from torch.utils.module_tracker import ModuleTracker

from rnn_blocks import Cell, ElmanCell, LayerNormLSTMCell, Recurrent
from rnn_blocks.engine import map_state, state_tensors


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
