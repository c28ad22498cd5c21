"""The fused engine in lower precisions, under autocast, and with factors packed or cast once."""

import copy
import re

import oracles
import pytest
import torch
import zoo
from fused_cells import both, programs_of

from rnn_blocks import LSTMCell, Recurrent, RecurrentDropout
from rnn_blocks.engine import graph, products, split, state_tensors


@pytest.mark.parametrize("name", ["lstm", "gru", "gru-reset-before", "rhn-3", "layer-norm-lstm", "recurrent-dropout"])
def test_packed_factors_give_the_gradients_of_plain_ones(name, monkeypatch):
    monkeypatch.setattr(split, "packing_pays", products.can_pack)  # as on a CPU with AVX-512
    builders = zoo.CELLS | {"recurrent-dropout": lambda i, h: RecurrentDropout(LSTMCell(i, h), 0.3)}
    cell = builders[name](5, 8)
    start = cell.initial_state(3, torch.zeros(1))
    for options in ({}, {"lengths": torch.tensor([6, 0, 2])}):
        found, expected = both(cell, torch.randn(3, 6, 5), start, **options)[::-1]
        for got, reference in zip(found, expected, strict=True):
            assert float((got - reference).norm()) <= 5e-6 * max(float(reference.norm()), 1e-2)
    assert all(program.packed for program in programs_of(cell).values())


@pytest.mark.parametrize("name", [*oracles.CELLS, "own"])
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
def test_autocast_is_near_float32(name, ragged, device):
    cell = (oracles.CELLS | {"own": oracles.LeakySum})[name](5, 6).to(device)
    layer = Recurrent(cell, engine="fused")
    inputs = torch.randn(4, 7, 5, device=device)
    options = {"lengths": torch.tensor([7, 0, 1, 4])} if ragged else {}
    weights = list(layer.parameters())
    expected, after = layer(inputs, **options)
    exact = oracles.gradients_of(expected.square().sum(), weights)
    with torch.autocast(device.type, torch.bfloat16):
        outputs, state = layer(inputs, **options)
        chunked, _ = layer(inputs, state, **options)  # a state that autocast made goes in again
        total = outputs.float().square().sum()
        inside = oracles.gradients_of(total, weights) if name == "gru" else None  # a backward pass within autocast
    gradients = inside or oracles.gradients_of(outputs.float().square().sum(), weights)
    assert chunked.isfinite().all()
    found, references = [outputs, *state_tensors(state), *gradients], [expected, *state_tensors(after), *exact]
    for got, reference in zip(found, references, strict=True):
        error = float((got.float() - reference).detach().norm())
        assert error <= 0.08 * max(float(reference.detach().norm()), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", oracles.CELLS)
def test_lower_precisions_stay_near_float64(name, dtype, device):
    cell = oracles.CELLS[name](5, 6).to(device, dtype)
    inputs = torch.randn(4, 7, 5).to(device, dtype)
    exact = copy.deepcopy(cell).double()
    found, expected = both(cell, inputs)[1], both(exact, inputs.double())[1]
    for got, reference in zip(found, expected, strict=True):
        assert got.dtype == dtype
        error = float((got.double() - reference).norm())
        assert error <= {torch.float32: 5e-6, torch.bfloat16: 0.08}[dtype] * max(float(reference.detach().norm()), 1e-3)


@pytest.mark.parametrize("name", ["lstm", "gru-reset-before", "layer-norm-lstm", "rhn-3"])
def test_where_bfloat16_is_slow_its_products_are_made_in_float32_with_weights_cast_once(name, monkeypatch):
    cell = zoo.CELLS[name](5, 6)
    inputs, weights = torch.randn(4, 7, 5), list(cell.parameters())
    expected, _ = Recurrent(cell, engine="loop")(inputs)
    exact = oracles.gradients_of(expected.square().sum(), weights)
    texts = []
    for slow in (True, False):
        monkeypatch.setattr(graph, "multiplies_slowly", lambda dtype, _, slow=slow: slow and dtype == torch.bfloat16)
        twin = copy.deepcopy(cell)
        with torch.autocast("cpu", torch.bfloat16):
            outputs, _ = Recurrent(twin, engine="fused")(inputs)
        found = oracles.gradients_of(outputs.float().square().sum(), list(twin.parameters()))
        for got, reference in zip([outputs, *found], [expected, *exact], strict=True):
            error = float((got.float() - reference).detach().norm())
            assert error <= 0.08 * max(float(reference.detach().norm()), 1e-3)
        (program,) = (p for p in programs_of(twin).values() if not isinstance(p, tuple))
        texts.append(program.text)
        given = {f"v{k}" for k in range(40)} & set(program.text.split("(", 1)[1].split(")", 1)[0].split(", "))
        forward = program.text.split("def forward")[1].split("def ")[0]
        assert not [cast for cast in re.findall(r"_to_copy\w*\((\w+)", forward) if cast in given]  # of a weight
    assert texts[0].count("_to_copy") > texts[1].count("_to_copy")
