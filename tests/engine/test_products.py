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


@pytest.mark.parametrize(
    ("machine", "has", "slow"),
    [("x86_64", "", True), ("AMD64", "", True), ("x86_64", "amx_tile", False), ("x86_64", "avx512_bf16", False),
     ("aarch64", "", False)],
)  # fmt: skip
def test_bfloat16_is_slow_on_x86_without_units_for_it(machine, has, slow, monkeypatch):
    monkeypatch.setattr(products.platform, "machine", lambda: machine)
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name == has, raising=False)
    assert products.multiplies_slowly(torch.bfloat16, torch.device("cpu")) == slow
    assert not products.multiplies_slowly(torch.bfloat16, torch.device("cuda"))
    assert not products.multiplies_slowly(torch.float32, torch.device("cpu"))


def test_bfloat16_is_packed_where_there_are_units(monkeypatch):
    asked = []

    class Operators:  # as oneDNN's on a CPU with units, in plain torch
        _reorder_linear_weight = staticmethod(lambda weight, rows: asked.append(rows) or weight)
        _linear_pointwise = staticmethod(lambda inputs, weight, *_: torch.nn.functional.linear(inputs, weight))

    monkeypatch.setattr(products.torch.ops, "mkldnn", Operators)
    weight, inputs = torch.randn(5, 3).bfloat16(), torch.randn(2, 3).bfloat16()
    for units in (False, True):
        monkeypatch.setattr(products, "has_bfloat16_units", lambda units=units: units)
        assert products.packing_pays(weight) == units
        found = products.packed_product(weight, rows=2)(inputs)
        assert torch.equal(found, torch.nn.functional.linear(inputs, weight))
    assert asked == [2]


@pytest.mark.parametrize("slow", [True, False])
def test_the_products_of_all_inputs_are_in_autocasts_dtype_with_gradients_in_the_weights(slow, monkeypatch):
    monkeypatch.setattr(products, "multiplies_slowly", lambda *_: slow)
    inputs, weight, bias = torch.randn(4, 2, 3), torch.randn(5, 3, requires_grad=True), torch.randn(5)
    with torch.autocast("cpu", torch.bfloat16):
        found = products.input_product(inputs, weight, bias)
        (inside,) = torch.autograd.grad(found.float().square().sum(), weight, retain_graph=True)
    (outside,) = torch.autograd.grad(found.float().square().sum(), weight)
    assert found.dtype == torch.bfloat16
    assert inside.dtype == outside.dtype == torch.float32
    expected = torch.nn.functional.linear(inputs, weight, bias)
    (exact,) = torch.autograd.grad(expected.square().sum(), weight)
    assert_close(found.float(), expected, rtol=2e-2, atol=5e-2)
    for gradient in (inside, outside):
        assert float((gradient - exact).norm()) <= 2e-2 * float(exact.norm())
