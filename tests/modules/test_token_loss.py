import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnn_blocks import TokenLoss

batches = st.lists(st.tuples(st.floats(0, 80), st.integers(0, 50), st.floats(0, 200)), min_size=1, max_size=6)


@given(batches)
def test_means_are_weighted_by_tokens_however_they_were_batched(parts):
    metric = TokenLoss()
    for loss, tokens, num_bytes in parts:
        metric.update(torch.tensor(loss, dtype=torch.float64), torch.tensor(tokens), num_bytes)
    tokens, num_bytes = sum(n for _, n, _ in parts), sum(b for _, _, b in parts)
    nats = math.fsum(loss * n for loss, n, _ in parts)
    result = {name: value.item() for name, value in metric.compute().items()}
    if tokens == 0:
        assert math.isnan(result["loss"])
        return
    assert result["loss"] == pytest.approx(nats / tokens)
    assert result["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert ("bits_per_byte" in result) == (num_bytes > 0)
    if num_bytes > 1e-9:
        assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes)


def test_a_batch_without_tokens_adds_nothing_though_its_mean_is_nan():
    metric = TokenLoss()
    metric.update(torch.tensor(2.0), torch.tensor(3))
    metric.update(torch.tensor(math.nan), torch.tensor(0))
    assert metric.compute()["loss"] == 2.0


def test_a_loss_that_is_not_finite_is_not_hidden():
    metric = TokenLoss()
    metric.update(torch.tensor(2.0), torch.tensor(3))
    metric.update(torch.tensor(math.nan), torch.tensor(1))
    assert metric.compute()["loss"].isnan()


def test_many_small_losses_lose_no_digits():
    metric = TokenLoss()
    for _ in range(3000):
        metric.update(torch.tensor(0.1), torch.tensor(7))
    assert metric.compute()["loss"].item() == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_it_keeps_no_graph():
    weight = torch.ones((), requires_grad=True)
    metric = TokenLoss()
    metric.update(weight * 2, torch.tensor(3))
    assert not metric.nats.requires_grad
