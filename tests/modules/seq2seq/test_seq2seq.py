"""What a translation model computes and how it translates; its training is tested beside."""

import pytest
import torch
from pairs import BOS, EOS, SOURCE_VOCAB, TARGET_VOCAB, draw_batch, make_model, pair_batch, sums_by_hand
from torch.testing import assert_close

from rnn_blocks import (
    GRU,
    LSTM,
    AdditiveAttention,
    Bidirectional,
    GRUCell,
    LastStateBridge,
    MultiHeadAttention,
    Recurrent,
    Seq2Seq,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}
OPTIONS = {
    "fed": {},
    "covering": {"coverage": True, "attention": "general"},
    "at once, from the end": {"input_feeding": False, "reverse_source": True},
    "fixed vector": {"attention": None, "input_feeding": False, "bridge": "mean", "decoder": LSTM(3 + 12, 5)},
}
every_model = pytest.mark.parametrize("name", OPTIONS)
SOURCES = [[4, 5, 6, 7], [8], [5, 5], []]


def sources():
    batch = pair_batch(SOURCES, [[4]] * 4)
    return batch.source, batch.source_lengths


# Values


@every_model
def test_sentences_do_not_depend_on_those_beside_them(name):
    model = make_model(**OPTIONS[name])
    batch = draw_batch([4, 1, 6])
    logits = model(batch.source, batch.source_lengths, batch.target_inputs)
    for n, length in enumerate(batch.source_lengths.tolist()):
        target = int((batch.target_outputs[n] != -100).sum())
        alone = model(batch.source[n : n + 1, :length], None, batch.target_inputs[n : n + 1, :target])
        assert_close(alone[0], logits[n, :target], **EXACT)


@every_model
def test_the_loss_does_not_depend_on_padding(name):
    model, batch = make_model(**OPTIONS[name]), draw_batch([4, 1, 6])
    expected, tokens = sums_by_hand(model, batch)
    past = torch.arange(batch.source.shape[1]) >= batch.source_lengths[:, None]
    padding = batch.target_outputs == -100
    other = batch._replace(
        source=batch.source.masked_fill(past, 7), target_inputs=batch.target_inputs.masked_fill(padding, 9)
    )
    found, _ = sums_by_hand(model, other)
    assert_close(found, expected, rtol=0, atol=0)
    state, memory = model.encode(batch.source, batch.source_lengths)
    loss, extra, counted = model.eval()._loss(batch, batch.target_inputs, state, memory)
    assert_close(loss, expected / tokens, **EXACT)
    assert (extra, counted) == (0, tokens)


def test_the_outer_parts_own_no_layer_twice():
    model = make_model(bridge="mean", decoder=LSTM(3 + 5 + 12, 5))
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})
    assert len(model.state_dict()) == len(list(model.parameters()))


def test_a_model_runs_where_it_is(device):
    model = make_model(coverage=True)
    batch = draw_batch([4, 1, 6])
    arguments = (batch.source, batch.source_lengths, batch.target_inputs)
    expected, written = model(*arguments), model.translate(*arguments[:2], beam_size=3, max_length=6)
    model = model.to(device)
    found = model(*(tensor.to(device) for tensor in arguments))
    assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)
    again = model.translate(*arguments[:2], beam_size=3, max_length=6)  # from the CPU
    assert [best.tokens for best, *_ in again] == [best.tokens for best, *_ in written]


# Tying and first weights


def test_two_way_tying_shares_the_targets_weights():
    model = make_model(tie_weights="two-way", decoder=GRU(4 + 4, 5), attentional_size=4)
    assert model.decoder.output.weight is model.decoder.embedding.weight
    assert model.encoder.embedding.weight is not model.decoder.embedding.weight
    assert sum(parameter is model.decoder.output.weight for parameter in model.parameters()) == 1


def test_three_way_tying_shares_the_sources_as_well():
    sizes = (TARGET_VOCAB, TARGET_VOCAB)
    model = make_model(tie_weights="three-way", sizes=sizes, decoder=GRU(4 + 4, 5), attentional_size=4)
    assert model.decoder.output.weight is model.decoder.embedding.weight is model.encoder.embedding.weight
    untied = make_model(sizes=sizes, decoder=GRU(4 + 4, 5), attentional_size=4)
    spared = 2 * TARGET_VOCAB * 4
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in untied.parameters()) - spared


def test_first_weights_are_as_asked():
    model = make_model(init_range=0.03)
    assert all(0 < parameter.abs().max() <= 0.03 for parameter in model.parameters() if parameter.dim() > 1)
    torch.manual_seed(0)
    encoder, decoder = GRU(4, 6), GRU(3 + 5, 5)
    before = [parameter.clone() for layer in (encoder, decoder) for parameter in layer.parameters()]
    model = Seq2Seq(encoder, decoder, 200, 300)
    assert all(map(torch.equal, before, [*encoder.parameters(), *decoder.parameters()]))
    assert not model.decoder.output.bias.any()
    assert 0.098 < model.decoder.output.weight.abs().max() <= 0.1
    for embedding in (model.encoder.embedding, model.decoder.embedding):
        assert embedding.weight.std().item() == pytest.approx(1.0, rel=0.1)
        assert embedding.weight.abs().max() <= 3**0.5
    sizes, decoder = (TARGET_VOCAB, TARGET_VOCAB), GRU(4 + 4, 5)
    tied = make_model(tie_weights="three-way", sizes=sizes, decoder=decoder, attentional_size=4, init_range=None)
    assert 0.35 < tied.decoder.output.weight.abs().max() <= 0.4


def test_a_number_for_coverage_that_starts_at_zero_stays_there_whatever_the_range():
    attention = MultiHeadAttention(6, 12, num_heads=2, coverage=True)
    model = Seq2Seq(GRU(4, 6, bidirectional=True), GRU(3 + 6, 6), 20, 30, attention=attention, init_range=0.05)
    assert model.decoder.attention.coverage_weight.shape == (2, 1, 1)
    assert not model.decoder.attention.coverage_weight.any()
    assert 0.04 < model.decoder.attention.query_layer.weight.abs().max() <= 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tie_weights": "four-way"}, "tie_weights must be None, 'two-way' or 'three-way', got 'four-way'"),
        ({"tie_weights": "two-way"}, "embeddings as wide as what the output layer takes, got 3 and 5"),
        (
            {"tie_weights": "three-way", "decoder": GRU(8, 5), "attentional_size": 4},
            r"one vocabulary and one width for both sides, got embeddings of \(9, 4\) and \(11, 4\)",
        ),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"coverage_loss": -1.0}, "coverage_loss must be at least 0, got -1.0"),
        ({"coverage_loss": 1.0}, "coverage_loss 1.0 needs coverage=True"),
        ({"length_penalty": -1.0}, "length_penalty must be at least 0, got -1.0"),
        ({"coverage_penalty": float("nan")}, "coverage_penalty must be at least 0, a finite number, got nan"),
        (
            {"coverage_penalty": 0.2, "attention": None, "input_feeding": False},
            "coverage_penalty 0.2 needs an attention",
        ),
        ({"max_length_ratio": float("inf")}, "max_length_ratio must be at least 0, a finite number, got inf"),
        ({"bos": 2}, "bos and eos are both 2: no translation could end"),
        ({"pad": 2}, "pad and eos are both 2: no translation could end"),
        ({"coverage": True, "attention": None, "input_feeding": False}, "coverage needs an attention"),
        ({"coverage": True, "attention": AdditiveAttention(5, 12)}, "made with coverage=True, or the name of one"),
        ({"attention": "local"}, "attention must be one of 'dot', 'general', 'concat', 'additive', 'multi-head'"),
        ({"attention": "dot"}, "dot attention compares .* of one size"),
        ({"bridge": "drawn"}, "bridge must be one of .*, got 'drawn'"),
        ({"val_beam_size": 0}, "val_beam_size must be at least 1, got 0"),
        ({"test_beam_size": 0}, "test_beam_size must be at least 1, got 0"),
        ({"eos": TARGET_VOCAB}, "eos 11 is no id of the 11 target tokens"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"output_dropout": -0.1}, "output_dropout must be at least 0 and below 1, got -0.1"),
        ({"init_range": -1.0}, "init_range must be above 0, got -1.0"),
        ({"init_range": 0.0}, "init_range must be above 0, got 0.0"),
        ({"init_range": float("inf")}, "init_range must be above 0, a finite number, got inf"),
        ({"init_range": "0.1"}, "init_range must be a number, above 0, got '0.1'"),
        ({"coverage_loss": float("inf")}, "coverage_loss must be at least 0, a finite number, got inf"),
        ({"max_length_ratio": -1.0}, "max_length_ratio must be at least 0, got -1.0"),
        ({"lr_interval": "batch"}, "lr_interval must be 'epoch' or 'step', got 'batch'"),
        ({"decoder": Bidirectional(Recurrent(GRUCell(8, 5)))}, "causal"),
    ],
)
def test_bad_options_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_attentions_and_bridges_of_ones_own_are_taken():
    encoder, decoder = GRU(4, 6), GRU(3 + 6, 6)
    attention = MultiHeadAttention(6, 6, num_heads=3)
    model = Seq2Seq(encoder, decoder, 9, 11, attention=attention, bridge=LastStateBridge(encoder, decoder))
    assert model.decoder.attention is attention
    assert model(torch.tensor([[4, EOS]]), None, torch.tensor([[BOS, 5]])).shape == (1, 2, 11)


# Translation


@every_model
def test_greedy_translation_takes_the_best_token_after_those_before(name):
    model = make_model(**OPTIONS[name])
    source, lengths = sources()
    found = model.translate(
        source, lengths, beam_size=1, max_length=7, return_attention=model.decoder.attention is not None
    )
    for n, (best,) in enumerate(found):
        tokens = [BOS]
        while len(tokens) < 8 and tokens[-1] != EOS:
            alone = source[n : n + 1, : lengths[n]]
            logits = model(alone, None, torch.tensor([tokens]))[0, -1].detach()
            logits[[0, BOS]] = -torch.inf
            tokens.append(int(logits.argmax()))
        written = tokens[1:]
        assert best.tokens == [token for token in written if token != EOS]
        assert best.finished == (written[-1] == EOS)
        if best.attention is not None:
            assert best.attention.shape == (len(written), lengths[n])
            assert_close(best.attention.sum(-1), torch.ones(len(written), dtype=torch.float64))


def test_log_probabilities_are_those_of_the_loss():
    model = make_model()
    source, lengths = sources()
    for n, hypotheses in enumerate(model.translate(source, lengths, beam_size=4, n_best=3, max_length=40)):
        assert len(hypotheses) == 3
        for one in hypotheses:
            batch = pair_batch([SOURCES[n]], [one.tokens])
            if one.finished:
                assert one.log_prob == pytest.approx(-sums_by_hand(model, batch)[0].item(), abs=1e-4)


def test_without_lengths_all_tokens_count():
    model, source = make_model(), torch.tensor([[4, 5, EOS], [6, 7, EOS]])
    found = model.translate(source, max_length=6)
    expected = model.translate(source, torch.tensor([3, 3]), max_length=6)
    assert [best.tokens for best, *_ in found] == [best.tokens for best, *_ in expected]


def test_translations_end_at_the_ratio_and_begin_with_their_prefixes():
    model = make_model(max_length_ratio=1.5)
    with torch.no_grad():
        model.decoder.output.bias[EOS] = -100  # it never ends by itself
    source, lengths = sources()
    found = model.translate(source, lengths, beam_size=2, prefixes=[[4, 9], [], [7], []])
    assert [len(best.tokens) for best, *_ in found] == [int(1.5 * length) + 10 for length in lengths.tolist()]
    assert found[0][0].tokens[:2] == [4, 9]
    assert found[2][0].tokens[0] == 7
    assert not any(token in (0, BOS, EOS) for best, *_ in found for token in best.tokens)


def test_penalties_are_the_models_unless_others_are_asked_for():
    model = make_model(length_penalty=0.3, coverage_penalty=0.4)
    source, lengths = sources()
    for options, expected in [
        ({}, {"length_penalty": 0.3, "coverage_penalty": 0.4}),
        ({"length_penalty": 0.0, "coverage_penalty": 0.0}, {"length_penalty": 0.0, "coverage_penalty": 0.0}),
    ]:
        found = model.translate(source, lengths, max_length=5, **options)
        again = make_model().translate(source, lengths, max_length=5, **expected)
        assert [best.score for best, *_ in found] == [best.score for best, *_ in again]


def test_samples_are_repeated_by_a_seed_and_coldest_ones_are_greedy():
    model = make_model()
    source, lengths = sources()

    def draw(**options):
        return [
            [one.tokens for one in samples]
            for samples in model.sample(source, lengths, num_samples=3, max_length=8, **options)
        ]

    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    assert draw() != draw()
    greedy = [best.tokens for best, *_ in model.translate(source, lengths, beam_size=1, max_length=8)]
    assert draw(temperature=0.0) == draw(top_k=1) == [[tokens] * 3 for tokens in greedy]


@pytest.mark.parametrize("call", ["translate", "sample"])
def test_translating_leaves_each_parts_mode_as_it_was(call):
    model = make_model(dropout=0.5, output_dropout=0.5).train()
    model.encoder.eval()
    source, lengths = sources()
    modes = [module.training for module in model.modules()]
    options = {"temperature": 0.0} if call == "sample" else {"beam_size": 1}
    first, second = (getattr(model, call)(source, lengths, max_length=6, **options) for _ in range(2))
    assert first == second  # without dropout
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="max_length"):
        getattr(model, call)(source, lengths, max_length=0)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("call", ["translate", "sample"])
@pytest.mark.parametrize(
    ("source", "lengths", "options", "message"),
    [
        (torch.full((3, 2), 5), torch.tensor([2, 0, 1]), {}, "source 1 has the length 0; it must be from 1 to 2"),
        (torch.full((3, 2), 5), torch.tensor([2, 1, 3]), {}, "source 2 has the length 3; it must be from 1 to 2"),
        (torch.full((3, 0), 5), None, {}, "source 0 has the length 0"),
        (torch.full((3, 2), 5), torch.tensor([2, 1]), {}, "source_lengths must be 3 integers, one a source"),
        (
            torch.full((3, 2), 5),
            torch.ones(3),
            {},
            "source_lengths must be 3 integers, one a source, got torch.float32",
        ),
        (torch.full((3,), 5), None, {}, r"source must be ids, \(batch, source\), got torch.int64 of shape \(3,\)"),
        (torch.rand(3, 2), None, {}, "source must be ids"),
        (torch.full((1, 2), SOURCE_VOCAB), None, {}, "source has the id 9, but the vocabulary has 9 tokens"),
        (torch.full((1, 2), 5), None, {"max_length": 0}, "max_length must be at least 1, got 0"),
    ],
)
def test_bad_sources_are_told(call, source, lengths, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(make_model(), call)(source, lengths, **options)


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        ("translate", {"beam_size": 0}, "beam_size must be at least 1, got 0"),
        ("translate", {"beam_size": 2, "n_best": 3}, r"n_best must be at most beam_size \(2\), got 3"),
        ("translate", {"prefixes": [[4]]}, "one list for each of the 4 sentences, got 1"),
        ("sample", {"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ("sample", {"temperature": -1.0}, "temperature must be 0"),
        ("sample", {"seed": 2**64}, r"seed must be below 2\*\*64, got 18446744073709551616"),
    ],
)
def test_bad_searches_are_told(call, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(make_model(), call)(*sources(), **options)


def test_nothing_is_translated_into_nothing():
    assert make_model().translate(torch.zeros(0, 3, dtype=torch.int64)) == []
