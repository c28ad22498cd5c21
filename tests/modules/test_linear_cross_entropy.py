"""The fused output layer against ``cross_entropy(linear(...))``, values and every gradient."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.nn.utils import prune
from torch.testing import assert_close

from rnn_blocks import linear_cross_entropy, smoothing_term
from rnn_blocks.modules import linear_cross_entropy as public
from rnn_blocks.modules.linear_cross_entropy import LARGEST_LOSS, _TiledCrossEntropy
from rnn_blocks.modules.output_layer import word_loss, word_losses

SETTINGS = linear_cross_entropy.__globals__  # the module's own name is shadowed by the function's


def problem(rows: int, features: int, vocabulary: int, *, with_bias: bool = True, scale: float = 1.0):
    hidden = torch.randn(rows, features) * scale
    weight = torch.randn(vocabulary, features)
    bias = torch.randn(vocabulary) if with_bias else None
    return hidden, weight, bias, torch.randint(vocabulary, (rows,))


def differentiated(function, hidden, weight, bias, targets, factor=1.0, **options):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (hidden, weight, bias) if tensor is not None]
    loss = function(*leaves[:2], leaves[2] if bias is not None else None, targets, **options)
    (loss * factor).backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


def plain(hidden, weight, bias, targets, **options) -> Tensor:
    return cross_entropy(linear(hidden, weight, bias), targets, **options)


def assert_as_in_float64(hidden, weight, bias, targets, factor=1.0, **options) -> None:
    loss, gradients = differentiated(linear_cross_entropy, hidden, weight, bias, targets, factor, **options)
    wide = [None if tensor is None else tensor.double() for tensor in (hidden, weight, bias)]
    expected, exact = differentiated(plain, *wide, targets, factor, **options)
    assert_close(loss.double(), expected, rtol=2e-6, atol=2e-6)
    for gradient, reference in zip(gradients, exact, strict=True):
        error = (gradient.double() - reference).norm()
        assert error <= 3e-5 * max(float(reference.norm()), 1e-6), (float(error), float(reference.norm()))


@pytest.fixture
def count_tiled(monkeypatch):
    """How many times the tiled way was taken."""
    calls = []
    original = _TiledCrossEntropy.apply
    monkeypatch.setattr(_TiledCrossEntropy, "apply", lambda *args: calls.append(len(args[3])) or original(*args))
    return calls


@given(
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(2, 20),
    st.booleans(),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1.0, -0.3, 0.0, 1e4]),
    st.data(),
)
def test_loss_and_gradients_at_any_tiling(rows, features, vocabulary, with_bias, tile, chunk, factor, data):
    hidden, weight, bias, targets = problem(rows, features, vocabulary, with_bias=with_bias)
    ignored = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    ignored[data.draw(st.integers(0, rows - 1))] = False
    ignore_index = data.draw(st.sampled_from([-100, -1, 0]))
    targets = torch.where(torch.tensor(ignored), ignore_index, targets.clamp(min=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "TILE", tile)
        patch.setitem(SETTINGS, "ROWS", chunk)
        assert_as_in_float64(hidden, weight, bias, targets, factor, ignore_index=ignore_index)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_usual_sizes_take_the_tiled_way_in_chunks_of_rows(with_bias, count_tiled):
    assert_as_in_float64(*problem(1500, 16, 3001, with_bias=with_bias))
    assert count_tiled == [750, 750]


@pytest.mark.parametrize("nats", [0.01, 20.0, 59.0, 61.0, 79.0, 84.0, 86.0, 87.5, 88.5, 95.0, 1e4])
@pytest.mark.parametrize("rows", [1, 64])
def test_a_row_of_any_loss_gets_right_gradients(nats, rows):
    """One wrong and confident row among good ones: its exponential must not spoil them."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 20.0], [0.0, -20.0]])
    hidden = torch.tensor([[3.0, 0.01]]).repeat(rows, 1)
    hidden[0, 0] = nats
    targets = torch.zeros(rows, dtype=torch.int64)
    targets[0] = 2
    assert_as_in_float64(hidden, weight, None, targets)
    assert_as_in_float64(hidden, weight, torch.tensor([0.0, 0.1, 0.2]), targets, 0.5)


def test_losses_past_the_limit_are_reached_by_the_test_above():
    assert 59.0 < LARGEST_LOSS < 61.0


def test_chunks_that_overflow_and_chunks_that_do_not_add_up(monkeypatch):
    monkeypatch.setitem(SETTINGS, "ROWS", 3)
    hidden, weight, bias, targets = problem(8, 4, 9)
    hidden[4] *= 200
    assert_as_in_float64(hidden, weight, bias, targets, 2.0)


def test_numbers_that_are_not_finite_give_a_loss_that_is_not():
    hidden, weight, bias, targets = problem(4, 3, 5)
    hidden[1, 1] = torch.nan
    assert linear_cross_entropy(hidden, weight, bias, targets).isnan()


def test_where_no_row_counts_the_loss_is_nan_as_torchs_is():
    hidden, weight, bias, targets = problem(4, 3, 5)
    targets.fill_(-100)
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, bias, targets)
    assert loss.isnan()
    assert plain(hidden, weight, bias, targets).isnan()
    assert loss.requires_grad


def test_where_no_row_counts_weights_alone_have_gradients_too():
    hidden, weight, bias, targets = problem(4, 3, 5)
    targets.fill_(-100)
    linear_cross_entropy(hidden, weight.requires_grad_(), bias.requires_grad_(), targets).backward()
    assert not weight.grad.any()
    assert not bias.grad.any()
    layer = torch.nn.AdaptiveLogSoftmaxWithLoss(3, 9, cutoffs=[4], div_value=1.0)
    loss = word_loss(layer, hidden.detach(), targets)
    assert loss.isnan()
    loss.backward()
    assert all(not weight.grad.any() for weight in layer.parameters())


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_part_gets_no_gradient_and_the_others_theirs(frozen):
    *parts, targets = problem(6, 4, 7)
    leaves = [part.clone().requires_grad_(k != frozen) for k, part in enumerate(parts)]
    linear_cross_entropy(*leaves, targets).backward()
    _, exact = differentiated(plain, *parts, targets)
    for k, leaf in enumerate(leaves):
        if k == frozen:
            assert leaf.grad is None
        else:
            assert_close(leaf.grad, exact[k], rtol=1e-4, atol=1e-6)


def test_only_one_part_learns():
    *parts, targets = problem(6, 4, 7)
    _, exact = differentiated(plain, *parts, targets)
    for learns in range(3):
        leaves = [part.clone().requires_grad_(k == learns) for k, part in enumerate(parts)]
        linear_cross_entropy(*leaves, targets).backward()
        assert_close(leaves[learns].grad, exact[learns], rtol=1e-4, atol=1e-6)


def test_without_gradients_none_is_made(monkeypatch):
    *parts, targets = problem(6, 4, 7)
    leaves = [part.requires_grad_() for part in parts]
    expected = linear_cross_entropy(*leaves, targets)
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *_, **__: pytest.fail("a gradient was made"))
    monkeypatch.setattr(torch, "mm", lambda *_, **__: pytest.fail("a gradient was made"))
    with torch.no_grad():
        loss = linear_cross_entropy(*leaves, targets)
    assert not loss.requires_grad
    assert_close(loss, expected.detach())


def test_gradients_reach_through_what_made_the_hidden_states():
    hidden, weight, bias, targets = problem(6, 4, 7)
    encoder = torch.randn(4, 4, requires_grad=True)
    linear_cross_entropy(torch.tanh(hidden @ encoder), weight, bias, targets).backward()
    found, encoder.grad = encoder.grad, None
    plain(torch.tanh(hidden @ encoder), weight, bias, targets).backward()
    assert_close(found, encoder.grad, rtol=1e-4, atol=1e-6)


def test_tied_weights_gather_both_gradients():
    shared = torch.randn(7, 4, requires_grad=True)
    ids, targets = torch.randint(7, (6,)), torch.randint(7, (6,))
    found = torch.autograd.grad(linear_cross_entropy(shared[ids], shared, None, targets), shared)
    exact = torch.autograd.grad(plain(shared[ids], shared, None, targets), shared)
    assert_close(found, exact, rtol=1e-4, atol=1e-6)


def test_what_comes_in_is_left_as_it_was():
    tensors = problem(6, 4, 7)
    copies = [tensor.clone() for tensor in tensors]
    differentiated(linear_cross_entropy, *tensors)
    assert all(map(torch.equal, tensors, copies))


def test_hidden_states_that_are_not_contiguous_are_read_right():
    hidden, weight, bias, targets = problem(6, 4, 7)
    assert_as_in_float64(hidden.t().contiguous().t(), weight.t().contiguous().t(), bias, targets)


def test_a_second_backward_raises():
    hidden, weight, bias, targets = problem(6, 4, 7)
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, bias, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="linear_cross_entropy were already used"):
        loss.backward()


def test_a_second_derivative_raises():
    hidden, weight, bias, targets = problem(6, 4, 7)
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, bias, targets)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss * 2, hidden, create_graph=True)


@pytest.mark.parametrize("bad", [7, -1, 10**6])
def test_a_target_outside_the_vocabulary_raises(bad):
    hidden, weight, bias, targets = problem(6, 4, 7)
    targets[3] = bad
    with pytest.raises(IndexError, match=f"target {bad} is out of bounds for a vocabulary of 7"):
        linear_cross_entropy(hidden, weight, bias, targets)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_take_the_plain_way(dtype, count_tiled):
    hidden, weight, bias, targets = problem(6, 4, 7)
    parts = [tensor.to(dtype) for tensor in (hidden, weight, bias)]
    found = differentiated(linear_cross_entropy, *parts, targets)
    expected = differentiated(plain, *parts, targets)
    assert_close(found, expected, rtol=0, atol=0)
    assert not count_tiled


def test_autocast_takes_the_plain_way(count_tiled, monkeypatch):
    monkeypatch.setitem(SETTINGS, "multiplies_slowly", lambda *_: False)
    hidden, weight, bias, targets = problem(6, 4, 7)
    with torch.autocast("cpu", torch.bfloat16):
        found = differentiated(linear_cross_entropy, hidden, weight, bias, targets)
        expected = differentiated(plain, hidden, weight, bias, targets)
    assert_close(found, expected, rtol=0, atol=0)
    assert not count_tiled


@pytest.mark.parametrize("with_bias", [True, False])
def test_whatever_torchs_default_dtype_is(with_bias, count_tiled):
    found = problem(6, 5, 30, with_bias=with_bias)
    try:
        torch.set_default_dtype(torch.float64)
        assert_as_in_float64(*found)
        assert linear_cross_entropy(*found).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert count_tiled == [6, 6]


def test_whatever_torchs_default_device_is():
    found = problem(6, 5, 30)
    with torch.device("meta"):
        loss, gradients = differentiated(linear_cross_entropy, *found)
    assert {tensor.device.type for tensor in (loss, *gradients)} == {"cpu"}


@pytest.mark.parametrize("with_bias", [True, False])
def test_where_bfloat16_is_slow_autocast_multiplies_its_numbers_in_float32(with_bias, count_tiled, monkeypatch):
    monkeypatch.setitem(SETTINGS, "multiplies_slowly", lambda dtype, _: dtype == torch.bfloat16)
    hidden, weight, bias, targets = problem(6, 4, 7)
    rounded = [tensor.bfloat16().float() for tensor in (hidden, weight, bias)]
    if not with_bias:
        bias = rounded[2] = None
    expected = linear_cross_entropy(*rounded, targets)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, bias, targets)
        (gradient,) = torch.autograd.grad(found, weight)
    assert found.dtype == gradient.dtype == torch.float32
    assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert count_tiled


def test_on_every_device(device):
    hidden, weight, bias, targets = (tensor.to(device) for tensor in problem(20, 4, 30))
    found = differentiated(linear_cross_entropy, hidden, weight, bias, targets)
    expected = differentiated(plain, hidden, weight, bias, targets)
    assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_function_is_reached_by_its_public_name():
    assert public is linear_cross_entropy


@pytest.mark.parametrize("with_bias", [True, False])
def test_smoothed_labels_give_torchs_loss_and_gradients(with_bias):
    hidden, weight = torch.randn(70, 32, requires_grad=True), torch.randn(3000, 32, requires_grad=True)
    bias = torch.randn(3000, requires_grad=True) if with_bias else None
    targets = torch.randint(0, 3000, (70,))
    given = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    ours = linear_cross_entropy(hidden, weight, bias, targets)
    ours = ours + 0.1 * smoothing_term(hidden, weight, bias, targets)
    theirs = cross_entropy(linear(hidden, weight, bias), targets, label_smoothing=0.1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, given), torch.autograd.grad(theirs, given))


class Doubling(nn.Linear):
    """Linear in a way of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["hooked", "a way of its own", "another way put on it", "not linear", "pruned"])
def test_losses_of_an_output_layer_are_those_of_what_it_gives(which, dtype):
    hidden, _, _, targets = problem(5, 4, 9)
    hidden, targets[1], calls = hidden.to(dtype), -100, []
    output: nn.Module = (Doubling if which == "a way of its own" else nn.Linear)(4, 9, dtype=dtype)
    if which == "hooked":
        output.register_forward_hook(lambda module, args, logits: calls.append(1) or 3 * logits)
    if which == "another way put on it":
        output.forward = partial(lambda module, inputs: 2 * nn.Linear.forward(module, inputs), output)
    if which == "not linear":
        output = nn.Sequential(output, nn.Tanh())
    if which == "pruned":
        prune.l1_unstructured(output, "weight", amount=0.5)
    results = []
    for _ in range(2):  # the second time with the steps of a training behind it
        own = hidden.clone().requires_grad_()
        expected = cross_entropy(output(own), targets, label_smoothing=0.1)
        expected.backward()
        wanted = [own.grad, *(parameter.grad.clone() for parameter in output.parameters())]
        output.zero_grad()
        own = hidden.index_fill(0, torch.tensor(1), torch.nan).requires_grad_()
        loss, extra = word_losses(output, own, targets, smoothing=True)
        (loss + 0.1 * extra).backward()
        found = [own.grad, *(parameter.grad.clone() for parameter in output.parameters())]
        output.zero_grad()
        assert_close([loss + 0.1 * extra, *found], [expected, *wanted])
        results.append(word_loss(output, hidden, targets))
        assert loss.dtype == dtype
    assert len(calls) == (6 if which == "hooked" else 0)
    assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("loss", [linear_cross_entropy, smoothing_term])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch itself, in forward mode
def test_function_transforms_take_the_plain_way(loss):
    hidden, weight, bias, targets = problem(6, 4, 9)
    expected, gradients = differentiated(loss, hidden, weight, bias, targets)
    assert_close(list(torch.func.grad(loss, argnums=(0, 1, 2))(hidden, weight, bias, targets)), gradients)
    _, along = torch.func.jvp(lambda weight: loss(hidden, weight, bias, targets), (weight,), (torch.ones_like(weight),))
    assert_close(along, gradients[1].sum())
    each = torch.func.vmap(torch.func.grad(loss, argnums=1), in_dims=(0, None, None, 0))(
        hidden[:, None], weight, bias, targets[:, None]
    )
    assert_close(each.mean(0), gradients[1])
    assert_close(
        torch.func.vmap(loss, in_dims=(0, None, None, 0))(hidden[:, None], weight, bias, targets[:, None]).mean(),
        expected,
    )


def test_a_compiled_loss_is_one_graph():
    output = nn.Linear(4, 9)
    hidden, _, _, targets = problem(6, 4, 9)
    prune.l1_unstructured(output, "weight", amount=0.5)
    losses = partial(word_losses, output, smoothing=True)
    assert_close(torch.compile(losses, backend="eager", fullgraph=True)(hidden, targets), losses(hidden, targets))
