"""What is not finite stays on its side of a reset, forwards and backwards, on every way of scanning."""

import pytest
import torch
import zoo_linear
from oracles import gradients_of
from torch.testing import assert_close

from rnn_blocks import Recurrent
from rnn_blocks.engine import run_loop, run_scan, scan

WAYS = {"in order": "walk_in_order", "doubling": "walk_by_doubling"}


def step(coefficients, h):
    a, b = coefficients
    h = a * h + b
    return h, h


def finite(tensor):
    """Of complex numbers infinity times infinity has more than one answer."""
    return torch.where(tensor.isfinite(), tensor, torch.nan)


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("time", [7, 100], ids=["in order", "abreast"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("place", ["drive", "state", "gradient"])
def test_what_is_not_finite_crosses_no_reset(place, dtype, way, time, value, monkeypatch):
    monkeypatch.setattr(scan, "walk_in_order", getattr(scan, WAYS[way]))
    decay = (torch.randn(time, 2, 3, dtype=dtype) * 0.5).requires_grad_()
    drive, state, fresh = (torch.randn(*shape, 2, 3, dtype=dtype) for shape in ((time,), (), ()))
    resets = torch.zeros(time, 2, dtype=torch.bool)
    resets[0 if place == "state" else 4] = True
    towards = torch.randn(time, 2, 3, dtype=dtype)
    {"drive": drive[2], "state": state, "gradient": towards[5]}[place].fill_(value)
    leaves = [decay, drive.requires_grad_(), state.requires_grad_(), fresh.requires_grad_()]
    found, _ = run_scan(decay, drive, state, fresh=fresh, resets=resets)
    expected, _ = run_loop(step, (decay, drive), state, fresh=fresh, resets=resets)
    reset_at = 0 if place == "state" else 4
    assert found[reset_at:].isfinite().all()
    assert_close(finite(found), finite(expected), equal_nan=True)
    sides = slice(reset_at, None) if place != "gradient" else slice(0, None)
    for got, reference in zip(
        gradients_of((found * towards)[sides].sum().abs(), leaves),
        gradients_of((expected * towards)[sides].sum().abs(), leaves),
        strict=True,
    ):
        assert_close(finite(got), finite(reference), equal_nan=True)


@pytest.mark.parametrize("engine", ["auto", "scan", "loop"])
@pytest.mark.parametrize("name", zoo_linear.CELLS)
def test_a_linear_layer_forgets_what_is_not_finite_at_a_reset(name, engine):
    layer = Recurrent(zoo_linear.CELLS[name](4, 5), engine=engine)
    inputs, resets = torch.randn(1, 6, 4), torch.zeros(1, 6, dtype=torch.bool)
    inputs[0, 1], resets[0, 3] = float("inf"), True
    inputs.requires_grad_()
    outputs, _ = layer(inputs, resets=resets)
    (gradient,) = torch.autograd.grad(outputs[:, 3:].sum(), inputs)
    assert outputs[:, 3:].isfinite().all()
    assert gradient[:, 3:].isfinite().all()
