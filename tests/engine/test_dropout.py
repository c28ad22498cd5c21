"""Dropout with cheap noise against what dropout is."""

import pytest
import torch
from torch.nn.functional import dropout as torchs

from rnn_blocks.engine import dropout, dropout_mask

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_part_asked_for_is_zeroed_and_the_mean_stays(p, dtype, device):
    torch.manual_seed(0)
    found = dropout(torch.ones(400, 999, dtype=dtype, device=device), p)
    assert found.dtype == dtype
    assert found.unique().numel() == 2
    deviation = (p * (1 - p) / found.numel()) ** 0.5  # of the part, by chance
    assert abs((found == 0).double().mean().item() - p) < 5 * deviation
    torch.testing.assert_close(found.max().item(), 1 / (1 - p), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=0)


def test_neighbours_and_bits_do_not_depend_on_each_other():
    torch.manual_seed(0)
    zeroed = (dropout_mask([1000, 1000], 0.3, torch.zeros(1)) == 0).double()
    for shift in (1, 2, 3, 4, 8):
        both = (zeroed.flatten()[shift:] * zeroed.flatten()[:-shift]).mean().item()
        assert both == pytest.approx(0.09, abs=0.002)


def test_gradients_pass_where_numbers_do():
    inputs = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    outputs = dropout(inputs, 0.4)
    outputs.sum().backward()
    torch.testing.assert_close(inputs.grad * inputs.detach(), outputs.detach())


def test_the_noise_is_that_of_the_seed():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout_mask([3, 5], 0.5, torch.zeros(1)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("shape", [[], [0], [1], [3, 0, 2], [5]])
def test_any_shape_has_its_mask(shape):
    assert dropout_mask(shape, 0.5, torch.zeros(1)).shape == torch.Size(shape)


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_parts_near_the_ends_stay_finite(p):
    assert dropout(torch.ones(1000), p).isfinite().all()


def test_noise_lies_with_the_inputs_whatever_torchs_default_device_is():
    inputs = torch.ones(8)
    with torch.device("meta"):
        assert dropout(inputs, 0.5).device.type == "cpu"


def test_in_evaluation_and_without_a_part_nothing_is_done():
    inputs = torch.randn(3)
    assert dropout(inputs, 0.5, training=False) is inputs
    assert dropout(inputs, 0.0) is inputs


def test_a_compiled_program_takes_torchs():
    torch.manual_seed(0)
    compiled = torch.compile(lambda x: dropout(x, 0.5), backend="eager", fullgraph=True)
    inputs = torch.ones(100)
    torch.manual_seed(3)
    found = compiled(inputs)
    torch.manual_seed(3)
    torch.testing.assert_close(found, torchs(inputs, 0.5))
