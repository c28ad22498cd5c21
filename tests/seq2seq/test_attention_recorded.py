"""Every attention in lower precisions, exported, compiled and in a recurrence, against its plain run in float64."""

import oracles
import torch
from attentions import EXACT, MEMORY, every_attention, example, looks, make, outcome, some_attentions
from torch import nn
from torch.testing import assert_close

from rnn_blocks import Cell, MultiHeadAttention
from rnn_blocks.engine import run_fused, run_loop

# Precisions


@every_attention
def test_lower_precisions_are_near_float64(name, coverage, device):
    attention = make(name, coverage, device)
    arguments = example(attention, [5, 2, 0])
    exact = looks(attention)(*arguments)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        lower = make(name, coverage, device)
        lower.load_state_dict(attention.state_dict())
        query, values, lengths, covered = arguments
        given = (query.to(dtype), values.to(dtype), lengths, None if covered is None else covered.to(dtype))
        found = looks(lower.to(dtype))(*given)
        assert [part.dtype for part in found] == [dtype, dtype]
        assert_close(found, exact, rtol=tolerance, atol=tolerance, check_dtype=False)


@every_attention
def test_autocast_is_near_float64(name, coverage, device):
    attention = make(name, coverage, device)
    arguments = example(attention, [5, 2, 0])
    exact = looks(attention)(*arguments)
    single = [part.float() if part is not None and part.is_floating_point() else part for part in arguments]
    with torch.autocast(device.type, torch.bfloat16):
        found = looks(attention.float())(*single)
    assert_close(found, exact, rtol=5e-2, atol=5e-2, check_dtype=False)


# Recorded


@some_attentions
@torch.no_grad()
def test_a_step_exports_with_any_batch_source_and_target(name, coverage):
    attention = make(name, coverage).eval()
    query, values, lengths, covered = example(attention, [5, 2, 0], target=2)
    memory = tuple(attention.on(values, lengths))
    batch, source, target = (torch.export.Dim(axis, min=1, max=512) for axis in ("batch", "source", "target"))
    heads = isinstance(attention, MultiHeadAttention)
    sides = {0: batch, 2 if heads else 1: source}
    shapes = ({0: batch, 1: target}, (sides, sides, {0: batch, 1: source}))
    if coverage:
        program = torch.export.export(
            attention, (query, memory, covered), dynamic_shapes=(*shapes, {0: batch, 1: target, 2: source})
        )
    else:
        program = torch.export.export(attention, (query, memory), dynamic_shapes=shapes)
    for lengths, source, target in (([7], 7, 1), ([1, 0, 3, 2], 3, 4)):
        query, values, lengths, covered = example(attention, lengths, source=source, target=target)
        memory = tuple(attention.on(values, lengths))
        given = (query, memory, covered) if coverage else (query, memory)
        assert_close(program.module()(*given), attention(*given), **EXACT)


@every_attention
def test_projecting_and_looking_compile_as_one_graph(name, coverage):
    torch._dynamo.reset()
    attention = make(name, coverage)
    arguments = example(attention, [5, 2, 0])
    compiled = torch.compile(looks(attention), backend="eager", fullgraph=True)
    assert_close(outcome(attention, compiled, *arguments), outcome(attention, looks(attention), *arguments), **EXACT)
    torch._dynamo.reset()


# In a recurrence


class Reading(Cell):
    """Reads a memory at each step with what it read before: the memory is a part of the state that no step changes."""

    def __init__(self, attention):
        super().__init__(attention.query_size, attention.output_size)
        self.attention = attention
        self.feedback = nn.Linear(attention.output_size, attention.query_size)

    def step(self, projected, state):
        read, seen, memory = state
        query = projected + self.feedback(read)
        covered = seen.unsqueeze(1) if self.attention.coverage else None
        context, weights = self.attention(query.unsqueeze(1), memory, covered)
        context = context.squeeze(1)
        return context, (context, seen + weights.squeeze(1), memory)


@every_attention
def test_recorded_steps_are_those_of_the_plain_loop_with_all_gradients(name, coverage):
    cell = Reading(make(name, coverage)).double()
    inputs = torch.randn(4, 3, cell.input_size, dtype=torch.float64, requires_grad=True)
    values = torch.randn(3, 5, MEMORY, dtype=torch.float64, requires_grad=True)
    found = []
    for fused in (False, True):
        memory = tuple(cell.attention.on(values, torch.tensor([5, 0, 2])))
        state = (inputs.new_zeros(3, cell.hidden_size), inputs.new_zeros(3, 5), memory)
        outputs, after = run_fused(cell, inputs, state) if fused else run_loop(cell.step, inputs, state)
        total = oracles.weighted_sum(outputs, after)
        found.append((outputs, after, oracles.gradients_of(total, [inputs, values, *cell.parameters()])))
    assert_close(found[1], found[0], rtol=1e-10, atol=1e-10, check_stride=False)
