"""What is recorded of a function: the operators that torch's own tracer finds, and nothing that cannot be known."""

import operator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from zoo import CELLS

from rnn_blocks.engine import like_state, state_tensors
from rnn_blocks.engine.graph import changes_tensors
from rnn_blocks.engine.recorder import NotRecordableError, recorded


def operators(graph: torch.fx.Graph) -> list[str]:
    """Those that compute something."""
    skipped = (operator.getitem, torch.ops.aten.detach.default)
    return [str(node.target) for node in graph.nodes if node.op == "call_function" and node.target not in skipped]


def step_and_gradients(cell: nn.Module, state: object, names: list[str]):
    """A pure function of an input, a state's tensors and weights."""

    def joint(inputs: Tensor, *others: Tensor) -> list[Tensor | None]:
        leaves = [one.detach().requires_grad_(one.is_floating_point()) for one in (inputs, *others)]
        with torch.enable_grad():
            count = len(leaves) - len(names)
            weights = dict(zip(names, leaves[count:], strict=True))
            output, after = functional_call(cell, weights, (leaves[0], like_state(state, leaves[1:count])))
            results = [output, *state_tensors(after)]
            total = sum((one.abs().square().sum() for one in results), torch.zeros(()))
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            return [*results, *torch.autograd.grad(total, wanted, allow_unused=True)]

    return joint


@pytest.mark.parametrize("name", CELLS)
def test_the_operators_of_any_step_and_its_derivative_are_those_that_torchs_tracer_finds(name):
    cell = CELLS[name](3, 4).eval()
    inputs, state = torch.randn(2, 3), cell.initial_state(2, torch.randn(2, 3))
    names = [name for name, _ in cell.named_parameters()]
    flat = [inputs, *state_tensors(state), *(one.detach() for one in cell.parameters())]
    joint = step_and_gradients(cell, state, names)
    recording = recorded(joint, flat)
    assert operators(recording.graph) == operators(make_fx(joint)(*flat).graph)
    others = [torch.randn_like(one) if one.is_floating_point() else one for one in flat]
    expected = joint(*others)
    for found, one in zip(recording.run(*others), expected, strict=True):
        assert (found is None) == (one is None)
        assert found is None or torch.equal(found, one)


def test_a_tensor_that_is_given_twice_is_two_inputs():
    one = torch.randn(3)
    recording = recorded(lambda x, y: [x - y], [one, one])
    assert torch.equal(recording.run(torch.full((3,), 5.0), torch.full((3,), 3.0))[0], torch.full((3,), 2.0))


def test_a_tensor_from_elsewhere_is_a_constant():
    other = torch.randn(3)
    recording = recorded(lambda x: [x * other, other], [torch.randn(3)])
    assert [id(one) for one in recording.constants.values()] == [id(other)]
    product, same = recording.run(torch.full((3,), 2.0))
    assert_close(product, 2 * other)
    assert same is other


def known(x: Tensor) -> list[Tensor]:
    return [x * torch.tensor(3.0).item() * torch.arange(4).max().item()]


@pytest.mark.parametrize("grad", [True, False])
def test_numbers_that_are_known_may_be_looked_at_and_others_not(grad):
    with torch.set_grad_enabled(grad):
        assert_close(recorded(known, [torch.ones(2)]).run(torch.ones(2)), [torch.full((2,), 9.0)])
        for unknown in (
            lambda x: [x * x.sum().item()],
            lambda x: [x * torch.rand(()).item()],
            lambda x: [x if x[0] else -x],
        ):
            with pytest.raises(NotRecordableError, match=r"it looks at numbers \(aten\._local_scalar_dense"):
                recorded(unknown, [torch.ones(2)])


def test_what_is_changed_in_place_is_recorded_so_and_can_be_made_without():
    def noisy(x: Tensor) -> list[Tensor]:
        made = x.clone()
        made[:, 0] += 1
        made.mul_(torch.empty_like(x).fill_(2.0))
        return [made]

    inputs = torch.randn(2, 3)
    recording = recorded(noisy, [inputs])
    assert any(changes_tensors(node) for node in recording.graph.nodes)
    pure = recorded(functionalize(recording.run), [inputs])
    assert not any(changes_tensors(node) for node in pure.graph.nodes)
    others = torch.randn(2, 3)
    assert_close(pure.run(others), noisy(others))


def test_inference_mode_records_what_else_is_recorded():
    layer = nn.Linear(3, 4)

    def function(x: Tensor) -> list[Tensor]:
        return [nn.functional.cosine_similarity(layer(x), layer(x).tanh())]

    with torch.no_grad():
        expected = operators(recorded(function, [torch.randn(2, 3)]).graph)
    with torch.inference_mode():
        assert operators(recorded(function, [torch.randn(2, 3)]).graph) == expected


class Scaled(Tensor):
    """A tensor that is another one times a number."""

    @staticmethod
    def __new__(cls, inner: Tensor, scale: float) -> "Scaled":
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor, scale: float) -> None:
        self.inner, self.scale = inner, scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args = tuple(arg.inner * arg.scale if isinstance(arg, Scaled) else arg for arg in args)
        return func(*args, **(kwargs or {}))


def test_a_subclass_of_tensors_says_itself_of_what_operators_it_is_made():
    weight = Scaled(torch.randn(3, 4), 2.0)
    recording = recorded(lambda x: [x @ weight], [torch.randn(2, 3)])
    assert operators(recording.graph) == ["aten.mul.Tensor", "aten.mm.default"]
    others = torch.randn(2, 3)
    assert_close(recording.run(others), [others @ (weight.inner * 2)])


def test_a_sparse_tensor_which_has_no_storage_is_a_constant():
    sparse = torch.eye(3).to_sparse()
    recording = recorded(lambda x: [torch.sparse.mm(sparse, x)], [torch.randn(3, 2)])
    assert [id(one) for one in recording.constants.values()] == [id(sparse)]
    others = torch.randn(3, 2)
    assert_close(recording.run(others), [others])


class Named(nn.Parameter):
    """A subclass that computes as any tensor does."""


def test_a_subclass_that_computes_as_any_tensor_is_one():
    weight = Named(torch.randn(3, 4))
    recording = recorded(lambda x: [x @ weight], [torch.randn(2, 3)])
    assert operators(recording.graph) == ["aten.mm.default"]
    assert [id(one) for one in recording.constants.values()] == [id(weight)]


def test_nothing_of_autocasts_cache_is_left_in_a_record():
    layer, inputs = nn.Linear(3, 3), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        layer(inputs)  # its weight is cast, and would be found so
        recording = recorded(lambda x: [layer(x)], [inputs])
        assert torch.is_autocast_cache_enabled()
    assert {id(one) for one in recording.constants.values()} == {id(layer.weight), id(layer.bias)}


def test_no_tensor_outlives_its_record():
    recording = recorded(lambda x: [x.tanh()], [torch.randn(3)])
    assert all("val" in node.meta for node in recording.graph.nodes if node.op != "output")
    recording.forget_values()
    assert not any(node.meta for node in recording.graph.nodes)
