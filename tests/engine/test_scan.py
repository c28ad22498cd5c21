import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import gradients_of, weighted_sum
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from rnn_blocks.engine import linear_scan, run_loop, run_scan, scan
from rnn_blocks.engine.scan import doubling_scan

EXACT = {"rtol": 1e-10, "atol": 1e-10, "check_stride": False}
with_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: it is for Linux alone"
)

LENGTHS_OF_TIME = st.integers(1, 9) | st.integers(60, 100)  # the longer ones run as stretches abreast
DECAYS = {
    "full": lambda t, b, f: (t, b, f),
    "one for all steps": lambda t, b, f: (b, f),
    "one a feature": lambda t, b, f: (f,),
    "one a feature, in three dimensions": lambda t, b, f: (1, 1, f),
    "one a step": lambda t, b, f: (t, 1, 1),
    "one for all": lambda t, b, f: (),
}
WAYS = {"in order": linear_scan, "doubling": linear_scan, "doubling under autograd": doubling_scan}


def loop(decay, drive, state):
    states = []
    for a, b in zip(decay.expand(drive.shape).unbind(0), drive.unbind(0), strict=True):
        state = a * state + b
        states.append(state)
    return torch.stack(states)


def numbers(*shape, dtype=torch.float64, scale=1.0):
    return (torch.randn(shape, dtype=dtype) * scale).requires_grad_()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@settings(max_examples=15)
@given(LENGTHS_OF_TIME, st.integers(1, 3), st.integers(1, 3), st.sampled_from(list(DECAYS)), st.integers(0, 10**6))
def test_a_scan_is_the_loop_in_values_and_gradients(way, dtype, time, batch, features, shape, seed):
    torch.manual_seed(seed)
    leaves = [
        numbers(*DECAYS[shape](time, batch, features), dtype=dtype, scale=0.7),
        numbers(batch, time, features, dtype=dtype).detach().transpose(0, 1).requires_grad_(),
        numbers(batch, features, dtype=dtype),
    ]
    with pytest.MonkeyPatch.context() as patch:
        if way == "doubling":  # as on a device without a kernel
            patch.setattr(scan, "walk_in_order", scan.walk_by_doubling)
        found = WAYS[way](*leaves)
        found_gradients = gradients_of(weighted_sum(found, found[-1]), leaves)
    expected = loop(*leaves)
    assert_close(found, expected, **EXACT)
    assert_close(found_gradients, gradients_of(weighted_sum(expected, expected[-1]), leaves), **EXACT)


@settings(max_examples=25)
@given(LENGTHS_OF_TIME, st.integers(1, 3), st.booleans(), st.data())
def test_lengths_and_resets_are_those_of_the_loop(time, batch, constant, data):
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    lengths = data.draw(st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    lengths = None if lengths is None else torch.tensor(lengths)
    resets = data.draw(st.sampled_from([None, torch.rand(time, batch) < 0.3]))
    decay = numbers(*((2,) if constant else (time, batch, 2)), scale=0.7)
    drive, state, fresh = numbers(time, batch, 2), numbers(batch, 2), numbers(batch, 2)
    options = {"lengths": lengths, "resets": resets, "fresh": fresh}
    leaves = [decay, drive, state, fresh]

    def step(coefficients, h):
        a, b = coefficients
        h = a * h + b
        return h, h

    expected, expected_after = run_loop(step, (decay.expand(drive.shape), drive), state, **options)
    states, after = run_scan(decay, drive, state, **options)
    if lengths is not None:
        states = torch.where((torch.arange(time)[:, None] < lengths)[..., None], states, 0.0)
    assert_close([states, after], [expected, expected_after], **EXACT)
    found, gradients = (
        gradients_of(weighted_sum(*pair), leaves) for pair in ((states, after), (expected, expected_after))
    )
    assert_close(found, gradients, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("shape", [(9, 2, 1), (1,)], ids=["full", "one a feature"])
@pytest.mark.parametrize("fewest", [2, 8], ids=["abreast", "in order"])
def test_a_scan_has_derivatives_of_first_and_second_order(dtype, shape, fewest, monkeypatch):
    monkeypatch.setattr(scan, "FEWEST_STRETCHES", fewest)
    leaves = [numbers(*shape, dtype=dtype, scale=0.7), numbers(9, 2, 1, dtype=dtype), numbers(2, 1, dtype=dtype)]
    assert gradcheck(linear_scan, leaves)
    assert gradgradcheck(linear_scan, leaves)


def test_features_may_have_any_number_of_dimensions():
    decay, drive, state = numbers(70, 2, 1, 3), numbers(70, 2, 4, 3), numbers(2, 4, 3)
    assert_close(linear_scan(decay, drive, state), loop(decay, drive, state), **EXACT)
    assert_close(linear_scan(decay[:, :, 0, 0, None, None], drive, state)[:1], loop(decay[..., :1], drive, state)[:1])
    assert linear_scan(decay[0, 0, 0], drive[..., 0, 0, None].expand(-1, -1, 3), state[:, 0]).shape == (70, 2, 3)
    assert linear_scan(numbers(1), numbers(6, 2), numbers(2)).shape == (6, 2)


def test_dtypes_are_promoted():
    decay, drive = torch.rand(3), torch.randn(5, 2, 3, dtype=torch.bfloat16)
    assert linear_scan(decay, drive, drive[0]).dtype == torch.float32
    assert linear_scan(decay.to(torch.complex64), drive, drive[0]).dtype == torch.complex64


def test_decays_whose_product_overflows_leave_finite_states_finite():
    decay = torch.full((100, 1, 1), 1e200, dtype=torch.float64)
    drive = torch.zeros(100, 1, 1, dtype=torch.float64)
    drive[-1] = 1.0
    assert linear_scan(decay, drive, drive[0]).flatten().tolist() == [0.0] * 99 + [1.0]


def test_small_steps_take_far_fewer_calls_than_there_are_steps():
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **kwargs or {})

    counts = {}
    for time in (1024, 4096):
        leaves = numbers(time, 1, 2), numbers(time, 1, 2), numbers(1, 2)
        with Count() as count:
            torch.autograd.grad(linear_scan(*leaves).sum(), leaves)
        counts[time] = count.calls
    assert counts[1024] < 400
    assert counts[4096] < 2.2 * counts[1024]


def test_what_is_handed_out_may_be_changed():
    decay, drive, state = numbers(5, 1, 2), numbers(5, 1, 2), numbers(1, 2)
    _, after = run_scan(decay, drive, state)
    expected = torch.autograd.grad(after.sum(), drive)[0]
    _, after = run_scan(decay, drive, state)
    total = after.sum()
    after.detach().zero_()
    assert_close(torch.autograd.grad(total, drive)[0], expected)


def test_no_step_leaves_the_state_as_it_is():
    states, after = run_scan(torch.ones(2), torch.ones(0, 1, 2), torch.full((1, 2), 3.0))
    assert states.shape == (0, 1, 2)
    assert after.tolist() == [[3.0, 3.0]]


def test_a_scan_says_which_shapes_do_not_fit():
    with pytest.raises(ValueError, match=r"a state \(batch, …\), got shapes \(5, 2, 3\) and \(3,\)"):
        linear_scan(torch.ones(3), torch.ones(5, 2, 3), torch.ones(3))
    for shape in ((5, 2, 4), (4, 2, 3), (5, 5, 2, 3)):
        with pytest.raises(ValueError, match=r"decay must broadcast to drive's shape \(5, 2, 3\), got \("):
            linear_scan(torch.ones(shape), torch.ones(5, 2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="give `fresh`"):
        run_scan(torch.ones(1), torch.ones(1, 1, 1), torch.ones(1, 1), resets=torch.ones(1, 1, dtype=torch.bool))


@with_triton
def test_the_kernel_computes_what_the_walk_on_cpu_does():
    script = Path(__file__).with_name("interpret_scan.py")
    run = subprocess.run(
        [sys.executable, script], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@with_triton
@pytest.mark.skipif(sys.platform != "linux", reason="triton's compiler is for Linux alone")
@pytest.mark.parametrize(("kind", "numbers_are_complex"), [("fp32", False), ("fp32", True), ("bf16", False)])
def test_the_kernel_compiles_for_cuda_cards(kind, numbers_are_complex, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rnn_blocks.engine.scan_triton import _walk

    constants = {"COMPLEX": numbers_are_complex, "SUM": triton.language.float32, "BLOCK": 64}
    signature = dict.fromkeys(_walk.arg_names, "i32") | dict.fromkeys(("decay", "drive", "state", "states"), f"*{kind}")
    source = ASTSource(_walk, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]


def test_a_scan_on_a_device_is_the_scan_on_cpu(device):
    for dtype, shape in ((torch.float64, (50, 3, 33)), (torch.float64, (33,)), (torch.complex128, (33,))):
        leaves = [numbers(*shape, dtype=dtype, scale=0.7), numbers(50, 3, 33, dtype=dtype), numbers(3, 33, dtype=dtype)]
        expected = loop(*leaves)
        gradients = gradients_of(weighted_sum(expected, expected[-1]), leaves)
        there = [leaf.detach().to(device).requires_grad_() for leaf in leaves]
        found = linear_scan(*there)
        assert_close(found.cpu(), expected, **EXACT)
        found_gradients = gradients_of(weighted_sum(found, found[-1]), there)
        assert_close([g.cpu() for g in found_gradients], gradients, **EXACT)
