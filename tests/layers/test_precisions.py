"""Every cell in lower precisions against float64, with the errors that their arithmetic makes and no more.

Weights and inputs are numbers that bfloat16 has, so that nothing is lost before the first operation. Errors are norms,
relative to the norm of what is exact; where that is small beside the largest gradient, relative to a tenth of that.
"""

import copy

import oracles
import pytest
import torch
import zoo

from rnn_blocks import LinearCell, Recurrent
from rnn_blocks.engine import state_tensors

# of values and of gradients; some ten times what was seen at most in float32, twice in the others
TOLERANCES = {torch.float32: (2e-6, 1e-5), torch.float16: (3e-3, 2.5e-2), torch.bfloat16: (2e-2, 0.1)}
every_cell = pytest.mark.parametrize("name", zoo.rest_is_slow(zoo.CELLS, {*zoo.PLAIN, *zoo.SOME}))
half_precisions = [torch.bfloat16]
if torch.cuda.is_available():
    half_precisions.append(torch.float16)


def engines_of(cell):
    return ("loop", "fused", "scan") if isinstance(cell, LinearCell) else ("loop", "fused", "auto")


def sequences(name, device):
    """A cell in bfloat16, inputs, and options with an empty sequence and resets."""
    cell = zoo.CELLS[name](5, 6).to(device, torch.bfloat16).eval()
    inputs = torch.randn(4, 6, 5, device=device).bfloat16()
    resets = torch.rand(4, 6, device=device) < 0.2
    return cell, inputs, {"lengths": torch.tensor([6, 0, 2, 5], device=device), "resets": resets}


def outcome(cell, inputs, engine, options, autocast=None):
    """Outputs and states, and all gradients."""
    x = inputs.clone().requires_grad_()
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        outputs, after = Recurrent(cell, engine=engine)(x, **options)
    leaves = [x, *cell.parameters()]
    gradients = oracles.gradients_of(oracles.weighted_sum(outputs, after), leaves)
    assert [gradient.dtype for gradient in gradients] == [leaf.dtype for leaf in leaves]
    return [outputs.detach(), *(tensor.detach() for tensor in state_tensors(after))], gradients


def exact_outcome(cell, inputs, options):
    return outcome(copy.deepcopy(cell).double(), inputs.double(), "loop", options)


def widened(tensor):
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def assert_near(found, expected, tolerance):
    exact = [widened(tensor) for tensor in expected]
    least = 0.1 * max(tensor.norm() for tensor in exact)
    errors = [float((widened(a) - b).norm() / max(b.norm(), least)) for a, b in zip(found, exact, strict=True)]
    assert max(errors) <= tolerance, errors


@every_cell
def test_every_engine_is_near_float64(name, device):
    cell, inputs, options = sequences(name, device)
    values, gradients = exact_outcome(cell, inputs, options)
    for dtype in (torch.float32, *half_precisions):
        lower = copy.deepcopy(cell).to(dtype)
        of_values, of_gradients = TOLERANCES[dtype]
        for engine in engines_of(cell):
            with torch.backends.cudnn.flags(allow_tf32=False):
                found = outcome(lower, inputs.to(dtype), engine, options)
            assert found[0][0].dtype == dtype
            assert_near(found[0], values, of_values)
            assert_near(found[1], gradients, of_gradients)


@every_cell
def test_autocast_is_near_float64_with_gradients_in_float32(name, device):
    cell, inputs, options = sequences(name, device)
    values, gradients = exact_outcome(cell, inputs, options)
    single = copy.deepcopy(cell).float()
    for engine in engines_of(cell):
        found = outcome(single, inputs.float(), engine, options, autocast=torch.bfloat16)
        assert_near(found[0], values, 2e-2)
        assert_near(found[1], gradients, 0.15)
