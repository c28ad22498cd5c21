import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks.engine import products


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_packed_product_is_the_matrix_product(rows, features, out, transposed):
    weight = torch.randn(features, out).t() if transposed else torch.randn(out, features)
    inputs = torch.randn(rows, features)
    expected = (inputs.double() @ weight.double().t()).float()
    assert_close(products.packed_product(weight)(inputs), expected, rtol=1e-5, atol=1e-5)


def test_one_packed_factor_serves_inputs_of_any_number_of_rows():
    weight = torch.randn(5, 3)
    product = products.packed_product(weight)
    for rows in (1, 7, 1025):
        inputs = torch.randn(rows, 3)
        assert_close(product(inputs), inputs @ weight.t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_take_the_plain_product(dtype):
    weight, inputs = torch.randn(5, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    assert not products.can_pack(weight)
    assert torch.equal(products.packed_product(weight)(inputs), torch.nn.functional.linear(inputs, weight))


@pytest.mark.parametrize("missing", ["_reorder_linear_weight", "_linear_pointwise"])
def test_a_torch_without_the_private_operators_takes_the_plain_product(missing, monkeypatch):
    present = {"_reorder_linear_weight", "_linear_pointwise"} - {missing}
    monkeypatch.setattr(products.torch.ops, "mkldnn", type("Operators", (), dict.fromkeys(present, None)))
    weight, inputs = torch.randn(5, 3), torch.randn(2, 3)
    assert not products.can_pack(weight)
    assert_close(products.packed_product(weight)(inputs), inputs @ weight.t())


def test_no_gradient_flows_through_a_packed_product():
    weight = torch.randn(5, 3, requires_grad=True)
    assert not products.packed_product(weight)(torch.randn(2, 3, requires_grad=True)).requires_grad
    assert not products.packed_product(weight.double())(torch.randn(2, 3).double().requires_grad_()).requires_grad
