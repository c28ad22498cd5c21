"""What is chosen on validation text is what trying everything by hand finds best."""

from dataclasses import replace

import pytest
import torch
from streams import VOCABULARY, make_stream

from rnn_blocks import (
    LSTM,
    DynamicEvaluation,
    LanguageModel,
    NeuralCache,
    TextBatch,
    evaluate_adaptively,
    tune_cache,
    tune_dynamic_evaluation,
)


def repeating(steps: int = 90) -> list[TextBatch]:
    line = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]]).repeat(1, 1 + steps // 6)
    return [TextBatch(line[:, :steps], line[:, 1 : steps + 1])]


@pytest.mark.parametrize("dynamic", [None, DynamicEvaluation("sgd", lr=0.5)])
def test_the_cache_chosen_has_the_lowest_loss_of_all_pairs(dynamic: DynamicEvaluation | None) -> None:
    model = LanguageModel(LSTM(6, 6), VOCABULARY).double()
    batches = [*repeating(20), *make_stream(2, [20, 7])]
    thetas, weights = [0.0, 30.0, 200.0], [0.0, 0.2, 0.6]
    losses = {
        cache: evaluate_adaptively(model, batches, cache=cache, dynamic=dynamic)["cache"].compute()["loss"].item()
        for cache in (NeuralCache(8, theta, weight) for theta in thetas for weight in weights)
    }
    chosen = tune_cache(model, batches, cache=NeuralCache(8), thetas=thetas, weights=weights, dynamic=dynamic)
    assert chosen == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize("lr", [1, 32])
def test_the_rate_moves_to_where_both_neighbours_are_worse(lr: float) -> None:
    model = LanguageModel(LSTM(6, 6), VOCABULARY).double()
    start = DynamicEvaluation("sgd", lr=lr, decay=0.02)
    chosen = tune_dynamic_evaluation(model, repeating, start, tune_decay=False)
    assert chosen.decay == start.decay

    def loss(dynamic: DynamicEvaluation) -> float:
        return evaluate_adaptively(model, repeating(), dynamic=dynamic)["model"].compute()["loss"].item()

    best = loss(chosen)
    assert best < loss(start)
    assert best <= min(loss(replace(chosen, lr=chosen.rate * factor)) for factor in (0.5, 2.0))


def test_numbers_that_start_from_0_can_be_left() -> None:
    model = LanguageModel(LSTM(6, 6), VOCABULARY).double()
    still = DynamicEvaluation("sgd", lr=0.0, decay=0.0)
    assert tune_dynamic_evaluation(model, repeating, still, tune_decay=False).rate >= 0.1

    def loss(decay: float) -> float:
        dynamic = replace(still, lr=64.0, decay=decay)
        return evaluate_adaptively(model, repeating(), dynamic=dynamic)["model"].compute()["loss"].item()

    chosen = tune_dynamic_evaluation(model, repeating, replace(still, lr=64.0), tune_lr=False).decay
    assert (chosen > 0) == (loss(0.002) < loss(0.0))
    assert loss(chosen) <= loss(0.0)


def test_a_rate_that_diverges_is_no_choice() -> None:
    model = LanguageModel(LSTM(6, 6), VOCABULARY)
    start = DynamicEvaluation("sgd", lr=1e38, decay=0.5)
    assert tune_dynamic_evaluation(model, repeating, start, tune_lr=False).rate == 1e38
    assert tune_dynamic_evaluation(model, repeating, start, tune_decay=False).decay == 0.5


def test_nothing_to_choose_on_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        tune_cache(LanguageModel(LSTM(6, 6), VOCABULARY), [])
    with pytest.raises(ValueError, match="nothing to evaluate"):
        tune_dynamic_evaluation(LanguageModel(LSTM(6, 6), VOCABULARY), list, DynamicEvaluation("sgd"))
