"""Beam search against every sequence there is, and against a loop by hand."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searched import BOS, EOS, Options, RandomModel, beam_by_hand, every_sequence, same

from rnn_blocks import Step, beam_search, greedy_search

SPACE = 200  # a beam wider than all sequences of the tests


def search(model, lengths, options, *, n_best=1, prefixes=None, seed=0, max_length=None, **more):
    state, memory, real = model.sources(lengths, seed)
    return beam_search(
        model,
        state,
        memory,
        bos=BOS,
        eos=EOS,
        max_length=options.max_length if max_length is None else max_length,
        beam_size=options.beam_size,
        n_best=n_best,
        length_penalty=options.length_penalty,
        coverage_penalty=options.coverage_penalty,
        min_length=options.min_length,
        groups=options.groups,
        diversity=options.diversity,
        prefixes=prefixes,
        banned=options.banned,
        source_lengths=real,
        **more,
    )


def alone(model, lengths, sentence, seed=0):
    state, memory, _ = model.sources(lengths, seed)
    return model.one(state, memory, sentence, lengths[sentence])


OPTIONS = st.builds(
    Options,
    max_length=st.integers(1, 6),
    beam_size=st.integers(1, 6),
    length_penalty=st.sampled_from([0.0, 0.6, 1.0, 2.5]),
    coverage_penalty=st.sampled_from([0.0, 0.4]),
    min_length=st.integers(0, 1),
    banned=st.sampled_from([(), (0,), (0, BOS)]),
)
LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=5)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("coverage_penalty", [0.0, 0.5])
@pytest.mark.parametrize(("vocab_size", "max_length", "min_length"), [(3, 4, 0), (4, 4, 0), (3, 5, 3)])
def test_a_beam_as_wide_as_the_space_finds_the_best_of_all_sequences(
    vocab_size, max_length, min_length, length_penalty, coverage_penalty
):
    model, lengths = RandomModel(vocab_size, seed=vocab_size + max_length), [3, 1, 4]
    options = Options(max_length, SPACE, length_penalty, coverage_penalty, min_length)
    for n_best in (1, 4, SPACE):
        found = search(model, lengths, options, n_best=n_best)
        for sentence in range(len(lengths)):
            expected = every_sequence(model, *alone(model, lengths, sentence), options)
            same(found[sentence], expected[:n_best])


@settings(max_examples=20)
@given(options=OPTIONS, lengths=LENGTHS, vocab_size=st.integers(4, 9), seed=st.integers(0, 99), data=st.data())
def test_each_sentence_gets_what_a_loop_by_hand_finds(options, lengths, vocab_size, seed, data):
    model = RandomModel(vocab_size, seed)
    n_best = data.draw(st.integers(1, options.beam_size))
    found = search(model, lengths, options, n_best=n_best, seed=seed, return_attention=True)
    for sentence, hypotheses in enumerate(found):
        expected = beam_by_hand(model, *alone(model, lengths, sentence, seed), options)
        same(hypotheses, expected[:n_best])
        assert all(one.attention.shape[1] == lengths[sentence] for one in hypotheses)


@settings(max_examples=30)
@given(options=OPTIONS, lengths=LENGTHS, vocab_size=st.integers(4, 9), seed=st.integers(0, 99))
def test_hypotheses_in_a_dead_end_leave_the_others_alone(options, lengths, vocab_size, seed):
    model = RandomModel(vocab_size, seed, ruled_out=0.4)
    found = search(model, lengths, options, n_best=options.beam_size, seed=seed)
    for sentence, hypotheses in enumerate(found):
        same(hypotheses, beam_by_hand(model, *alone(model, lengths, sentence, seed), options))


@given(options=OPTIONS, lengths=LENGTHS, seed=st.integers(0, 99), data=st.data())
def test_a_batch_gets_what_its_sentences_get_one_by_one(options, lengths, seed, data):
    model = RandomModel(8, seed)
    longest = data.draw(st.lists(st.integers(1, 7), min_size=len(lengths), max_size=len(lengths)))
    free = st.sampled_from([0, 1, 3, 4, 5])
    prefixes = [data.draw(st.lists(free, max_size=longest[sentence])) for sentence in range(len(lengths))]
    state, memory, real = model.sources(lengths, seed)
    options = replace(options, max_length=max(longest))
    together = search(
        model,
        lengths,
        options,
        n_best=options.beam_size,
        prefixes=prefixes,
        max_length=torch.tensor(longest),
        seed=seed,
        return_attention=True,
    )
    for sentence, hypotheses in enumerate(together):
        by_itself = beam_search(
            model,
            *model.one(state, memory, sentence, lengths[sentence]),
            bos=BOS,
            eos=EOS,
            max_length=longest[sentence],
            beam_size=options.beam_size,
            n_best=options.beam_size,
            length_penalty=options.length_penalty,
            coverage_penalty=options.coverage_penalty,
            min_length=min(options.min_length, longest[sentence]),
            banned=options.banned,
            prefixes=[prefixes[sentence]],
            source_lengths=real[sentence : sentence + 1],
            return_attention=True,
        )[0]
        same(hypotheses, by_itself)


@given(lengths=LENGTHS, seed=st.integers(0, 99), min_length=st.integers(0, 3))
def test_a_beam_of_one_is_greedy(lengths, seed, min_length):
    model = RandomModel(7, seed)
    state, memory, _ = model.sources(lengths, seed)
    options = {"bos": BOS, "eos": EOS, "max_length": 8, "min_length": min_length, "banned": [0]}
    beam = beam_search(model, state, memory, beam_size=1, length_penalty=0.0, **options)
    for one, other in zip(beam, greedy_search(model, state, memory, **options), strict=True):
        same(one, other)


@given(options=OPTIONS, lengths=LENGTHS, seed=st.integers(0, 99))
def test_n_best_are_sorted_and_distinct_and_begin_with_the_best(options, lengths, seed):
    model = RandomModel(6, seed)
    every = search(model, lengths, options, n_best=options.beam_size)
    for hypotheses, best in zip(every, search(model, lengths, options), strict=True):
        same(hypotheses[:1], best)
        assert len({(tuple(one.tokens), one.finished) for one in hypotheses}) == len(hypotheses)
        keys = [(not one.finished, -one.score) for one in hypotheses]
        assert keys == sorted(keys)
        assert all(len(one.tokens) + one.finished <= options.max_length for one in hypotheses)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_stopping_early_never_changes_the_best(length_penalty):
    model, lengths = RandomModel(9, seed=5, spread=3.0), [4, 2, 5, 3, 1, 2]
    options = Options(12, 5, length_penalty)
    for n_best in (1, 2, 5):
        found = search(model, lengths, options, n_best=n_best)
        for sentence in range(len(lengths)):
            same(found[sentence], beam_by_hand(model, *alone(model, lengths, sentence), options)[:n_best])


def test_the_first_step_computes_one_hypothesis_and_what_is_done_leaves():
    table, shapes = torch.randn(40, 40), []

    def step(tokens, state, memory):
        shapes.append(tuple(tokens.shape))
        assert state.shape[:2] == tokens.shape
        assert len(memory) == len(tokens)
        logits = table[tokens] + state / 10
        logits[..., EOS] += len(shapes) / 2
        return Step(logits, state, None)

    beam_search(step, torch.randn(9, 40), torch.zeros(9), bos=BOS, eos=EOS, max_length=20, length_penalty=2.0)
    batches, beams = zip(*shapes, strict=True)
    assert shapes[:2] == [(9, 1), (9, 5)]
    assert list(batches) == sorted(batches, reverse=True)
    assert list(beams[1:]) == sorted(beams[1:], reverse=True)
    assert batches[-1] < 9
    assert beams[-1] < 5
    assert len(shapes) < 20


def test_each_sentence_has_its_own_longest_length():
    model = RandomModel(5, seed=1)
    found = search(
        model, [2, 3, 4], Options(6, 3, min_length=6), n_best=3, max_length=torch.tensor([1, 3, 6]), prefixes=None
    )
    assert [{len(one.tokens) + one.finished for one in hypotheses} for hypotheses in found] == [{1}, {3}, {6}]
    assert not any(one.finished for hypotheses in found[:2] for one in hypotheses)


@settings(max_examples=15)
@given(
    groups=st.integers(1, 3),
    size=st.integers(1, 2),
    diversity=st.sampled_from([0.0, 0.5, 3.0]),
    lengths=LENGTHS,
    seed=st.integers(0, 99),
    banned=st.sampled_from([(), (0,)]),
)
def test_diverse_groups_advance_as_a_loop_by_hand_does(groups, size, diversity, lengths, seed, banned):
    model = RandomModel(7, seed)
    options = Options(5, groups * size, 1.0, groups=groups, diversity=diversity, banned=banned)
    found = search(model, lengths, options, n_best=options.beam_size, seed=seed)
    for sentence, hypotheses in enumerate(found):
        expected = beam_by_hand(model, *alone(model, lengths, sentence, seed), options)
        same(hypotheses, expected[: options.beam_size])


def test_one_group_is_the_plain_beam():
    model, lengths = RandomModel(7), [3, 4]
    plain = search(model, lengths, Options(6, 4), n_best=4)
    grouped = search(model, lengths, Options(6, 4, groups=1, diversity=9.0), n_best=4)
    assert plain == grouped


def test_groups_without_diversity_find_the_same_which_is_told_once():
    found = search(RandomModel(7), [3, 4], Options(6, 4, groups=4), n_best=4)
    assert [len(hypotheses) for hypotheses in found] == [1, 1]


def test_more_diversity_gives_other_beginnings():
    begin = {}
    for diversity in (0.0, 100.0):
        found = search(RandomModel(9), [3], Options(6, 4, groups=4, diversity=diversity), n_best=4)
        begin[diversity] = {one.tokens[0] if one.tokens else EOS for one in found[0]}
    assert len(begin[100.0]) == 4 > len(begin[0.0])


@pytest.mark.parametrize("groups", [1, 2])
def test_hypotheses_begin_with_their_prefix_and_are_the_best_of_those(groups):
    model, lengths, prefixes = RandomModel(4, seed=3), [3, 1, 4, 2], [[], [3, 0], [1], [0, 0, 3, 1]]
    options = Options(4, SPACE * groups, 1.0, banned=(0,), groups=groups)
    found = search(model, lengths, options, n_best=3, prefixes=prefixes)
    for sentence, hypotheses in enumerate(found):
        one = replace(options, prefix=prefixes[sentence])
        same(hypotheses, every_sequence(model, *alone(model, lengths, sentence), one)[:3])
        assert all(h.tokens[: len(prefixes[sentence])] == prefixes[sentence] for h in hypotheses)


def test_padding_and_neighbours_change_nothing():
    model = RandomModel(8, seed=2)
    narrow = search(model, [3, 2], Options(6, 4, 1.0, 0.3), n_best=4, return_attention=True)
    wide = search(model, [3, 2, 40], Options(6, 4, 1.0, 0.3), n_best=4, return_attention=True)
    for one, other in zip(narrow, wide[:2], strict=True):
        same(one, other)


def test_the_logits_state_and_memory_given_are_left_as_they_were():
    table = torch.randn(6, 6)
    before = table.clone()

    def step(tokens, state, memory):
        return Step(table.expand(*tokens.shape, 6, 6)[..., 0, :], state, None)

    state, memory = torch.randn(2, 3), torch.randn(2, 4)
    given = copy.deepcopy((state, memory))
    beam_search(step, state, memory, bos=1, eos=2, max_length=5, banned=[0], min_length=2)
    torch.testing.assert_close(table, before, rtol=0, atol=0)
    torch.testing.assert_close((state, memory), given, rtol=0, atol=0)


def test_a_token_that_the_model_rules_out_is_never_chosen():
    def step(tokens, state, memory):
        logits = torch.tensor([0.0, -torch.inf, -1.0, -torch.inf]).expand(*tokens.shape, 4)
        return Step(logits, state, None)

    found = beam_search(step, torch.zeros(1, 1), (), bos=1, eos=2, max_length=3, beam_size=8, n_best=8)[0]
    assert sorted(one.tokens for one in found) == [[], [0], [0, 0], [0, 0, 0]]


def test_named_tuples_keep_their_names():
    names = Step(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, 1))
    marked = names._replace(attention=torch.arange(4.0)[:, None])
    table = torch.randn(4, 9, 9)

    def step(tokens, state, memory):
        assert memory.attention.shape[0] == tokens.shape[0]
        assert state.attention.shape[:2] == tokens.shape
        return Step(table[state.attention.squeeze(-1).long(), tokens], state, None)

    found = beam_search(step, marked, names, bos=1, eos=2, max_length=torch.tensor([2, 4, 6, 9]), min_length=9)
    assert [len(one[0].tokens) + one[0].finished for one in found] == [2, 4, 6, 9]


def test_no_sentences_give_no_hypotheses():
    def step(tokens, state, memory):
        raise AssertionError("nothing to compute")

    assert beam_search(step, torch.zeros(0, 3), (), bos=1, eos=2, max_length=3) == []


def test_it_runs_where_the_model_is(device):
    model, lengths = RandomModel(8, seed=4), [3, 2, 4]
    state, memory, real = model.sources(lengths)
    here = [tuple(tensor.to(device) for tensor in nest) for nest in (state, memory)]
    options = {"bos": BOS, "eos": EOS, "max_length": 6, "beam_size": 4, "n_best": 3, "return_attention": True}
    options |= {"coverage_penalty": 0.2, "groups": 2, "diversity": 0.5, "prefixes": [[], [3], [4, 5]], "banned": [0]}
    found = beam_search(model, *here, source_lengths=real.to(device), **options)
    for one, other in zip(found, beam_search(model, state, memory, source_lengths=real, **options), strict=True):
        same(one, other)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [1, 3])
def test_a_model_that_has_diverged_is_told(value, at):
    def step(tokens, state, memory):
        logits = torch.zeros(*tokens.shape, 5)
        logits[..., 3] = value if state.max() == at - 1 else 0.0
        return Step(logits, state + 1, None)

    with pytest.raises(FloatingPointError, match="diverged"):
        beam_search(step, torch.zeros(2, 1), (), bos=1, eos=2, max_length=3, beam_size=1, min_length=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, got 0"),
        ({"n_best": 0}, "n_best must be at least 1, got 0"),
        ({"beam_size": 2, "n_best": 3}, r"n_best must be at most beam_size \(2\), got 3"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"beam_size": 4, "groups": 3}, r"groups must divide beam_size \(4\), got 3"),
        ({"length_penalty": -1.0}, "length_penalty must be at least 0, got -1.0"),
        ({"coverage_penalty": float("nan")}, "coverage_penalty must be at least 0, a finite number, got nan"),
        ({"coverage_penalty": 1.0, "source_lengths": None}, "coverage_penalty needs source_lengths"),
        ({"diversity": -0.5}, "diversity must be at least 0, got -0.5"),
        ({"source_lengths": torch.tensor([1])}, r"source_lengths must be of shape \(2,\)"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"max_length": torch.tensor([4, 0])}, "max_length must be at least 1, got 0"),
        ({"max_length": torch.tensor([4, 4, 4])}, r"of shape \(2,\), one for each sentence, got torch.int64 of shape"),
        ({"max_length": torch.tensor([4.0, 4.0])}, "got torch.float32"),
        ({"min_length": 5}, r"min_length must be from 0 to max_length \(4\), got 5"),
        ({"min_length": -1}, "min_length must be at least 0, got -1"),
        ({"prefixes": [[3]]}, "one list for each of the 2 sentences, got 1"),
        ({"prefixes": [[], [3] * 5]}, r"the prefix of sentence 1 has 5 tokens, more than its max_length \(4\)"),
        ({"prefixes": [[3, EOS], []]}, r"the prefix of sentence 0 must hold ids, 0 or above, without eos \(2\)"),
        ({"prefixes": [[-3], []]}, "the prefix of sentence 0 must hold ids"),
        ({"prefixes": [[3], [7]]}, "id 7 .* is outside the vocabulary of 5 tokens"),
        ({"banned": [0, EOS]}, r"eos \(2\) is among the banned tokens"),
        ({"banned": [-1]}, "banned must hold ids, 0 or above, got -1"),
        ({"banned": [5]}, "id 5 .* is outside the vocabulary of 5 tokens"),
        ({"bos": -1}, "bos must be an id, 0 or above, got -1"),
        ({"eos": 9}, "id 9 .* is outside the vocabulary of 5 tokens"),
    ],
)
def test_a_bad_argument_is_named(options, message):
    model = RandomModel(5)
    state, memory, real = model.sources([3, 2])
    options = {"bos": BOS, "eos": EOS, "max_length": 4, "source_lengths": real} | options
    with pytest.raises(ValueError, match=message):
        beam_search(model, state, memory, **options)
    assert len(model.calls) <= 1


def test_a_step_that_gives_something_else_is_told():
    def flat(tokens, state, memory):
        return Step(torch.zeros(tokens.shape[0], 5), state, None)

    def blind(tokens, state, memory):
        return Step(torch.zeros(*tokens.shape, 5), state, None)

    state, options = torch.zeros(2, 1), {"bos": BOS, "eos": EOS, "max_length": 4}
    with pytest.raises(ValueError, match=r"the step's logits must be of shape \(2, 1, vocab\), got \(2, 5\)"):
        beam_search(flat, state, (), **options)
    with pytest.raises(ValueError, match="need a step that gives attention weights, got None"):
        beam_search(blind, state, (), return_attention=True, **options)
    with pytest.raises(ValueError, match=r"must all be \(batch, …\), but their first sizes are \[2, 3\]"):
        beam_search(blind, state, torch.zeros(3, 1), **options)
    with pytest.raises(ValueError, match="neither state nor memory holds a tensor"):
        beam_search(blind, (), (), **options)
