"""Small attentions, and their equations written out for one query and one position at a time."""

import math

import oracles
import pytest
import torch
from torch import nn

from rnn_blocks import AdditiveAttention, ConcatAttention, DotAttention, GeneralAttention, MultiHeadAttention

QUERY, MEMORY = 6, 4
EXACT = {"rtol": 1e-12, "atol": 1e-12, "check_stride": False}
ATTENTIONS = {
    "dot": lambda coverage: DotAttention(MEMORY, MEMORY, coverage=coverage),
    "general": lambda coverage: GeneralAttention(QUERY, MEMORY, coverage=coverage),
    "concat": lambda coverage: ConcatAttention(QUERY, MEMORY, attention_size=5, coverage=coverage),
    "additive": lambda coverage: AdditiveAttention(QUERY, MEMORY, coverage=coverage),
    "multi-head": lambda coverage: MultiHeadAttention(QUERY, MEMORY, num_heads=3, coverage=coverage),
}
KINDS = [(name, coverage) for name in ATTENTIONS for coverage in (False, True)]
every_attention = pytest.mark.parametrize(("name", "coverage"), KINDS)
some_attentions = pytest.mark.parametrize(  # by default; all others are slow
    ("name", "coverage"),
    [pytest.param(*kind, marks=() if kind[0] in ("additive", "multi-head") else pytest.mark.slow) for kind in KINDS],
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
