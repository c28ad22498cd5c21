"""A decoder in all the ways it can be run, against its equations written out."""

import oracles
import pytest
import torch
import zoo
from decoders import ATTENTIONS, EXACT, FEATURES, HIDDEN, VOCAB, by_hand, draw, make, outcome, step_by_step, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks import (
    GRU,
    AdditiveAttention,
    Bidirectional,
    Decoder,
    DecoderCell,
    GRUCell,
    LayerNormLSTMCell,
    LRUCell,
    LSTMCell,
    MinGRUCell,
    Recurrent,
    Stack,
    VariationalDropout,
    WeightDrop,
    Zoneout,
)
from rnn_blocks.engine import map_state, state_tensors

KINDS = {
    "fed": {},
    "fed lstm, general, wide": {"layer": "lstm", "attention": "general", "features": 6},
    "fed deep lstm, multi-head, context": {"layer": "deep lstm", "attention": "multi-head", "context": True},
    "covering, fed": {"coverage": True, "context": True, "features": 3},
    "covering general": {"attention": "general", "coverage": True, "feeding": False, "layer": "deep gru"},
    "covering multi-head": {"attention": "multi-head", "coverage": True, "layer": "lstm"},
    "at once": {"feeding": False},
    "at once, deep lstm, multi-head, context, wide": {
        "feeding": False, "layer": "deep lstm", "attention": "multi-head", "context": True, "features": 6,
    },
    "fixed vector at each step": {"attention": None, "feeding": False, "context": True, "layer": "lstm"},
    "fixed vector at the start": {"attention": None, "feeding": False},
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)
SHAPES = st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 4))


def check_every_way(kind, lengths, target):
    decoder = make(**KINDS[kind])
    inputs = draw(decoder, lengths, target)
    expected = outcome(decoder, inputs, by_hand(decoder, inputs))
    ways = {"fused": whole(decoder, inputs), "by steps": step_by_step(decoder, inputs)}
    decoder.recurrent.engine = "loop"
    ways["loop"] = whole(decoder, inputs)
    for name, result in ways.items():
        found = outcome(decoder, inputs, result)
        assert_close(found, expected, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


@every_kind
def test_every_way_to_run_gives_the_equations_values_and_gradients(kind):
    check_every_way(kind, [3, 0, 1], 3)


@settings(max_examples=6)
@given(st.sampled_from(list(KINDS)), SHAPES)
def test_every_way_to_run_gives_the_equations_whatever_the_lengths(kind, shape):
    check_every_way(kind, *shape)


def by_engines(decoder, inputs):
    """What the plain loop and the recorded steps give, with the same noise."""
    found = []
    for engine in ("loop", "fused"):
        decoder.recurrent.engine = engine
        torch.manual_seed(3)
        found.append(outcome(decoder, inputs, whole(decoder, inputs)))
    return found


SIZES = [(1, 1, 1), (1, 3, 2), (2, 1, 2), (3, 3, 3), (HIDDEN, HIDDEN, HIDDEN), (2, 4, 1)]
MEETING = {
    f"{attention}{', covering' * coverage}, {'-'.join(map(str, sizes))}": (attention, coverage, *sizes)
    for attention in ATTENTIONS
    for coverage in (False, True)
    for sizes in SIZES
}
SOME_MEETING = [name for name, (attention, covering, *_) in MEETING.items() if attention == "additive" and not covering]
SOME_MEETING += [
    name for name in MEETING if "additive, covering, 1-1-1" in name or "multi-head, covering, 3-3-3" in name
]


@pytest.mark.parametrize("name", zoo.rest_is_slow(MEETING, SOME_MEETING))
def test_recorded_steps_are_the_loops_where_sizes_meet(name):
    """Gradients are folded over time by what has the batch's size: sizes that are equal or 1 must not mislead it."""
    attention, coverage, batch, source, target = MEETING[name]
    decoder = make(attention=attention, coverage=coverage, features=batch + 1)
    loop, fused = by_engines(decoder, draw(decoder, [source] * batch, target))
    assert_close(fused, loop, **EXACT)


WRAPPED = {
    "layer norm lstm": lambda size: Recurrent(LayerNormLSTMCell(size, HIDDEN)),
    "zoneout lstm": lambda size: Recurrent(Zoneout(LSTMCell(size, HIDDEN), p=0.3)),
    "min gru": lambda size: Recurrent(MinGRUCell(size, HIDDEN)),
    "lru": lambda size: Recurrent(LRUCell(size, HIDDEN)),
    "weight drop": lambda size: WeightDrop(GRU(size, HIDDEN), 0.5),
    "variational dropout": lambda size: Stack([VariationalDropout(size, 0.4), GRU(size, HIDDEN)], dropout=0.5),
}
CELLS = {
    **WRAPPED,
    **{
        f"zoo {name}": lambda size, cell=cell: Recurrent(cell(size, HIDDEN))
        for name, cell in zoo.CELLS.items()
        if name != "slstm-heads"
    },
}
SOME = ("layer norm lstm", "min gru", "weight drop", "variational dropout", "zoo own", "zoo leaky-lstm")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layer", zoo.rest_is_slow(CELLS, SOME))
def test_any_layer_decodes_recorded_as_by_the_loop_and_by_steps(layer, training):
    options = {"coverage": True, "attention": "general"} if training else {"dropout": 0.5}
    decoder = make(CELLS[layer], **options).train(training)
    inputs = draw(decoder, [3, 0, 2], 3)
    loop, fused = by_engines(decoder, inputs)
    assert_close(fused, loop, **EXACT)
    torch.manual_seed(3)
    assert_close(outcome(decoder, inputs, step_by_step(decoder, inputs)), loop, **EXACT)


@every_kind
def test_weights_are_those_of_the_equations_and_asking_for_them_changes_nothing(kind):
    decoder = make(**KINDS[kind])
    inputs = draw(decoder, [3, 0, 1], 3)
    expected, asked = by_hand(decoder, inputs), whole(decoder, inputs, need_weights=True)
    if decoder.attention is None:
        assert asked[1] is None
        return
    assert_close(
        outcome(decoder, inputs, asked, weights=True), outcome(decoder, inputs, expected, weights=True), **EXACT
    )
    assert_close(step_by_step(decoder, inputs)[1], expected[1], **EXACT)
    fed_alone = decoder.cell.input_feeding and not decoder.attention.coverage
    assert (whole(decoder, inputs)[1] is None) == fed_alone


@every_kind
def test_a_step_of_a_beam_is_that_of_its_hypotheses_as_sentences(kind):
    decoder, beam = make(**KINDS[kind]), 3
    inputs = draw(decoder, [4, 2], 1)
    memory = decoder.on(inputs["outputs"], inputs["lengths"], inputs["context"])
    start = decoder.start(inputs["state"], memory)
    state = map_state(lambda tensor: torch.rand(2, beam, *tensor.shape[1:]).to(tensor), start)
    tokens = torch.randint(VOCAB, (2, beam))
    logits, after, weights = decoder.step(tokens, state, memory)
    for n in range(2):
        for k in range(beam):
            one = decoder.step(
                tokens[n : n + 1, k : k + 1],
                map_state(lambda tensor: tensor[n : n + 1, k : k + 1], state),  # noqa: B023 (used at once)
                map_state(lambda tensor: tensor[n : n + 1], memory),  # noqa: B023
            )
            assert_close(one.logits[0, 0], logits[n, k], **EXACT)
            same = zip(state_tensors(one.state), state_tensors(after), strict=True)
            assert all(torch.allclose(ours[0, 0], theirs[n, k]) for ours, theirs in same)
            assert weights is one.attention is None or torch.allclose(one.attention[0, 0], weights[n, k])


@pytest.mark.parametrize(
    ("kind", "engine"), [*((kind, "loop") for kind in KINDS), ("fed", "fused"), ("covering, fed", "fused")]
)
def test_chunks_are_the_whole(kind, engine):
    decoder = make(**KINDS[kind], engine=engine)
    inputs = draw(decoder, [3, 0, 1], 4)
    expected = outcome(decoder, inputs, whole(decoder, inputs))
    memory = decoder.on(inputs["outputs"], inputs["lengths"], inputs["context"])
    state, features = decoder.start(inputs["state"], memory), []
    for chunk in inputs["tokens"].split([1, 2, 1], 1):
        found, _, state = decoder(chunk, state, memory)
        features.append(found)
    logits = decoder.output(torch.cat(features, 1))
    assert_close(outcome(decoder, inputs, (logits, None, state)), expected, **EXACT)


@every_kind
def test_what_stands_past_a_sources_length_changes_nothing(kind):
    decoder = make(**KINDS[kind], engine="loop")
    inputs = draw(decoder, [3, 0, 1], 3)
    expected = outcome(decoder, inputs, whole(decoder, inputs))
    past = torch.arange(3) >= inputs["lengths"][:, None]
    assert not expected[len(state_tensors(whole(decoder, inputs)[2])) + 1][past].any()  # the outputs' gradient
    inputs["outputs"] = inputs["outputs"].detach().masked_fill(past[..., None], torch.inf).requires_grad_()
    assert_close(outcome(decoder, inputs, whole(decoder, inputs)), expected, rtol=0, atol=0)


@every_kind
def test_later_tokens_and_other_sentences_change_nothing(kind):
    decoder = make(**KINDS[kind], engine="loop")
    inputs = draw(decoder, [3, 0, 1], 4)
    logits, _, _ = whole(decoder, inputs)
    first = map_state(lambda tensor: tensor[:1], inputs["state"])
    alone = {name: value if value is None or name == "state" else value[:1] for name, value in inputs.items()}
    alone |= {"state": first, "tokens": inputs["tokens"][:1].clone()}
    alone["tokens"][:, 2:] = (alone["tokens"][:, 2:] + 1) % VOCAB
    found, _, _ = whole(decoder, alone)
    assert_close(found[:, :2], logits[:1, :2], **EXACT)
    assert not torch.allclose(found[:, 2:], logits[:1, 2:])


# Dropout


@every_kind
def test_dropout_falls_in_training_alone_and_a_seed_repeats_it(kind):
    plain = make(**KINDS[kind], engine="loop")
    decoder = make(**KINDS[kind], dropout=0.4, output_dropout=0.2, engine="loop")
    inputs = draw(decoder, [3, 0, 1], 3)
    assert_close(whole(decoder.eval(), inputs)[0], whole(plain, inputs)[0], **EXACT)
    decoder.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(whole(decoder, inputs)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


@pytest.mark.parametrize("feeding", [True, False])
def test_dropout_zeroes_embeddings_and_what_the_output_features_are_made_of(feeding):
    """With weights that let each be seen: the mean stays what it is without dropout, and nothing else is scaled."""

    class Passing(DecoderCell):
        def merge(self, hidden, context, mask=()):
            seen.append(mask)
            return super().merge(hidden, context, mask)

    decoder = make(feeding=feeding, dropout=0.25, engine="loop")
    decoder.recurrent.cell.__class__ = Passing
    torch.nn.init.ones_(decoder.embedding.weight)
    vectors, seen = [], []
    decoder.layer.register_forward_pre_hook(lambda module, arguments: vectors.append(arguments[0]))
    run, step = decoder.layer.run, decoder.layer.step
    decoder.layer.run = lambda x, *rest: (vectors.append(x), run(x, *rest))[1]
    decoder.layer.step = lambda x, *rest: (vectors.append(x), step(x, *rest))[1]
    inputs = draw(decoder, [3] * 200, 10)
    with torch.no_grad():
        whole(decoder, inputs)
    embedded = torch.cat([part.flatten(0, -2)[:, :3] for part in vectors])
    masks = torch.cat([mask.flatten(0, -2) for mask in seen])
    assert masks.shape == (2000, HIDDEN + FEATURES)
    for tensor in (embedded, masks):
        assert_close(tensor.unique(), torch.tensor([0, 4 / 3], dtype=torch.float64), rtol=1e-4, atol=0)
        assert tensor.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", ["fed", "at once"])
def test_output_dropout_leaves_what_is_fed_back_whole(kind):
    decoder, plain = make(**KINDS[kind], output_dropout=0.5), make(**KINDS[kind])
    inputs = draw(decoder, [3, 2], 4)
    memory = decoder.on(inputs["outputs"], inputs["lengths"])
    start = decoder.start(inputs["state"], memory)
    features, _, after = decoder(inputs["tokens"], start, memory)
    expected, _, state = plain(inputs["tokens"], start, memory)
    assert_close(features[features != 0], 2 * expected[features != 0], rtol=1e-4, atol=0)
    assert (features == 0).any()
    assert_close(state_tensors(after), state_tensors(state), **EXACT)


def test_without_anything_to_read_the_layers_outputs_are_dropped_also_in_the_cell():
    cell = DecoderCell(GRU(3, HIDDEN), dropout=0.5)
    state = ((), cell.layer.initial_state(50, torch.zeros(1)), (), ((), ()))
    outputs, _ = Recurrent(cell, engine="loop", batch_first=False).run(torch.randn(4, 50, 3), state, None, None)
    assert 0.3 < (outputs == 0).float().mean() < 0.7


# Precision and devices


@pytest.mark.parametrize("kind", ["fed", "covering, fed", "at once"])
def test_autocast_decodes_with_gradients_near_those_of_full_precision(kind, device):
    decoder = make(**KINDS[kind], engine="auto").float().to(device)
    inputs = draw(decoder, [3, 0, 1], 3)
    inputs = {
        name: map_state(lambda t: t.detach().to(device, torch.float32).requires_grad_(), value) if name != "tokens"
        and name != "lengths" and value is not None else value if value is None else value.to(device)
        for name, value in inputs.items()
    }  # fmt: skip
    expected = outcome(decoder, inputs, whole(decoder, inputs))
    with torch.autocast(device.type, torch.bfloat16):
        result = whole(decoder, inputs)
    found = outcome(decoder, inputs, result)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.float() - theirs).norm() <= 0.1 * theirs.norm() + 0.05


# Errors


def attention():
    return AdditiveAttention(HIDDEN, FEATURES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Decoder(GRU(3, 4), 1), "vocab_size must be at least 2, got 1"),
        (lambda: Decoder(GRU(3, 4), 9, dropout=1.0), "dropout must be at least 0 and below 1, got 1.0"),
        (lambda: Decoder(GRU(3, 4), 9, output_dropout=-1), "output_dropout must be at least 0 and below 1, got -1"),
        (lambda: Decoder(GRU(3, 4), 9, input_feeding=True), "input_feeding .* needs an attention"),
        (lambda: Decoder(GRU(3, 4), 9, attentional_size=5), "attentional_size 5 needs attention, or a bridge"),
        (
            lambda: Decoder(GRU(3, 5), 9, attention=attention()),
            "asked with 4 features, but the decoder's layer gives 5",
        ),
        (
            lambda: Decoder(GRU(6, 4), 9, attention=attention(), input_feeding=True, context_size=2),
            "takes 6 features, which leaves none .* the bridge's context of 2 and the 4 features that input feeding",
        ),
        (lambda: Decoder(Bidirectional(Recurrent(GRUCell(3, 2))), 9), "this Bidirectional is not causal"),
        (lambda: Decoder(GRU(3, 4), 9, tie_weights=True), "embeddings as wide as .* got 3 and 4"),
        (lambda: Decoder(GRU(3, 4), 9, engine="fast"), "engine must be one of 'auto'"),
    ],
)
def test_bad_arguments_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["fed", "at once"])
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), r"inputs must be ids \(batch, target\) of at least one step"),
        (torch.zeros(3, 2, dtype=torch.int64), r"for the 2 sentences of the state, got torch.int64 of shape \(3, 2\)"),
        (torch.zeros(2, 2), "got torch.float32"),
        (torch.tensor([[1, VOCAB], [1, 2]]), "the target has the id 7, but the vocabulary has 7 tokens, 0 to 6"),
    ],
)
def test_bad_tokens_are_told(kind, tokens, message):
    decoder = make(**KINDS[kind])
    inputs = draw(decoder, [3, 2], 1)
    memory = decoder.on(inputs["outputs"], inputs["lengths"])
    with pytest.raises(ValueError, match=message):
        decoder(tokens, decoder.start(inputs["state"], memory), memory)


def test_a_context_is_given_where_the_decoder_was_made_for_one_and_only_there():
    outputs = torch.randn(2, 3, FEATURES, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"made for a context of shape \(2, 2\), got none"):
        make(context=True).on(outputs)
    with pytest.raises(ValueError, match=r"made for no context, got a tensor of shape \(2, 2\)"):
        make().on(outputs, None, torch.zeros(2, 2))


def test_tied_weights_are_one_parameter():
    decoder = Decoder(GRU(3, 4), 9, attention=attention(), attentional_size=3, tie_weights=True)
    assert decoder.output.weight is decoder.embedding.weight
    assert sum(p is decoder.embedding.weight for p in decoder.parameters()) == 1
    assert oracles.gradients_of(decoder.output(torch.ones(3)).sum(), [decoder.embedding.weight])[0].all()
