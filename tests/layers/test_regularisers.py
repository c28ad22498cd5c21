"""Dropout with one mask for a sequence or for a word, penalties on activations, and a stack of all regularisers."""

import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from twins import copies_of, run_seeded, through_a_file

from rnn_blocks import (
    GRU,
    LSTM,
    EmbeddingDropout,
    Stack,
    VariationalDropout,
    WeightDrop,
    activation_regularisation,
    detach_state,
    embedding_dropout,
    temporal_activation_regularisation,
)

EXACT = {"rtol": 1e-10, "atol": 1e-12, "check_stride": False}


# Variational dropout


def masks_of(layer, batch, time, state=None, **options):
    """Which features are zero, ``(batch, time, size)``, for inputs that are not."""
    outputs, state = layer(torch.ones(batch, time, layer.input_size), state, **options)
    return outputs == 0, state


def test_one_mask_serves_all_steps_of_a_sequence(device):
    layer = VariationalDropout(400, 0.3).to(device)
    inputs = torch.randn(3, 5, 400, device=device, requires_grad=True)
    outputs, noise = layer(inputs)
    mask = outputs[:, 0] == 0
    assert 0.25 < mask.float().mean() < 0.35
    assert not torch.equal(mask[0], mask[1])
    expected = torch.where(mask[:, None], 0.0, inputs / 0.7)
    assert_close(outputs, expected)
    found, gradients = (oracles.gradients_of(y.sin().sum(), [inputs]) for y in (outputs, expected))
    assert_close(found, gradients)
    assert noise.shape == (3, 400)


def test_each_sequence_gets_a_new_mask():
    layer = VariationalDropout(50, 0.5)
    first, _ = masks_of(layer, 2, 1)
    second, _ = masks_of(layer, 2, 1)
    assert not torch.equal(first, second)


def test_variational_noise_of_each_call_lasts_for_one_call():
    layer = VariationalDropout(50, 0.5, each_call=True)
    inputs = torch.ones(2, 6, 50)
    state, masks = None, []
    for chunk in inputs.split(3, dim=1):
        outputs, state = layer(chunk, state)
        assert torch.equal(outputs, outputs[:, :1].expand_as(outputs))
        masks.append(outputs[:, 0])
    assert not torch.equal(*masks)
    assert torch.equal(masks[1] != 0, state >= 0.5), "the noise of the last call goes on in its state"
    outputs, after = layer.eval()(inputs, state)
    assert torch.equal(outputs, inputs)
    assert torch.equal(after, state)


def test_without_a_probability_nothing_is_dropped():
    inputs = torch.randn(2, 3, 4)
    assert torch.equal(VariationalDropout(4, 0.0)(inputs)[0], inputs)


@given(st.integers(1, 3), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.booleans(), st.integers(0, 10**6))
def test_chunks_in_training_have_the_masks_of_the_whole(batch, cuts, resetting, seed):
    layer = VariationalDropout(5, 0.5)
    time = sum(cuts)
    inputs = torch.ones(batch, time, 5)
    resets = torch.rand(batch, time, generator=torch.Generator().manual_seed(seed)) < 0.4
    outcomes = []
    for pieces in ([time], cuts):
        torch.manual_seed(seed)
        state, outputs = None, []
        for chunk, marks in zip(inputs.split(pieces, 1), resets.split(pieces, 1), strict=True):
            output, state = layer(chunk, state, resets=marks if resetting else None)
            outputs.append(output)
        outcomes.append((torch.cat(outputs, 1), state))
    assert_close(*outcomes, rtol=0, atol=0)


def test_every_reset_brings_a_mask_of_its_own():
    layer = VariationalDropout(40, 0.5)
    resets = torch.tensor([[0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    before = layer.initial_state(3, torch.zeros(1))
    masks, state = masks_of(layer, 3, 6, before, resets=resets)
    kinds = [[0, 0, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3], [4, 4, 4, 4, 4, 4]]
    seen = {}
    for row, numbers in zip(masks, kinds, strict=True):
        for mask, number in zip(row, numbers, strict=True):
            assert torch.equal(seen.setdefault(number, mask), mask)
    assert len({tuple(mask.tolist()) for mask in seen.values()}) == 5
    assert torch.equal(seen[0], before[0] < 0.5)
    assert torch.equal(seen[4], before[2] < 0.5)
    assert torch.equal(masks[:, -1], state < 0.5)


def test_resets_past_a_length_bring_none():
    layer = VariationalDropout(4, 0.5)
    before = layer.initial_state(2, torch.zeros(1))
    resets = torch.tensor([[1, 1, 1], [0, 1, 0]])
    _, state = layer(torch.ones(2, 3, 4), before, lengths=torch.tensor([0, 1]), resets=resets)
    assert torch.equal(state, before)


def test_the_mask_survives_evaluation_copies_and_checkpoints():
    layer = VariationalDropout(30, 0.5)
    masks, state = masks_of(layer, 2, 2)
    inputs = torch.randn(2, 3, 30)
    evaluated, state = layer.eval()(inputs, state)
    assert torch.equal(evaluated, inputs)
    for twin in copies_of(layer.train()):
        again, _ = masks_of(twin, 2, 2, through_a_file(detach_state(state)))
        assert torch.equal(again, masks)
    _, begun = layer.eval()(inputs)  # a state that begins in evaluation serves in training
    assert masks_of(layer.train(), 2, 2, begun)[0].any()


def test_variational_dropout_has_neither_parameters_nor_buffers():
    assert not VariationalDropout(3, 0.5).state_dict()
    assert repr(VariationalDropout(3, 0.5)) == "VariationalDropout(3, p=0.5)"
    assert repr(VariationalDropout(3, 0.5, each_call=True)) == "VariationalDropout(3, p=0.5, each_call=True)"


# All of them together: the model of Merity et al.


def awd(**options):
    layers = [VariationalDropout(3, 0.3), WeightDrop(LSTM(3, 4, **options), 0.3), VariationalDropout(4, 0.3)]
    return Stack([*layers, WeightDrop(GRU(4, 5, **options), 0.3), VariationalDropout(5, 0.3)])


def test_copies_of_a_regularised_stack_give_its_outputs_in_either_mode():
    layer = awd()
    layer(torch.randn(2, 4, 3))[0].sum().backward()
    inputs = torch.randn(2, 4, 3)
    for training in (True, False, True):
        expected, _ = run_seeded(layer.train(training), inputs)
        for twin in copies_of(layer):
            assert torch.equal(run_seeded(twin, inputs)[0], expected)


def test_truncated_backpropagation_trains_a_regularised_stack():
    layer = awd()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    inputs, losses, state = torch.randn(4, 40, 3), [], None
    for chunk in inputs.split(5, dim=1):
        outputs, state = layer(chunk, state)
        state = detach_state(state)
        loss = outputs.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


def test_chunks_in_evaluation_equal_the_whole():
    layer = awd().double().eval()
    inputs = torch.randn(2, 6, 3, dtype=torch.float64)
    whole, _ = layer(inputs)
    state, outputs = None, []
    for chunk in inputs.split([1, 3, 2], dim=1):
        output, state = layer(chunk, state)
        outputs.append(output)
    assert_close(torch.cat(outputs, 1), whole, **EXACT)


# Embedding dropout


def test_a_word_is_dropped_wherever_it_stands(device):
    embedding = nn.Embedding(500, 3, device=device)
    ids = torch.randint(0, 500, (4, 1000), device=device)
    vectors = embedding_dropout(embedding, ids, 0.2, training=True)
    dropped = (vectors == 0).all(-1)
    gone = set(ids[dropped].tolist())
    assert not gone & set(ids[~dropped].tolist())
    assert 0.1 < len(gone) / 500 < 0.3
    assert_close(vectors[~dropped], embedding(ids[~dropped]) / 0.8)


def test_embedding_dropout_in_evaluation_is_the_embedding_again_and_again():
    words = EmbeddingDropout(nn.Embedding(50, 4), 0.5)
    ids = torch.arange(50)
    before = words.embedding.weight.detach().clone()
    for training in (True, False) * 25:
        vectors = words.train(training)(ids)
        assert torch.equal(vectors, words.embedding(ids)) != training
        vectors.sum().backward()
    assert torch.equal(words.embedding.weight, before)
    assert list(words.state_dict()) == ["embedding.weight"]
    for twin in copies_of(words):
        assert torch.equal(run_seeded(twin, ids), run_seeded(words, ids))


@pytest.mark.parametrize("sparse", [False, True])
def test_only_words_that_are_left_get_gradients(sparse):
    embedding = nn.Embedding(20, 2, sparse=sparse, padding_idx=0, dtype=torch.float64)
    ids = torch.tensor([[0, 3, 5, 3], [7, 7, 7, 11]])
    vectors = embedding_dropout(embedding, ids, 0.5, training=True)
    vectors.sum().backward()
    gradient = embedding.weight.grad
    assert gradient.is_sparse == sparse
    expected = torch.zeros(20, 2, dtype=torch.float64)
    for word, vector in zip(ids.flatten().tolist(), vectors.flatten(0, 1), strict=True):
        expected[word] += 2.0 * bool(vector.any())
    assert_close(gradient.to_dense(), expected)


# Penalties on activations


def plain_penalties(outputs, lengths):
    """Both means, written out with loops over sequences, steps and features."""
    squares, changes = [], []
    for sequence, length in zip(outputs, lengths, strict=True):
        for t in range(length):
            squares += [h * h for h in sequence[t]]
            changes += [(h - g) * (h - g) for h, g in zip(sequence[t], sequence[t - 1], strict=True)] if t else []
    nothing = outputs.sum() * 0
    return tuple(sum(found) / len(found) if found else nothing for found in (squares, changes))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans(), st.data())
def test_penalties_and_their_gradients_are_the_plain_formulas(batch, time, size, ragged, batch_first, data):
    outputs = torch.randn(batch, time, size, dtype=torch.float64)
    steps = st.lists(st.integers(0, time), min_size=batch, max_size=batch)
    lengths = data.draw(steps) if ragged else [time] * batch
    for n, length in enumerate(lengths):
        outputs[n, length:] = torch.nan  # padding
    outputs.requires_grad_()
    options = {"lengths": torch.tensor(lengths) if ragged else None, "batch_first": batch_first}
    given_outputs = outputs if batch_first else outputs.transpose(0, 1)
    ar = activation_regularisation(given_outputs, 2.0, **options)
    tar = temporal_activation_regularisation(given_outputs, 3.0, **options)
    mean_square, mean_change = plain_penalties(outputs.nan_to_num(), lengths)
    assert_close((ar, tar), (2.0 * mean_square, 3.0 * mean_change))
    found = oracles.gradients_of(ar + tar, [outputs])
    expected = oracles.gradients_of(2.0 * mean_square + 3.0 * mean_change, [outputs])
    assert_close(found, expected)


def test_penalties_are_those_of_awd_lstm_for_whole_sequences():
    h = torch.randn(6, 4, 5)  # (time, batch, features)
    assert_close(activation_regularisation(h, 2.0, batch_first=False), 2 * h.pow(2).mean())
    assert_close(temporal_activation_regularisation(h, 1.0, batch_first=False), (h[1:] - h[:-1]).pow(2).mean())


@pytest.mark.parametrize("penalty", [activation_regularisation, temporal_activation_regularisation])
def test_penalties_of_half_precision_stay_in_range(penalty):
    outputs = torch.zeros(8, 64, 64, dtype=torch.float16)
    outputs[:, ::2] = 100
    result = penalty(outputs, 1.0)
    assert result.dtype == torch.float32
    assert 4e3 < result < 2e4


@pytest.mark.parametrize(
    ("penalty", "name"), [(activation_regularisation, "alpha"), (temporal_activation_regularisation, "beta")]
)
def test_penalties_refuse_bad_arguments(penalty, name):
    for value, told in ((-1.0, ""), (float("inf"), ", a finite number"), (float("nan"), ", a finite number")):
        with pytest.raises(ValueError, match=f"{name} must be at least 0{told}, got {value}"):
            penalty(torch.zeros(1, 2, 3), value)
    with pytest.raises(ValueError, match=r"three-dimensional, as layers give them, got shape \(2, 3\)"):
        penalty(torch.zeros(2, 3), 1.0)
    with pytest.raises(ValueError, match=r"lengths must be 1 integers, one a sequence, got shape \(2,\)"):
        penalty(torch.zeros(1, 2, 3), 1.0, lengths=torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("p", "told"), [(-0.1, ""), (1.0, ""), (1.5, ""), ("half", "a number, "), (None, "a number, ")]
)
def test_probabilities_outside_of_zero_to_one_are_refused(p, told):
    embedding = nn.Embedding(3, 2)
    for make in (
        lambda: VariationalDropout(3, p),
        lambda: WeightDrop(LSTM(3, 4), p),
        lambda: EmbeddingDropout(embedding, p),
        lambda: embedding_dropout(embedding, torch.tensor([1]), p, training=False),
    ):
        with pytest.raises(ValueError, match=f"p must be {told}at least 0 and below 1, got {p!r}"):
            make()
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        VariationalDropout(0, 0.5)
