"""The neural cache against a loop that follows the paper word by word."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import VOCABULARY, make_stream
from torch import Tensor

from rnn_blocks import LSTM, LanguageModel, NeuralCache, TextBatch, evaluate_adaptively
from rnn_blocks.modules.adaptation.evaluate import target_log_probs
from rnn_blocks.modules.adaptation.neural_cache import mixture


def by_loop(cache: NeuralCache, hidden: Tensor, targets: Tensor, log_probs: Tensor) -> Tensor:
    """Equations 2 to 4, one word of one lane at a time."""
    mixed = log_probs.clone()
    for lane in range(targets.shape[1]):
        for t in range(len(targets)):
            shares = {}
            for i in range(max(0, t - cache.window), t):
                word = int(targets[i, lane])
                if word != -100:
                    share = math.exp(cache.theta * float(hidden[t, lane] @ hidden[i, lane]))
                    shares[word] = shares.get(word, 0.0) + share
            if shares:
                p_cache = shares.get(int(targets[t, lane]), 0.0) / sum(shares.values())
                p_vocab = math.exp(log_probs[t, lane])
                mixed[t, lane] = math.log((1 - cache.weight) * p_vocab + cache.weight * p_cache)
    return mixed


def make_text(time: int, lanes: int, *, ignored: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(time, lanes, 3, dtype=torch.float64)
    targets = torch.randint(5, (time, lanes))
    if ignored:
        targets[-ignored:, -1] = -100
    return hidden, targets, -torch.rand(time, lanes, dtype=torch.float64) - 0.1


@given(
    time=st.integers(1, 25),
    lanes=st.integers(1, 3),
    window=st.integers(1, 30),
    theta=st.sampled_from([0.0, 0.3, 2.0]),
    weight=st.sampled_from([0.0, 0.1, 0.9]),
    ignored=st.integers(0, 2),
)
def test_the_cache_is_the_papers_sum_over_earlier_steps(time, lanes, window, theta, weight, ignored) -> None:
    hidden, targets, log_probs = make_text(time, lanes, ignored=ignored)
    cache = NeuralCache(window, theta, weight)
    mixed, _ = cache.mix(hidden, targets, log_probs)
    counted = targets != -100
    expected = by_loop(cache, hidden, targets, log_probs)
    torch.testing.assert_close(mixed[counted], expected[counted])


@given(cuts=st.lists(st.integers(1, 12), min_size=1, max_size=6), window=st.integers(1, 20), lanes=st.integers(1, 2))
def test_a_text_in_chunks_is_the_whole_text(cuts, window, lanes) -> None:
    hidden, targets, log_probs = make_text(sum(cuts), lanes)
    cache = NeuralCache(window, theta=0.7, weight=0.3)
    whole, left = cache.mix(hidden, targets, log_probs)
    text, pieces = None, []
    for chunk in zip(hidden.split(cuts), targets.split(cuts), log_probs.split(cuts), strict=True):
        mixed, text = cache.mix(*chunk, text)
        pieces.append(mixed)
        assert text.words.shape[1] <= window
    torch.testing.assert_close(torch.cat(pieces), whole)
    torch.testing.assert_close(text, left)


def test_a_chunk_longer_than_what_is_looked_at_at_once_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, targets, log_probs = make_text(40, 2)
    cache = NeuralCache(15, theta=0.7, weight=0.3)
    whole, _ = cache.mix(hidden, targets, log_probs)
    monkeypatch.setattr("rnn_blocks.modules.adaptation.neural_cache.STEPS", 7)
    torch.testing.assert_close(cache.mix(hidden, targets, log_probs)[0], whole)


def test_the_probabilities_of_all_words_sum_to_one() -> None:
    cache = NeuralCache(window=6, theta=1.0, weight=0.4)
    hidden, targets, _ = make_text(9, 1)
    p_vocab = torch.randn(5, dtype=torch.float64).softmax(0)
    _, text = cache.mix(hidden[:-1], targets[:-1], p_vocab[targets[:-1]].log())
    words = torch.arange(5).view(5, 1, 1)
    total = sum(cache.mix(hidden[-1:], word, p_vocab[word].log(), text)[0].exp() for word in words)
    torch.testing.assert_close(total, torch.ones(1, 1, dtype=torch.float64))


def test_lanes_have_caches_of_their_own() -> None:
    hidden, targets, log_probs = make_text(12, 3)
    cache = NeuralCache(5, theta=1.0, weight=0.5)
    together, _ = cache.mix(hidden, targets, log_probs)
    for lane in range(3):
        alone, _ = cache.mix(*(x[:, lane : lane + 1] for x in (hidden, targets, log_probs)))
        torch.testing.assert_close(alone, together[:, lane : lane + 1])


def test_states_of_half_precision_are_compared_in_float32() -> None:
    hidden, targets, log_probs = make_text(12, 1)
    cache = NeuralCache(5, theta=10.0, weight=0.5)
    half, _ = cache.mix(hidden.bfloat16(), targets, log_probs)
    full, _ = cache.mix(hidden.bfloat16().float(), targets, log_probs)
    torch.testing.assert_close(half, full)


def test_a_mixture_of_nothing_is_what_the_model_says() -> None:
    log_probs = torch.randn(4)
    assert mixture(log_probs, torch.full((4,), -torch.inf), 0.0) is log_probs


@pytest.mark.parametrize("cutoffs", [None, [4]])
def test_the_loss_with_a_cache_is_that_of_the_loop_over_the_models_states(device: torch.device, cutoffs) -> None:
    model = LanguageModel(LSTM(6, 6), VOCABULARY, cutoffs=cutoffs, dropout=0.5).double().to(device)
    batches = make_stream(2, [7, 7, 3], bytes_per_token=2.0)
    cache = NeuralCache(8, theta=3.0, weight=0.2)
    losses = {name: loss.compute() for name, loss in evaluate_adaptively(model, batches, cache=cache).items()}

    model.eval()
    inputs, targets = (torch.cat([batch[i] for batch in batches], 1).to(device) for i in range(2))
    with torch.no_grad():
        logits, _ = model(inputs)
        hidden, _ = model.hidden(inputs)
    log_probs = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1).t()
    torch.testing.assert_close(target_log_probs(model, hidden, targets.t()), log_probs)
    mixed = by_loop(cache, hidden, targets.t(), log_probs)
    torch.testing.assert_close(losses["model"]["loss"], -log_probs.mean())
    torch.testing.assert_close(losses["cache"]["loss"], -mixed.mean())
    torch.testing.assert_close(losses["cache"]["bits_per_byte"], -mixed.mean() / math.log(2) / 2)


def test_with_a_weight_of_zero_the_loss_is_the_models_own() -> None:
    model = LanguageModel(LSTM(6, 6), VOCABULARY)
    losses = evaluate_adaptively(model, make_stream(2, [7, 3]), cache=NeuralCache(weight=0.0))
    torch.testing.assert_close(losses["cache"].compute(), losses["model"].compute(), rtol=0, atol=0)


def test_a_fresh_text_starts_with_an_empty_cache() -> None:
    model = LanguageModel(LSTM(6, 6), VOCABULARY).double()
    text = make_stream(2, [9])[0]
    cache = NeuralCache(theta=2.0, weight=0.3)
    once = evaluate_adaptively(model, [text], cache=cache)["cache"].compute()
    twice = evaluate_adaptively(model, [text, text], cache=cache)["cache"].compute()
    torch.testing.assert_close(twice, once)


def test_targets_that_do_not_count_change_nothing() -> None:
    model = LanguageModel(LSTM(6, 6), VOCABULARY).double()
    text = make_stream(1, [9])[0]
    padded = TextBatch(
        *(torch.cat([ids, torch.full((1, 3), fill)], 1) for ids, fill in ((text[0], 0), (text[1], -100)))
    )
    cache = NeuralCache(theta=2.0, weight=0.3)
    expected = evaluate_adaptively(model, [text], cache=cache)
    nothing = TextBatch(text[0], torch.full((1, 9), -100), fresh=False)
    losses = evaluate_adaptively(model, [padded, nothing], cache=cache)
    for name in ("model", "cache"):
        torch.testing.assert_close(losses[name].compute(), expected[name].compute())


@pytest.mark.parametrize("batches", [[], [TextBatch(torch.zeros(1, 4).long(), torch.full((1, 4), -100))]])
def test_a_text_of_which_nothing_is_to_be_predicted_is_refused(batches) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_adaptively(LanguageModel(LSTM(6, 6), VOCABULARY), batches, cache=NeuralCache())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be at least 1 step, got 0"),
        ({"theta": -1.0}, "theta must be at least 0, got -1.0"),
        ({"theta": math.nan}, "theta must be at least 0, a finite number, got nan"),
        ({"weight": 1.0}, "weight must be at least 0 and below 1, got 1.0"),
        ({"weight": -0.1}, "weight must be at least 0 and below 1, got -0.1"),
    ],
)
def test_a_number_out_of_its_range_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralCache(**options)
