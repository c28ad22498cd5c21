"""Recorded steps through torch's compiler, against the same steps without it."""

import shutil

import oracles
import pytest
import torch
import zoo
from torch.testing import assert_close

from rnn_blocks import Recurrent
from rnn_blocks.engine import compile, fused, split, state_tensors
from rnn_blocks.engine.compile import CompilerError
from rnn_blocks.engine.products import can_pack

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own import
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")
SAMPLE = ("gru", "layer-norm-lstm")


def outcome(cell, engine, inputs, state, **options):
    torch.manual_seed(3)
    x = inputs.clone().requires_grad_()
    outputs, after = Recurrent(cell, engine=engine, batch_first=False)(x, state, **options)
    gradients = oracles.gradients_of(oracles.weighted_sum(outputs, after), [x, *cell.parameters()])
    return [outputs.detach(), *(t.detach() for t in state_tensors(after)), *gradients]


def check(name, device):
    cell = zoo.CELLS[name](5, 8).to(device)
    inputs = torch.randn(6, 4, 5, device=device)
    state = oracles.random_state(cell.initial_state(4, inputs))
    resets = torch.rand(6, 4, device=device) < 0.3
    transposed = inputs.transpose(0, 1).contiguous().transpose(0, 1)  # the compiler takes tensors without gaps
    for options in ({}, {"lengths": torch.tensor([6, 2, 0, 4]), "resets": resets}):
        found = outcome(cell, "compiled", transposed, state, **options)
        for got, expected in zip(found, outcome(cell, "fused", inputs, state, **options), strict=True):
            assert got.shape == expected.shape
            if expected.dtype == torch.int64:  # a clock
                assert torch.equal(got, expected)
                continue
            assert float((got - expected).norm()) <= 2e-5 * max(float(expected.norm()), 1e-2)


@needs_compiler
@pytest.mark.parametrize("name", [SAMPLE[0], pytest.param(SAMPLE[1], marks=pytest.mark.processes)])
def test_a_compiled_step_computes_what_the_recorded_one_does(name, device):
    check(name, device)


@needs_compiler
@pytest.mark.parametrize("packing", [True, False])
def test_it_does_so_where_the_recorded_steps_pack_their_factors_and_where_not(packing, device, monkeypatch):
    monkeypatch.setattr(split, "packing_pays", lambda weight: packing and can_pack(weight))
    check("gru", device)


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore:.*complex operators.*")
@pytest.mark.parametrize("name", [name for name in zoo.CELLS if name not in SAMPLE])
def test_every_compiled_step_computes_what_the_recorded_one_does(name, device):
    check(name, device)


@needs_compiler
def test_a_step_that_draws_random_numbers_is_not_compiled():
    class Noisy(oracles.LeakySum):
        def step(self, projected, state):
            output, state = super().step(projected, state)
            return torch.nn.functional.dropout(output, 0.5, self.training), state

    cell = Noisy(3, 4)
    inputs = torch.randn(5, 2, 3)
    assert_close(outcome(cell, "compiled", inputs, None), outcome(cell, "fused", inputs, None), rtol=0, atol=0)
    assert not any(program.compiled for program in fused._programs[cell].values())


def test_without_a_compiler_it_is_refused_or_done_without(monkeypatch):
    def fail(*_):
        raise CompilerError("torch's compiler cannot compile this step: no compiler")

    monkeypatch.setattr(compile, "compile_flat", fail)
    cell = zoo.CELLS["peephole-lstm"](3, 4)
    inputs = torch.randn(5, 2, 3)
    with pytest.raises(CompilerError, match="no compiler"):
        Recurrent(cell, engine="compiled")(inputs)
    layer = Recurrent(cell)
    monkeypatch.setattr(layer, "_engine_for", lambda *_: "compiled")  # what "auto" is on a GPU
    with pytest.warns(UserWarning, match="no compiler; going on without it"):
        outputs, _ = layer(inputs)
    assert_close(outputs, Recurrent(cell, engine="loop")(inputs)[0], check_stride=False)
    assert torch.equal(layer(inputs)[0], outputs)  # no second try, no second warning


def test_a_step_that_divides_by_whole_numbers_is_compiled(monkeypatch):
    monkeypatch.setattr("rnn_blocks.engine.compile.compile_flat", lambda function, _: function)
    check("clockwork-gru", "cpu")


def test_only_a_few_shapes_are_compiled_where_nobody_asked_for_it(monkeypatch):
    compiled = []
    monkeypatch.setattr(compile, "compile_flat", lambda function, _: compiled.append(function) or function)
    layer = Recurrent(zoo.CELLS["gru"](3, 4))
    monkeypatch.setattr(layer, "_engine_for", lambda *_: "compiled")
    for batch in range(1, 8):
        outputs, _ = layer(torch.randn(batch, 2, 3))
        outputs.sum().backward()
    assert len(compiled) == 2 * fused.MOST_COMPILED  # a forward and a backward step each
