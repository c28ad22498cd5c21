"""The way back in chunks of steps: the loop's gradients, and what was saved goes as soon as nobody needs it."""

from dataclasses import replace

import oracles
import pytest
import torch
import zoo
from torch.testing import assert_close

from rnn_blocks import Cell, GRUCell, LayerNormLSTMCell, Recurrent
from rnn_blocks.engine import chunks, state_tensors


@pytest.fixture
def _small(monkeypatch):
    monkeypatch.setattr(chunks, "ROWS", 6)  # two steps of three sequences


def outcome(layer, inputs, **options):
    torch.manual_seed(3)
    x = inputs.clone().requires_grad_()
    outputs, after = layer(x, **options)
    weights = [p for p in layer.parameters() if p.requires_grad]
    gradients = oracles.gradients_of(oracles.weighted_sum(outputs, after), [x, *weights])
    return [outputs.detach(), *(t.detach() for t in state_tensors(after)), *gradients]


@pytest.mark.parametrize(
    ("time", "batch", "edges"),
    [
        (35, 20, [(0, 35)]),
        (128, 16, [(0, 64), (64, 128)]),
        (128, 64, [(16 * k, 16 * k + 16) for k in range(8)]),
        (3, 4096, [(0, 1), (1, 2), (2, 3)]),
        (20, 160, [(0, 7), (7, 14), (14, 20)]),
        (5, 0, [(0, 5)]),
    ],
)
def test_chunks_have_a_thousand_rows_and_are_at_most_eight(time, batch, edges):
    assert chunks.edges(time, batch) == edges


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", zoo.rest_is_slow(zoo.CELLS, zoo.SOME))
def test_gradients_are_those_of_the_loop(name):
    cell = zoo.CELLS[name](4, 6).double()
    inputs = torch.randn(3, 7, 4, dtype=torch.float64)
    resets = torch.rand(3, 7) < 0.3
    for options in ({}, {"lengths": torch.tensor([7, 0, 4]), "resets": resets}):
        found, expected = (outcome(Recurrent(cell, engine=engine), inputs, **options) for engine in ("fused", "loop"))
        assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("_small")
def test_weights_that_are_added_up_step_by_step_are_added_up_over_chunks():
    class Outer(Cell):
        """A weight with a row for each sequence, the gradient of which is no sum over them."""

        def __init__(self, batch, size):
            super().__init__(size, size)
            self.offset = torch.nn.Parameter(torch.randn(batch, size))

        def step(self, projected, state):
            state = projected + state + self.offset
            return state, state

    layer, inputs = Recurrent(Outer(3, 4).double(), engine="fused"), torch.randn(3, 7, 4, dtype=torch.float64)
    expected = outcome(Recurrent(layer.cell, engine="loop"), inputs)
    assert_close(outcome(layer, inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("_small")
def test_a_backward_pass_can_be_repeated_where_the_graph_is_retained_and_no_more_after_that():
    layer = Recurrent(GRUCell(3, 4), engine="fused")
    inputs = torch.randn(3, 7, 3, requires_grad=True)
    total = layer(inputs)[0].square().sum()
    first = torch.autograd.grad(total, inputs, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(total, inputs)[0], first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(total, inputs)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("retained", [True, False])
def test_what_was_saved_for_a_chunk_goes_before_the_chunk_before_it_is_run(retained, monkeypatch):
    outputs, _ = Recurrent(LayerNormLSTMCell(3, 4), engine="fused")(torch.randn(3, 7, 3))
    of_sequence, held = outputs._base.grad_fn.chunks, []
    run = outputs._base.grad_fn.program.gather

    def gather(*arguments):
        held.append([bool(chunk.saved) for chunk in of_sequence])
        return run(*arguments)

    monkeypatch.setattr(outputs._base.grad_fn, "program", replace(outputs._base.grad_fn.program, gather=gather))
    outputs.sum().backward(retain_graph=retained)
    assert held == [[True] * (3 if retained else k) + [False] * (0 if retained else 3 - k) for k in (3, 2, 1)]
    assert [bool(chunk.saved or chunk.stacked) for chunk in of_sequence] == [retained] * 3


@pytest.mark.parametrize("retained", [True, False])
def test_whether_the_graph_is_kept_is_torchs_to_say(retained, monkeypatch):
    layer = Recurrent(GRUCell(3, 4), engine="fused")
    for asks in (True, False):  # a torch that does not tell
        if not asks:
            monkeypatch.delattr(torch._C._autograd, "_get_current_graph_task_keep_graph")
        outputs, _ = layer(torch.randn(3, 7, 3))
        node = outputs._base.grad_fn
        outputs.sum().backward(retain_graph=retained)
        assert bool(node.chunks[0].saved) == (retained or not asks)
