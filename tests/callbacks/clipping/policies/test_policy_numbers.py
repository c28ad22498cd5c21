"""`Auto` works on tensors and on Python's numbers, which a clipper gives it on a CPU: both give the same."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks.callbacks import Auto, GradientClipper, Step
from rnn_blocks.callbacks.measuring import numbers

ODD = [math.inf, math.nan, 1e-6, 1e6]
NORMS = st.one_of(st.floats(0.015625, 128.0, width=32), st.sampled_from([0.0, *ODD]))
LOSSES = st.one_of(st.none(), st.floats(0.015625, 8.0, width=32), st.sampled_from([0.0, -1.0, *ODD]))
RATES = st.one_of(st.sampled_from([None, 0.0, 0.1, 1, 30.0, math.inf, math.nan]), st.floats(1e-4, 10.0))


def double(number):  # as norms on a CPU are; tensors divide counts in single precision
    return torch.tensor(number, dtype=torch.float64)


def run(policy, steps, make):
    """The history and the answers, of and in what `make` makes of a tensor."""
    history, answers = {name: make(value) for name, value in policy.initial_history(double(1.0)).items()}, []
    for norm, loss, rate, share in steps:
        step = Step(make(double(norm)), rate, make(double(1.0)), momentum=0.9)
        if loss is not None:
            step = step._replace(loss=make(double(loss)))
        if loss is not None and share is not None:
            step = step._replace(sensitive_norm=make(double(share * norm)))
        answers.append(policy.clip(history, step))
        history = policy.observe(history, step)
    return history, answers


def check(steps):
    """That both give the same; the history."""
    policy = Auto(window=8)
    history, answers = run(policy, steps, numbers.in_numbers)
    expected_history, expected = run(policy, steps, torch.Tensor.clone)
    assert history.keys() == expected_history.keys()
    for name, value in expected_history.items():
        found = numbers.in_tensors(history[name])
        assert found.dtype == value.dtype, name
        assert_close(found, value, rtol=1e-5, atol=1e-6, equal_nan=True, msg=lambda text, name=name: name + text)
    for got, wanted in zip(answers, expected, strict=True):
        assert isinstance(got.threshold, float)
        assert isinstance(got.target, float)
        assert_close(got[:2], tuple(map(numbers.in_numbers, wanted[:2])), rtol=1e-5, atol=1e-6, equal_nan=True)
    return history


@settings(deadline=None, max_examples=200, derandomize=True)  # rounding may break a tie of two averages
@given(st.lists(st.tuples(NORMS, LOSSES, RATES, st.sampled_from([None, 0.0, 0.5, 1.0])), min_size=1, max_size=40))
def test_numbers_and_tensors_give_the_same(steps):
    check(steps)


def test_they_give_the_same_of_a_loss_that_falls_below_0():
    history = check([(1.0, 4.0 - 0.1 * step, 0.1, None) for step in range(100)])
    assert history["floor"] < -8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_training_ends_the_same_by_numbers_and_by_tensors(dtype):
    ends = []
    for as_tensors in (False, True):
        torch.manual_seed(1)
        net = torch.nn.Linear(4, 1, dtype=dtype)
        optimizer = torch.optim.SGD(net.parameters(), lr=2.0, momentum=0.9)
        clipper = GradientClipper(optimizer)
        with mock.patch.object(numbers, "is_one_on_a_cpu", return_value=not as_tensors):
            for _ in range(60):
                inputs = torch.randn(8, 4, dtype=dtype)
                loss = (net(inputs) - inputs.sum(1, keepdim=True)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                clipper.clip(loss)
                optimizer.step()
        assert clipper.metrics()["grad_clip/clipped_fraction"] > 0.1
        ends.append([parameter.detach() for parameter in net.parameters()])
    assert_close(*ends, rtol=1e-3, atol=1e-4)
