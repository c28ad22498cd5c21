import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rnn_blocks.callbacks import GradientNormMonitor
from rnn_blocks.callbacks.measuring.norms import scale_, tensor_norms
from rnn_blocks.callbacks.measuring.step import StepGradients, shared_step


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_equal_those_of_a_float64_copy(dtype):
    torch.manual_seed(0)
    tensors = [torch.randn(3, 5).to(dtype), torch.randn(7).to(dtype), torch.randn(()).to(dtype)]
    expected = torch.stack([tensor.double().norm() for tensor in tensors])
    assert_close(tensor_norms(tensors), expected, rtol=1e-6, atol=0)


def test_norms_of_mixed_dtypes_and_layouts_come_in_the_order_of_the_tensors():
    sparse = torch.sparse_coo_tensor([[0, 2]], [[3.0], [4.0]], (4, 1), check_invariants=True)
    half, double = torch.full((4,), 2.0).half(), torch.full((9,), 1.0).double()
    tensors = [double, torch.tensor([6.0, 8.0]), half, sparse, torch.empty(0), torch.ones(1)]
    assert tensor_norms(tensors).tolist() == [3.0, 10.0, 4.0, 5.0, 0.0, 1.0]


@pytest.mark.parametrize("value", [1e20, 3e38, 1e-30])
def test_finite_gradients_whose_squares_leave_float32_have_a_finite_norm(value):
    """Trap 6: their norm is infinite, or 0, in float32."""
    assert_close(tensor_norms([torch.full((4,), value), torch.zeros(2)]).tolist(), [2 * value, 0.0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [3e-22, 1e-25, 1e-40])
def test_a_small_gradient_among_large_ones_has_the_norm_that_it_has(value):
    """In float32 it would be 0, which is what units have that are dead."""
    tiny = torch.full((4,), value)
    expected = [math.sqrt(2), 2 * tiny[0].item(), 0.0, 3.0]
    assert_close(
        tensor_norms([torch.ones(2), tiny, torch.zeros(3), torch.ones(9)]).tolist(), expected, rtol=1e-6, atol=0
    )


def test_half_precision_gradients_whose_squares_leave_half_precision_have_a_finite_norm():
    """Trap 6: norms of half precision overflow."""
    assert tensor_norms([torch.full((4,), 60000.0).half()]).tolist() == [2 * torch.tensor(60000.0).half().item()]


def test_the_rows_of_an_uncoalesced_sparse_gradient_are_added_before_they_are_squared():
    twice = torch.sparse_coo_tensor([[1, 1]], [[3.0], [-3.0 + 5.0]], (4, 1), check_invariants=True)
    assert tensor_norms([twice]).tolist() == [5.0]


def test_scaling_a_sparse_gradient_equals_scaling_its_dense_copy():
    sparse = torch.sparse_coo_tensor([[1, 1, 3]], [[3.0], [2.0], [1.0]], (4, 1), check_invariants=True)
    expected = sparse.to_dense() * 0.25
    scale_([sparse], torch.tensor(0.25, dtype=torch.float64))
    assert_close(sparse.to_dense(), expected)


def test_measuring_no_tensor_is_refused():
    with pytest.raises(ValueError, match="no tensor"):
        tensor_norms([])


def test_only_the_optimizers_own_parameters_with_a_gradient_are_measured():
    mine, without, others = (nn.Parameter(torch.ones(2)) for _ in range(3))
    mine.grad, others.grad = torch.tensor([3.0, 4.0]), torch.tensor([1e6, 1e6])
    step = StepGradients(torch.optim.SGD([{"params": [mine]}, {"params": [without]}], lr=1.0))
    assert step.groups == [[mine], []]
    assert step.total.item() == 5.0


def test_readers_share_a_step_and_begin_a_new_one_when_one_asks_again():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer = torch.optim.SGD([weight], lr=1.0)
    first, second = GradientNormMonitor(), GradientNormMonitor()
    step = shared_step(optimizer, first)
    assert shared_step(optimizer, second) is step
    following = shared_step(optimizer, second)
    assert following is not step
    assert shared_step(optimizer, first) is following


def test_a_measured_step_holds_no_gradient_in_memory():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3.0, 4.0])
    step = StepGradients(torch.optim.SGD([weight], lr=1.0))
    assert step.total.item() == 5.0
    weight.grad = None
    assert step.gradients == []
    assert math.isclose(step.total.item(), 5.0)
