"""Every attention against loops in float64, and what padding, beams, steps and empty sources must not change."""

import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from rnn_blocks import (
    AdditiveAttention,
    Attention,
    Cell,
    ConcatAttention,
    DotAttention,
    GeneralAttention,
    Memory,
    MultiHeadAttention,
    make_attention,
)
from rnn_blocks.engine import run_fused, run_loop

QUERY, MEMORY = 6, 4
EXACT = {"rtol": 1e-12, "atol": 1e-12, "check_stride": False}
ATTENTIONS = {
    "dot": lambda coverage: DotAttention(MEMORY, MEMORY, coverage=coverage),
    "general": lambda coverage: GeneralAttention(QUERY, MEMORY, coverage=coverage),
    "concat": lambda coverage: ConcatAttention(QUERY, MEMORY, attention_size=5, coverage=coverage),
    "additive": lambda coverage: AdditiveAttention(QUERY, MEMORY, coverage=coverage),
    "multi-head": lambda coverage: MultiHeadAttention(QUERY, MEMORY, num_heads=3, coverage=coverage),
}
every_attention = pytest.mark.parametrize(
    ("name", "coverage"), [(name, coverage) for name in ATTENTIONS for coverage in (False, True)]
)


def make(name, coverage=False, device="cpu"):
    attention = ATTENTIONS[name](coverage).double().to(device)
    if coverage:
        nn.init.uniform_(attention.coverage_weight, -1, 1)  # where it starts at 0, nobody would see it
    return attention


def example(attention, lengths, source=5, target=3):
    """Queries, values, lengths and coverage, in float64."""
    device = next(iter([*attention.parameters(), torch.empty(0)])).device
    numbers = {"dtype": torch.float64, "device": device}
    batch = len(lengths)
    query = torch.randn(batch, target, attention.query_size, **numbers)
    values = torch.randn(batch, source, attention.memory_size, **numbers)
    coverage = torch.rand(batch, target, source, **numbers) if attention.coverage else None
    return query, values, torch.tensor(lengths, device=device), coverage


def score_of(attention, q, h, c):
    """The score of one query and one position by the papers' equations; of each head for several."""
    extra = attention.coverage_weight * c if c is not None else 0.0
    match attention:
        case ConcatAttention():
            W = torch.cat([attention.query_layer.weight, attention.key_layer.weight], 1)
            return attention.v @ torch.tanh(W @ torch.cat([q, h]) + extra)
        case AdditiveAttention():
            W, U, b = attention.query_layer.weight, attention.key_layer.weight, attention.key_layer.bias
            return attention.v @ torch.tanh(W @ q + U @ h + b + extra)
        case DotAttention():
            return q @ h + extra
        case GeneralAttention():
            return q @ (attention.key_layer.weight @ h) + extra
        case MultiHeadAttention():
            Q, K = (
                (layer.weight @ x).view(3, -1) for layer, x in ((attention.query_layer, q), (attention.key_layer, h))
            )
            return (Q * K).sum(-1) / math.sqrt(QUERY // 3) + (extra.flatten() if c is not None else 0.0)


def by_hand(attention, query, values, lengths, coverage):
    """Contexts and weights, sentence by sentence and query by query, looking at no padding."""
    batch, target = query.shape[:2]
    contexts = query.new_zeros(batch, target, attention.output_size)
    weights = query.new_zeros(batch, target, values.shape[1])
    for n in range(batch):
        length = int(lengths[n])
        for i in range(target if length else 0):
            covered = [None if coverage is None else coverage[n, i, j] for j in range(length)]
            scores = [score_of(attention, query[n, i], values[n, j], covered[j]) for j in range(length)]
            e = torch.exp(torch.stack(scores))
            a = e / e.sum(0)  # (source,), or (source, heads)
            if isinstance(attention, MultiHeadAttention):
                V = torch.stack([(attention.value_layer.weight @ h).view(3, -1) for h in values[n, :length]])
                contexts[n, i] = attention.output_layer.weight @ (a[..., None] * V).sum(0).flatten()
                weights[n, i, :length] = a.mean(1)
            else:
                contexts[n, i] = sum(a[j] * values[n, j] for j in range(length))
                weights[n, i, :length] = a
    return contexts, weights


def outcome(attention, run, query, values, lengths, coverage):
    """Contexts, weights, and all gradients."""
    query, values = query.clone().requires_grad_(), values.clone().requires_grad_()
    covered = [] if coverage is None else [coverage.clone().requires_grad_()]
    context, weights = run(query, values, lengths, *covered)
    total = oracles.weighted_sum(context, weights)
    return context, weights, oracles.gradients_of(total, [query, values, *covered, *attention.parameters()])


def looks(attention):
    return lambda query, values, lengths, coverage=None: attention(query, attention.on(values, lengths), coverage)


@every_attention
def test_contexts_weights_and_gradients_are_those_of_the_equations(name, coverage, device):
    attention = make(name, coverage, device)
    arguments = example(attention, [5, 0, 2, 1])
    expected = outcome(attention, lambda q, v, n, c=None: by_hand(attention, q, v, n, c), *arguments)
    assert_close(outcome(attention, looks(attention), *arguments), expected, rtol=1e-9, atol=1e-10, check_stride=False)


def test_multi_head_attention_is_that_of_torch():
    ours = MultiHeadAttention(8, 4, num_heads=2).double()
    theirs = nn.MultiheadAttention(8, 2, bias=False, kdim=4, vdim=4, batch_first=True).double()
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.query_layer.weight)
        theirs.k_proj_weight.copy_(ours.key_layer.weight)
        theirs.v_proj_weight.copy_(ours.value_layer.weight)
        theirs.out_proj.weight.copy_(ours.output_layer.weight)
    query, values, lengths = torch.randn(2, 3, 8).double(), torch.randn(2, 5, 4).double(), torch.tensor([5, 2])
    past = torch.arange(5) >= lengths[:, None]
    expected = theirs(query, values, values, key_padding_mask=past)
    assert_close(ours(query, ours.on(values, lengths)), expected, **EXACT)


@settings(max_examples=10)
@given(st.data())
@pytest.mark.parametrize("name", ATTENTIONS)
def test_nothing_past_a_length_is_looked_at(name, data):
    coverage = data.draw(st.booleans())
    attention = make(name, coverage)
    lengths = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    query, values, lengths, covered = example(attention, lengths, source=6, target=2)
    expected = outcome(attention, looks(attention), query, values, lengths, covered)
    past = torch.arange(6) >= lengths[:, None]
    for garbage in (1e30, -1e30, math.inf, math.nan):
        filled = values.masked_fill(past[..., None], garbage)
        found = outcome(attention, looks(attention), query, filled, lengths, covered)
        assert_close(found, expected, rtol=0, atol=0)
    weights = expected[1]
    assert torch.equal(weights.masked_select(past.unsqueeze(1)), torch.zeros(2 * int(past.sum())).double())
    assert_close(weights.sum(-1), (lengths > 0).double().unsqueeze(1).expand(-1, 2), **EXACT)
    assert not expected[2][1].masked_select(past[..., None]).any()


@every_attention
def test_more_padding_changes_nothing(name, coverage):
    attention = make(name, coverage)
    query, values, lengths, covered = example(attention, [4, 2, 0])
    short = attention(query, attention.on(values[:, :4], lengths), None if covered is None else covered[..., :4])
    context, weights = attention(query, attention.on(values, lengths), covered)
    assert_close((context, weights[..., :4]), short, **EXACT)


@every_attention
def test_a_source_of_length_0_gets_zeros_and_finite_gradients(name, coverage, device):
    attention = make(name, coverage, device)
    context, weights, gradients = outcome(attention, looks(attention), *example(attention, [0, 0]))
    assert not context.any()
    assert not weights.any()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_source_of_length_0_is_harmless_in_every_precision(name):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        attention = make(name).to(dtype)
        query = torch.full((1, 1, attention.query_size), 100.0, dtype=dtype)  # scores far from 0
        context, weights = attention(query, attention.on(torch.ones(1, 3, MEMORY, dtype=dtype), torch.tensor([0])))
        assert not context.any()
        assert not weights.any()


@every_attention
def test_all_queries_at_once_are_one_after_the_other(name, coverage):
    """One query is a decoder's step, several are all of its steps, or the hypotheses of a beam."""
    attention = make(name, coverage)
    query, values, lengths, covered = example(attention, [5, 3, 0])
    memory = attention.on(values, lengths)
    steps = [
        attention(query[:, i : i + 1], memory, None if covered is None else covered[:, i : i + 1]) for i in range(3)
    ]
    expected = tuple(torch.cat(parts, 1) for parts in zip(*steps, strict=True))
    assert_close(attention(query, memory, covered), expected, **EXACT)


@every_attention
def test_a_memory_is_selected_and_passed_as_any_nest_of_tensors(name, coverage):
    attention = make(name, coverage)
    query, values, lengths, covered = example(attention, [5, 3, 1])
    memory = attention.on(values, lengths)
    assert isinstance(memory, Memory)
    assert all(tensor.is_contiguous() for tensor in memory)
    kept = torch.tensor([2, 0])
    some = tuple(tensor[kept] for tensor in memory)
    expected = tuple(part[kept] for part in attention(query, memory, covered))
    assert_close(attention(query[kept], some, None if covered is None else covered[kept]), expected, **EXACT)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_without_lengths_all_positions_count(name):
    attention = make(name)
    query, values, *_ = example(attention, [5, 5])
    expected = attention(query, attention.on(values, torch.tensor([5, 5])))
    assert_close(attention(query, attention.on(values)), expected, **EXACT)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_what_was_looked_at_is_looked_at_less_under_a_negative_weight_of_coverage(name):
    attention = make(name, coverage=True)
    positive = isinstance(attention, AdditiveAttention)
    nn.init.constant_(attention.coverage_weight, -1.0)
    if positive:
        nn.init.constant_(attention.v, 1.0)
    query, values, lengths, _ = example(attention, [5], target=1)
    memory = attention.on(values, lengths)
    _, even = attention(query, memory, torch.zeros(1, 1, 5).double())
    _, after = attention(query, memory, torch.tensor([[[3.0, 0, 0, 0, 0]]]).double())
    assert after[0, 0, 0] < even[0, 0, 0]
    assert (after[0, 0, 1:] > even[0, 0, 1:]).all()


@pytest.mark.parametrize("name", ["dot", "general", "multi-head"])
def test_coverage_as_a_number_to_learn_starts_without_effect(name):
    attention = ATTENTIONS[name](True).double()
    query, values, lengths, coverage = example(attention, [5, 2])
    memory = attention.on(values, lengths)
    assert_close(attention(query, memory, coverage), attention(query, memory, 0 * coverage), **EXACT)
    attention(query, memory, coverage)[0].square().sum().backward()
    assert attention.coverage_weight.grad.any()


def test_concat_starts_as_one_matrix_and_additive_as_two():
    torch.manual_seed(0)
    for kind, fan_in in ((ConcatAttention, 100 + 300), (AdditiveAttention, 300)):
        attention = kind(100, 300, attention_size=50)
        for part, own in ((attention.query_layer, 100), (attention.key_layer, 300)):
            bound = 1 / math.sqrt(fan_in if kind is ConcatAttention else own)
            assert 0.95 * bound < part.weight.abs().max() <= bound
    assert ConcatAttention(3, 4).key_layer.bias is None
    assert AdditiveAttention(3, 4).attention_size == 3


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


@every_attention
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


# Errors


def test_a_name_makes_its_attention():
    for name in ATTENTIONS:
        attention = make_attention(name, 4, 4, coverage=True)
        assert type(attention) is type(ATTENTIONS[name](False))
        assert attention.coverage
    with pytest.raises(ValueError, match="one of 'dot', 'general', 'concat', 'additive', 'multi-head', got 'luong'"):
        make_attention("luong", 4, 4)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: DotAttention(3, 4), "query_size 3 and memory_size 4; general attention takes any two"),
        (lambda: GeneralAttention(0, 4), "query_size must be at least 1, got 0"),
        (lambda: AdditiveAttention(3, -1), "memory_size must be at least 1, got -1"),
        (lambda: AdditiveAttention(3, 4, attention_size=0), "attention_size must be at least 1, got 0"),
        (lambda: MultiHeadAttention(6, 4, num_heads=4), "num_heads must divide query_size 6 evenly, got 4"),
    ],
)
def test_sizes_that_do_not_fit_are_told(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


@pytest.mark.parametrize("name", ["general", "multi-head"])
def test_shapes_that_do_not_fit_are_told(name):
    attention, covering = make(name), make(name, coverage=True)
    query, values, lengths, coverage = example(covering, [5, 2])
    memory = attention.on(values, lengths)
    for call, message in (
        (lambda: attention.on(values[..., :3]), r"memory_size 4, got a tensor of shape \(2, 5, 3\)"),
        (lambda: attention.on(values[0]), r"got a tensor of shape \(5, 4\)"),
        (
            lambda: attention.on(values, torch.tensor([5])),
            r"lengths must be 2 integers, one a sequence, got torch.int64",
        ),
        (lambda: attention.on(values, torch.ones(2)), "lengths must be 2 integers, one a sequence, got torch.float32"),
        (lambda: attention.on(values, torch.tensor([5, 6])), r"between 0 and the 5 steps given, got \[5, 6\]"),
        (lambda: attention(query[..., :3], memory), r"query_size 6, got a tensor of shape \(2, 3, 3\)"),
        (lambda: attention(query[:1], memory), r"for 2 sequences with query_size 6, got a tensor of shape \(1, 3, 6\)"),
        (lambda: attention(query, memory, coverage), r"was made without coverage, got \(2, 3, 5\)"),
        (lambda: covering(query, memory), "needs the sum of the weights so far as coverage, got none"),
        (lambda: covering(query, memory, coverage[:, :1]), r"\(2, 3, 5\) here, got \(2, 1, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_attention_of_ones_own_says_its_scores():
    with pytest.raises(NotImplementedError, match="Attention needs a `scores"):
        Attention(4, 4)(torch.randn(1, 1, 4), Attention(4, 4).on(torch.randn(1, 2, 4)))


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
