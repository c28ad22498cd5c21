"""What lies past a length does not count, whatever it is: for attention, bridges and losses."""

import copy
import math
import pickle

import attentions
import decoders
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

import rnn_blocks
from rnn_blocks import GRU, Elman, Encoder, MeanBridge
from rnn_blocks.modules.linear_cross_entropy import linear_cross_entropy, smoothing_term

EXACT = {"rtol": 1e-10, "atol": 1e-12}
FILLINGS = (0.0, math.nan, math.inf)
LENGTHS = [5, 0, 3]
PAST = torch.arange(5) >= torch.tensor(LENGTHS)[:, None]


def filled(tensor, filling, past=PAST):
    """A leaf with something else where nothing counts."""
    return (
        tensor.detach()
        .masked_fill(past.view(*past.shape, *[1] * (tensor.dim() - past.dim())), filling)
        .requires_grad_()
    )


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@attentions.every_attention
def test_nothing_past_a_length_is_looked_at(name, coverage):
    results = []
    attention = attentions.make(name, coverage)
    query, values, lengths, covered = attentions.example(attention, LENGTHS)
    for filling in FILLINGS:
        attention.zero_grad()
        own = filled(values, filling)
        context, weights = attention(query, attention.on(own, lengths.tolist()), covered)
        (context.sin().sum() + weights.cos().sum()).backward()
        assert not own.grad[PAST].any()
        results.append((context, weights, own.grad, {k: g.clone() for k, g in gradients(attention).items()}))
    for result in results[1:]:
        assert_close(result, results[0], **EXACT)


@attentions.every_attention
def test_attentions_are_parametrised_pruned_transformed_and_copied(name, coverage):
    attention = attentions.make(name, coverage)
    query, values, lengths, covered = attentions.example(attention, LENGTHS)
    layers = [module for module in attention.modules() if isinstance(module, nn.Linear)]

    def look(queries, module=attention):
        return module(queries, module.on(values, lengths), covered)[0]

    expected = torch.autograd.functional.jacobian(look, query)
    assert_close(torch.func.jacrev(look)(query), expected, **EXACT)
    for other in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert_close(look(query, other), look(query), **EXACT)
    for layer in layers:
        parametrizations.weight_norm(layer, "weight")
    assert_close(torch.func.jacrev(look)(query), expected, **EXACT)
    for _ in range(2):
        look(query.clone().requires_grad_()).sin().sum().backward()
    assert all(parameter.grad is not None for layer in layers for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # in tiles, and not
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", [linear_cross_entropy, smoothing_term])
def test_rows_without_a_target_count_for_no_loss(dtype, bias, loss):
    output = nn.Linear(4, 9, bias=bias, dtype=dtype)
    hidden, targets = torch.randn(6, 4, dtype=dtype), torch.tensor([1, 8, -100, 0, -100, 3])
    results = []
    for filling in FILLINGS:
        output.zero_grad()
        own = filled(hidden, filling, targets == -100)
        value = loss(own, output.weight, output.bias, targets)
        value.backward()
        assert not own.grad[targets == -100].any()
        results.append((value, own.grad, {k: g.clone() for k, g in gradients(output).items()}))
    for result in results[1:]:
        assert_close(result, results[0])


@pytest.mark.parametrize(
    "penalty", [rnn_blocks.activation_regularisation, rnn_blocks.temporal_activation_regularisation]
)
def test_penalties_count_the_steps_of_each_length(penalty):
    outputs, results = torch.randn(3, 5, 4, dtype=torch.float64), []
    for filling in FILLINGS:
        own = filled(outputs, filling)
        value = penalty(own, 2.0, lengths=LENGTHS)
        value.backward()
        assert not own.grad[PAST].any()
        results.append((value, own.grad))
    for result in results[1:]:
        assert_close(result, results[0], **EXACT)


def test_the_penalty_on_vanishing_gradients_takes_lengths_as_a_list_and_parametrised_weights():
    torch.manual_seed(0)
    layer = Elman(3, 4).double()
    plain = [weight.detach().clone() for weight in layer.parameters()]
    inputs = torch.randn(3, 5, 3, dtype=torch.float64)
    values = []
    for _ in range(2):
        outputs, _ = layer(filled(inputs, math.nan), lengths=LENGTHS)
        loss = outputs.square().sum()
        value = rnn_blocks.vanishing_gradient_penalty(layer, outputs, loss, lengths=LENGTHS)
        (loss + value).backward()
        values.append(value)
        assert all(weight.grad.isfinite().all() for weight in layer.parameters())
        parametrizations.weight_norm(layer.layers[0].cell, "weight_hh")
    assert_close(values[1], values[0], **EXACT)
    assert len(plain) == 3


def test_a_mean_is_over_what_counts():
    encoder = Encoder(GRU(3, 4), 10).double()
    bridge = MeanBridge(encoder.layer, GRU(3, 5)).double()
    encoded = encoder(torch.randint(10, (3, 5)), LENGTHS)
    expected = bridge(encoded)
    for filling in FILLINGS:
        outputs = filled(encoded.outputs, filling)
        found = bridge(encoded._replace(outputs=outputs))
        assert_close(found, expected, **EXACT)
        found[1].sum().backward()
        assert not outputs.grad[PAST].any()


@pytest.mark.parametrize(
    "change", [parametrizations.weight_norm, lambda *which: prune.l1_unstructured(*which, amount=0.5)]
)
@pytest.mark.parametrize("attention", ["additive", "multi-head"])
def test_weights_of_an_attention_inside_a_recorded_decoder_are_computed_once_a_sequence(change, attention):
    results = []
    for engine in ("fused", "loop"):
        decoder = decoders.make(attention=attention, engine=engine)
        change(decoder.attention.query_layer, "weight")
        torch.manual_seed(1)
        example = decoders.draw(decoder, [4, 2], target=3)
        memory = decoder.on(example["outputs"], example["lengths"])
        logits, _, _ = decoder(example["tokens"], decoder.start(example["state"], memory), memory)
        logits.sin().sum().backward()
        found = gradients(decoder)
        assert all(gradient is not None for name, gradient in found.items() if "query_layer" in name)
        results.append((logits, example["outputs"].grad, found))
    assert_close(results[1], results[0], rtol=1e-8, atol=1e-10)
