"""Every attention against loops in float64, and what padding, beams, steps and empty sources must not change."""

import math

import pytest
import torch
from attentions import ATTENTIONS, EXACT, MEMORY, by_hand, every_attention, example, looks, make, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from rnn_blocks import (
    AdditiveAttention,
    Attention,
    ConcatAttention,
    DotAttention,
    GeneralAttention,
    Memory,
    MultiHeadAttention,
    make_attention,
)


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
        (lambda: GeneralAttention(3, 4, coverage=0.5), "coverage must be True or False, got 0.5"),
    ],
)
def test_arguments_that_do_not_fit_are_told(make_it, message):
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
