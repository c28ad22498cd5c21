"""Layers made from torch's modules and the modules made from layers: weights, values, gradients."""

import itertools

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM, Bidirectional, Elman, Zoneout
from rnn_blocks.engine import state_tensors

MAKERS = {
    "lstm": (LSTM, nn.LSTM),
    "gru": (GRU, nn.GRU),
    "elman": (Elman, nn.RNN),
    "elman-relu": (Elman, lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options)),
}
every_kind = pytest.mark.parametrize("kind", MAKERS)
EXACT = {"rtol": 1e-12, "atol": 1e-12, "check_stride": False}


def cells_with_suffixes(layer):
    for k, level in enumerate(layer.layers):
        if isinstance(level, Bidirectional):
            yield level.forward_layer.cell, f"l{k}"
            yield level.backward_layer.cell, f"l{k}_reverse"
        else:
            yield level.cell, f"l{k}"


def grouped(state, directions):
    """Torch's states, (layers * directions, batch, hidden), in the order of `state_tensors` of ours."""
    parts = state if isinstance(state, tuple) else (state,)
    return [part[k] for k in range(len(parts[0])) for part in parts]


@every_kind
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both ways"])
@settings(max_examples=8)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 2), st.booleans(), st.booleans(), st.data())
def test_a_layer_made_from_torchs_module_computes_what_it_does(
    kind, bidirectional, batch, time, depth, bias, ragged, data
):
    make, torchs = MAKERS[kind]
    options = {"num_layers": depth, "bidirectional": bidirectional, "bias": bias, "batch_first": True}
    module = torchs(3, 4, **options).double()
    layer = make.from_torch(module, engine="loop")
    inputs = torch.randn(batch, time, 3, dtype=torch.float64, requires_grad=True)
    copied = inputs.detach().clone().requires_grad_()
    if ragged:
        lengths = torch.tensor(data.draw(st.lists(st.integers(1, time), min_size=batch, max_size=batch)))
        outputs, after = layer(inputs, lengths=lengths)
        packed, final = module(pack_padded_sequence(copied, lengths, batch_first=True, enforce_sorted=False))
        expected, _ = pad_packed_sequence(packed, batch_first=True, total_length=time)
    else:
        outputs, after = layer(inputs)
        expected, final = module(copied)
    final = tuple(grouped(final, 1 + bidirectional))
    assert_close(outputs, expected, **EXACT)
    assert_close(state_tensors(after), list(final), **EXACT)

    oracles.weighted_sum(outputs, after).backward()
    oracles.weighted_sum(expected, final).backward()
    assert_close(inputs.grad, copied.grad, rtol=1e-10, atol=1e-10)
    for cell, suffix in cells_with_suffixes(layer):
        for name, theirs in [("weight_ih", "weight_ih"), ("weight_hh", "weight_hh"), ("bias", "bias_ih")]:
            if bias or name != "bias":
                assert_close(
                    getattr(cell, name).grad, getattr(module, f"{theirs}_{suffix}").grad, rtol=1e-10, atol=1e-10
                )


@every_kind
@pytest.mark.parametrize(
    ("depth", "bidirectional", "batch_first"), [*itertools.product([1, 2], [False, True], [False, True])]
)
def test_weights_go_to_torch_and_back_bit_by_bit(kind, depth, bidirectional, batch_first):
    make, torchs = MAKERS[kind]
    options = {"num_layers": depth, "bidirectional": bidirectional, "batch_first": batch_first}
    layer = make.from_torch(torchs(3, 4, **options, dropout=0.25 if depth > 1 else 0.0))
    module = layer.to_torch()
    for name, value in options.items():
        assert getattr(module, name) == value
    assert module.dropout == layer.dropout
    again = make.from_torch(module)
    assert repr(again) == repr(layer)
    weights = layer.state_dict()
    assert again.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in again.state_dict().items())
    inputs = torch.randn(2, 2, 3)
    with torch.no_grad():
        assert_close(module.eval()(inputs)[0], layer.eval()(inputs)[0], rtol=1e-6, atol=1e-6, check_stride=False)


@every_kind
def test_dtype_and_mode_go_along(kind):
    make, torchs = MAKERS[kind]
    layer = make.from_torch(torchs(3, 4).to(torch.bfloat16).eval())
    assert not any(part.training for part in layer.modules())
    assert all(parameter.dtype == torch.bfloat16 for parameter in layer.parameters())
    module = layer.to_torch()
    assert not module.training
    assert all(parameter.dtype == torch.bfloat16 for parameter in module.parameters())
    assert make.from_torch(torchs(3, 4)).training


def test_dropout_of_one_layer_goes_to_torch_without_its_warning():
    with pytest.warns(UserWarning, match=r"LSTM: dropout 0\.3 does nothing to a single layer") as warned:
        layer = LSTM(3, 4, dropout=0.3)
    assert [warning.filename for warning in warned] == [__file__]
    assert layer.to_torch().dropout == 0.3


def test_another_module_is_refused():
    with pytest.raises(ValueError, match=r"expected a torch.nn.LSTM, got GRU"):
        LSTM.from_torch(nn.GRU(3, 4))
    with pytest.raises(ValueError, match=r"expected a torch.nn.RNN, got LSTM"):
        Elman.from_torch(nn.LSTM(3, 4))


def test_a_projection_is_refused():
    with pytest.raises(ValueError, match="no counterpart here, got proj_size=2"):
        LSTM.from_torch(nn.LSTM(3, 4, proj_size=2))


def zoned():
    layer = GRU(3, 4)
    layer.layers[0].cell = Zoneout(layer.layers[0].cell, 0.1)
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSTM(3, [4, 5]), r"torch's layers all have one hidden_size, got \[4, 5\]"),
        (lambda: GRU(3, 3, num_layers=2, skip="residual"), "torch has no skips across layers, got skip='residual'"),
        (lambda: GRU(3, 4, reset_after=False), "after the recurrent product, got reset_after=False"),
        (zoned, "torch has layers of plain GRUCells only, got Zoneout"),
    ],
)
def test_what_torch_does_not_have_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make().to_torch()
