"""Small decoders, and their equations written out for one sentence at a time."""

import math

import oracles
import torch
from torch import Tensor

from rnn_blocks import GRU, LSTM, AdditiveAttention, Decoder, GeneralAttention, MultiHeadAttention
from rnn_blocks.engine import State, map_state

VOCAB, EMBEDDED, HIDDEN, FEATURES, CONTEXT = 7, 3, 4, 5, 2
LAYERS = {
    "gru": lambda size: GRU(size, HIDDEN),
    "lstm": lambda size: LSTM(size, HIDDEN),
    "deep gru": lambda size: GRU(size, HIDDEN, num_layers=2),
    "deep lstm": lambda size: LSTM(size, HIDDEN, num_layers=2),
}
ATTENTIONS = {
    "additive": AdditiveAttention,
    "general": GeneralAttention,
    "multi-head": lambda *sizes, coverage=False: MultiHeadAttention(*sizes, num_heads=2, coverage=coverage),
}
EXACT = {"rtol": 1e-9, "atol": 1e-9, "check_stride": False}


def make(
    layer="gru",
    attention="additive",
    *,
    feeding=True,
    coverage=False,
    context=False,
    features=None,
    engine="fused",
    **options,
) -> Decoder:
    """A decoder in float64 with weights away from where they start, some of which are zeros."""
    torch.manual_seed(0)
    size = EMBEDDED + context * CONTEXT + feeding * (features or HIDDEN)
    decoder = Decoder(
        LAYERS[layer](size) if isinstance(layer, str) else layer(size),
        VOCAB,
        attention=None if attention is None else ATTENTIONS[attention](HIDDEN, FEATURES, coverage=coverage),
        input_feeding=feeding,
        context_size=context * CONTEXT,
        attentional_size=features,
        engine=engine,
        **options,
    ).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return decoder


def draw(decoder: Decoder, lengths: list[int], target: int, source: int | None = None) -> dict[str, object]:
    """Tokens, and all that a decoder gets of a source, each a leaf that gradients reach."""
    batch, source = len(lengths), source or max(*lengths, 1)
    outputs = torch.randn(batch, source, FEATURES, dtype=torch.float64)
    state = oracles.random_state(decoder.layer.initial_state(batch, outputs))
    context = torch.randn(batch, CONTEXT, dtype=torch.float64) if decoder.cell.context_size else None
    return {
        "tokens": torch.randint(VOCAB, (batch, target)),
        "lengths": torch.tensor(lengths),
        "outputs": outputs.requires_grad_(),
        "state": map_state(lambda tensor: tensor.requires_grad_(tensor.is_floating_point()), state),
        "context": None if context is None else context.requires_grad_(),
    }


def look_by_hand(decoder: Decoder, h: Tensor, values: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """Context and weights of ``h (hidden,)`` on ``values (source, features)``."""
    attention = decoder.attention
    if isinstance(attention, MultiHeadAttention):
        query, keys = attention.query_layer.weight @ h, values @ attention.key_layer.weight.T
        mapped, size = values @ attention.value_layer.weight.T, HIDDEN // 2
        contexts, found = [], []
        for head in range(2):
            part = slice(head * size, (head + 1) * size)
            scores = keys[:, part] @ query[part] / math.sqrt(size)
            if attention.coverage:
                scores = scores + attention.coverage_weight[head].squeeze() * covered
            found.append(scores.softmax(0))
            contexts.append(found[-1] @ mapped[:, part])
        return attention.output_layer.weight @ torch.cat(contexts), torch.stack(found).mean(0)
    if isinstance(attention, AdditiveAttention):
        inside = attention.query_layer.weight @ h + attention.key_layer(values)
        if attention.coverage:
            inside = inside + covered[:, None] * attention.coverage_weight
        scores = inside.tanh() @ attention.v
    else:
        scores = values @ attention.key_layer.weight.T @ h
        if attention.coverage:
            scores = scores + attention.coverage_weight * covered
    weights = scores.softmax(0)
    return weights @ values, weights


def sentence_by_hand(decoder: Decoder, tokens, values, state, context) -> tuple[Tensor, Tensor, State]:
    """Logits ``(target, vocab)``, weights ``(target, source)`` and the last state of one sentence."""
    cells = [part.cell for part in decoder.layer.layers]
    fed, covered = values.new_zeros(decoder.cell.hidden_size), values.new_zeros(len(values))
    states, logits, maps = list(state), [], []
    for token in tokens:
        parts = [decoder.embedding.weight[token]]
        parts += [] if context is None else [context]
        parts += [fed] if decoder.cell.input_feeding else []
        h = torch.cat(parts)
        for k, cell in enumerate(cells):
            h, states[k] = oracles.equations(cell, h, states[k])
        if decoder.attention is not None:
            read, weights = look_by_hand(decoder, h, values, covered)
            covered = covered + weights
            maps.append(weights)
        else:
            read = context
        if read is not None:
            combine = decoder.cell.combine
            h = torch.tanh(combine.weight @ torch.cat([h, read]) + combine.bias)
        fed = h
        logits.append(decoder.output.weight @ h + decoder.output.bias)
    after = (
        fed if decoder.cell.input_feeding else (),
        tuple(states),
        covered if decoder.attention is not None and decoder.attention.coverage else (),
    )
    return torch.stack(logits), torch.stack(maps) if maps else None, after


def by_hand(decoder: Decoder, given: dict) -> tuple[Tensor, Tensor | None, State]:
    """The sentences one by one, each without its padding."""
    source, found = given["outputs"].shape[1], []
    for n, length in enumerate(given["lengths"].tolist()):
        state = oracles.rows(given["state"], n)
        context = None if given["context"] is None else given["context"][n]
        logits, weights, (fed, after, covered) = sentence_by_hand(
            decoder, given["tokens"][n], given["outputs"][n, :length], state, context
        )
        if weights is not None:
            weights = torch.nn.functional.pad(weights, (0, source - length))
        if not isinstance(covered, tuple):
            covered = torch.nn.functional.pad(covered, (0, source - length))
        found.append((logits, weights, (fed, after, covered)))
    logits, weights, states = zip(*found, strict=True)
    state = map_state(lambda *rows: torch.stack(rows), *states)
    return torch.stack(logits), None if weights[0] is None else torch.stack(weights), state


def whole(decoder: Decoder, given: dict, *, need_weights: bool = False) -> tuple[Tensor, Tensor | None, State]:
    """By :meth:`Decoder.forward`."""
    memory = decoder.on(given["outputs"], given["lengths"], given["context"])
    features, weights, state = decoder(
        given["tokens"], decoder.start(given["state"], memory), memory, need_weights=need_weights
    )
    return decoder.output(features), weights, state


def step_by_step(decoder: Decoder, given: dict) -> tuple[Tensor, Tensor | None, State]:
    """By :meth:`Decoder.step`, with one hypothesis a sentence."""
    memory = decoder.on(given["outputs"], given["lengths"], given["context"])
    state = map_state(lambda tensor: tensor.unsqueeze(1), decoder.start(given["state"], memory))
    logits, maps = [], []
    for column in given["tokens"].unbind(1):
        step = decoder.step(column.unsqueeze(1), state, memory)
        state = step.state
        logits.append(step.logits)
        maps.append(step.attention)
    weights = None if maps[0] is None else torch.cat(maps, 1)
    return torch.cat(logits, 1), weights, map_state(lambda tensor: tensor.squeeze(1), state)


def leaves(decoder: Decoder, given: dict) -> list[Tensor]:
    """All that gradients are wanted of."""
    from rnn_blocks.engine import state_tensors

    context = [] if given["context"] is None else [given["context"]]
    state = [tensor for tensor in state_tensors(given["state"]) if tensor.requires_grad]
    return [given["outputs"], *state, *context, *decoder.parameters()]


def outcome(decoder: Decoder, given: dict, result: tuple, *, weights: bool = False) -> list[Tensor]:
    """Logits, the last state, where wanted the weights, and all gradients."""
    from rnn_blocks.engine import state_tensors

    logits, maps, state = result
    values = [logits, *state_tensors(state), *([maps] if weights else [])]
    total = oracles.weighted_sum(logits, tuple(values[1:]))
    return [*values, *oracles.gradients_of(total, leaves(decoder, given))]
