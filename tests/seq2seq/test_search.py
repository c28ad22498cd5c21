"""Greedy search and sampling, and the parts that all searches share."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searched import BOS, EOS, Options, RandomModel, beam_by_hand, every_sequence, same

from rnn_blocks import Step, greedy_search, sample_search
from rnn_blocks.seq2seq.search.logits import Forbidden, StepLogits

IDS = {"bos": BOS, "eos": EOS}


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=9), seed=st.integers(0, 99), data=st.data())
def test_greedy_takes_the_most_probable_token_each_time(lengths, seed, data):
    model = RandomModel(6, seed)
    longest = data.draw(st.lists(st.integers(1, 8), min_size=len(lengths), max_size=len(lengths)))
    prefixes = [data.draw(st.lists(st.sampled_from([0, 1, 3, 5]), max_size=most)) for most in longest]
    state, memory, real = model.sources(lengths, seed)
    found = greedy_search(
        model,
        state,
        memory,
        **IDS,
        max_length=torch.tensor(longest),
        min_length=1,
        banned=[0],
        prefixes=prefixes,
        source_lengths=real,
        return_attention=True,
    )
    for sentence, hypotheses in enumerate(found):
        options = Options(longest[sentence], prefix=prefixes[sentence], banned=[0])
        same(hypotheses, beam_by_hand(model, *model.one(state, memory, sentence, lengths[sentence]), options))


@given(seed=st.integers(0, 99), ruled_out=st.sampled_from([0.3, 0.6]))
def test_greedy_finds_nothing_in_a_dead_end(seed, ruled_out):
    model = RandomModel(300, seed, ruled_out=ruled_out)
    model.forbidden[:, 10:] = True  # a grammar that knows few words
    state, memory, _ = model.sources([3, 1, 4])
    found = greedy_search(model, state, memory, **IDS, max_length=6, min_length=3, banned=[4])
    for sentence, hypotheses in enumerate(found):
        one = model.one(state, memory, sentence, [3, 1, 4][sentence])
        same(hypotheses, beam_by_hand(model, *one, Options(6, min_length=3, banned=[4])))


def test_nothing_is_found_where_every_token_is_banned():
    model = RandomModel(5)
    state, memory, _ = model.sources([3, 2])
    options = IDS | {"max_length": 4, "min_length": 3, "banned": [0, 1, 3, 4]}
    assert greedy_search(model, state, memory, **options) == [[], []]
    assert sample_search(model, state, memory, num_samples=3, **options) == [[], []]
    begun = greedy_search(model, state, memory, prefixes=[[3, 4], []], **options)
    assert [one.tokens for one in begun[0]] == [[3, 4]]
    assert begun[1] == []


def test_samples_that_come_to_a_dead_end_are_none():
    model = RandomModel(5, seed=2, spread=1.0, ruled_out=0.3)
    state, memory, _ = model.sources([2, 3])
    options = IDS | {"max_length": 3, "num_samples": 4000, "generator": torch.Generator().manual_seed(0)}
    found = sample_search(model, state, memory, **options)
    for sentence, length in enumerate([2, 3]):
        every = every_sequence(model, *model.one(state, memory, sentence, length), Options(3))
        drawn = Counter((tuple(one.tokens), one.finished) for one in found[sentence])
        assert set(drawn) <= {(tuple(one.tokens), one.finished) for one in every}
        for one in every:
            expected = math.exp(one.log_prob)
            error = math.sqrt(expected * (1 - expected) / 4000)
            assert abs(drawn[tuple(one.tokens), one.finished] / 4000 - expected) < 5 * error
        assert 0 < len(found[sentence]) < 4000


def test_samples_come_as_often_as_the_model_says():
    model = RandomModel(4, seed=1, spread=1.0)
    state, memory, _ = model.sources([2, 3])
    found = sample_search(
        model, state, memory, **IDS, max_length=3, num_samples=4000, generator=torch.Generator().manual_seed(0)
    )
    for sentence, length in enumerate([2, 3]):
        every = every_sequence(model, *model.one(state, memory, sentence, length), Options(3))
        assert len(found[sentence]) == 4000
        drawn = Counter((tuple(one.tokens), one.finished) for one in found[sentence])
        for one in every:
            expected = math.exp(one.log_prob)
            error = math.sqrt(expected * (1 - expected) / 4000)
            assert abs(drawn[tuple(one.tokens), one.finished] / 4000 - expected) < 5 * error


@given(
    temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    top_k=st.sampled_from([None, 1, 3]),
    top_p=st.sampled_from([None, 0.5, 1.0]),
    num_samples=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_log_probabilities_of_samples_are_the_models_own(temperature, top_k, top_p, num_samples, seed):
    model, lengths = RandomModel(5, seed), [3, 1, 2]
    state, memory, real = model.sources(lengths)
    found = sample_search(
        model,
        state,
        memory,
        **IDS,
        max_length=5,
        num_samples=num_samples,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        banned=[0],
        source_lengths=real,
        return_attention=True,
    )
    for sentence, samples in enumerate(found):
        assert len(samples) == num_samples
        assert samples == sorted(samples, key=lambda one: (not one.finished, -one.score))
        state_of_one = model.one(state, memory, sentence, lengths[sentence])
        for one in samples:
            spelled = [*one.tokens, EOS] if one.finished else one.tokens
            assert one.finished or len(one.tokens) == 5
            assert not set(one.tokens) & {0, EOS}
            total = sum(float(model.log_probs(*state_of_one, spelled[:t])[0][x]) for t, x in enumerate(spelled))
            assert math.isclose(one.log_prob, total, abs_tol=1e-5)
            assert one.score == one.log_prob
            torch.testing.assert_close(one.attention, model.log_probs(*state_of_one, spelled[:-1])[1])


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-9}])
def test_sampling_with_no_choice_left_is_greedy(options):
    model = RandomModel(9, seed=3)
    state, memory, _ = model.sources([3, 5, 2, 2])
    greedy = greedy_search(model, state, memory, **IDS, max_length=9)
    for one, other in zip(
        sample_search(model, state, memory, **IDS, max_length=9, num_samples=3, **options), greedy, strict=True
    ):
        same(one, other * 3)


def test_a_seed_draws_the_same_again():
    model = RandomModel(9, seed=3)
    state, memory, _ = model.sources([3, 5])

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return sample_search(model, state, memory, **IDS, max_length=9, num_samples=2, generator=generator)

    assert draw(1) == draw(1) != draw(2)


def test_samples_that_have_ended_leave_the_batch():
    shapes = []

    def step(tokens, state, memory):
        shapes.append(tuple(tokens.shape))
        assert state.shape[:2] == tokens.shape
        assert len(memory) == len(tokens)
        return Step(torch.zeros(*tokens.shape, 4), state, None)

    found = sample_search(step, torch.zeros(4, 2), torch.zeros(4), **IDS, max_length=99, num_samples=8)
    batches, beams = zip(*shapes, strict=True)
    assert shapes[0] == (4, 8)
    assert len(shapes) == max(len(one.tokens) for samples in found for one in samples) + 1 < 99
    assert list(batches) == sorted(batches, reverse=True)
    assert list(beams) == sorted(beams, reverse=True)
    assert batches[-1] * beams[-1] < 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": math.nan}, "temperature must be 0 .* or above, got nan"),
        ({"temperature": "warm"}, "temperature must be 0 .* or above, got 'warm'"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"prefixes": [[3]]}, "one list for each of the 2 sentences"),
    ],
)
def test_a_bad_sampling_argument_is_named(options, message):
    model = RandomModel(5)
    state, memory, _ = model.sources([3, 2])
    with pytest.raises(ValueError, match=message):
        sample_search(model, state, memory, **IDS | {"max_length": 4} | options)
    assert not model.calls


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_diverged_model_is_told(temperature):
    def step(tokens, state, memory):
        return Step(torch.full((*tokens.shape, 5), torch.nan), state, None)

    with pytest.raises(FloatingPointError, match="diverged"):
        sample_search(step, torch.zeros(2, 1), (), **IDS, max_length=4, temperature=temperature)


def test_samples_are_drawn_where_the_model_is(device):
    model = RandomModel(6, seed=1)
    state, memory, real = model.sources([3, 2])
    here = [tuple(tensor.to(device) for tensor in nest) for nest in (state, memory)]
    generator = torch.Generator(device).manual_seed(0)
    options = IDS | {"max_length": 6, "num_samples": 3, "return_attention": True}
    for samples in sample_search(model, *here, generator=generator, source_lengths=real.to(device), **options):
        assert [one.attention.device.type for one in samples] == ["cpu"] * 3


def test_a_search_lies_with_the_model_whatever_torchs_default_device_is():
    model = RandomModel(300, seed=1)
    state, memory, real = model.sources([3, 2])

    def step(tokens, state, memory):
        found = model(tokens, state, memory)
        return found._replace(logits=found.logits.float())  # of which the normaliser is reckoned in blocks

    with torch.device("meta"):
        found = greedy_search(model, state, memory, **IDS, max_length=6, source_lengths=real)
    expected = greedy_search(step, state, memory, **IDS, max_length=6, source_lengths=real)
    assert [best.tokens for (best,) in found] == [best.tokens for (best,) in expected]


@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 2),
    width=st.integers(1, 3),
    vocab_size=st.sampled_from([3, 64, 129, 130, 1000, 2048]),
    count=st.integers(1, 12),
    banned=st.sets(st.sampled_from([0, 1, 2, 63, 64, 127, 128, 999])),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_the_best_candidates_are_those_of_a_sort(batch, groups, width, vocab_size, count, banned, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(batch, groups * width, vocab_size, generator=generator)).to(dtype)
    logits[..., :3] += 8  # so that those banned would be chosen
    before = torch.randn(batch, groups * width, generator=generator)
    before[0, -1] = -torch.inf
    banned = [token for token in banned if token < vocab_size]
    read = StepLogits(logits)
    assert read.logits.dtype in (torch.float32, torch.float64)
    wide = read.logits.double()
    torch.testing.assert_close(read.normaliser().double(), wide.logsumexp(-1), rtol=1e-6, atol=4e-6)

    scores, at = read.best(before, groups, count, Forbidden(banned, vocab_size, logits.device))
    sums = read.logits + before.unsqueeze(-1)
    sums[..., banned] = -torch.inf
    sums = sums.view(batch, groups, -1)
    expected = sums.sort(-1, descending=True).values[..., :count]
    assert scores.shape == expected.shape
    torch.testing.assert_close(scores, expected, rtol=0, atol=0)
    there = scores > -torch.inf
    torch.testing.assert_close(sums.gather(-1, at)[there], scores[there], rtol=0, atol=0)  # each is where it is said
    for places, real in zip(at.flatten(0, 1).tolist(), there.flatten(0, 1).tolist(), strict=True):
        chosen = [place for place, is_real in zip(places, real, strict=True) if is_real]
        assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_the_normaliser_neither_over_nor_underflows(shift):
    logits = 30 * torch.randn(2, 3, 1000) + shift
    logits[0, 0, 5] = -torch.inf
    expected = logits.double().logsumexp(-1)
    torch.testing.assert_close(StepLogits(logits).normaliser().double(), expected, rtol=1e-6, atol=1e-5)
