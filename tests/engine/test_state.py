from typing import NamedTuple

import pytest
import torch

from rnn_blocks import Cell, Recurrent
from rnn_blocks.engine import describe_state, detach_state, map_state, state_tensors

NEST = (torch.ones(2, 3), (torch.zeros(2, 1), (torch.full((2, 2), 4.0),)))


def test_map_state_keeps_the_nest_and_reaches_every_tensor():
    doubled = map_state(lambda a, b: a + b, NEST, NEST)
    assert describe_state(doubled) == "((2, 3), ((2, 1), ((2, 2))))" == describe_state(NEST)
    for double, single in zip(state_tensors(doubled), state_tensors(NEST), strict=True):
        torch.testing.assert_close(double, 2 * single)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.ones(1), (torch.ones(1),)),
        ((torch.ones(1),), torch.ones(1)),
        (NEST, NEST[:1]),
        (NEST, (NEST[0], NEST[0])),
    ],
)
def test_states_of_different_nests_are_refused(first, second):
    with pytest.raises(ValueError, match="the states are not of one shape"):
        map_state(torch.add, first, second)


def test_state_tensors_come_in_order():
    assert [tuple(tensor.shape) for tensor in state_tensors(NEST)] == [(2, 3), (2, 1), (2, 2)]


def test_a_detached_state_has_the_same_numbers_and_no_graph():
    weight = torch.ones(2, requires_grad=True)
    state = (weight * 3, (weight * 5,))
    detached = detach_state(state)
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in state_tensors(detached))
    assert [tensor.tolist() for tensor in state_tensors(detached)] == [[3.0, 3.0], [5.0, 5.0]]


class Pair(NamedTuple):
    h: torch.Tensor
    c: torch.Tensor


@pytest.mark.parametrize("engine", ["fused", "loop"])
def test_a_state_with_names_keeps_them(engine):
    class Named(Cell):
        def initial_state(self, batch_size, like):
            return Pair(like.new_zeros(batch_size, 3), like.new_ones(batch_size, 3))

        def step(self, projected, state):
            after = Pair(torch.tanh(projected + state.h * state.c), state.c * 0.5)
            return after.h, after

    inputs = torch.randn(2, 5, 3)
    layer = Recurrent(Named(3, 3), engine=engine)
    outputs, state = layer(inputs, lengths=torch.tensor([5, 2]))
    assert isinstance(state, Pair)
    torch.testing.assert_close(state.c, torch.tensor([[0.5**5], [0.5**2]]).expand(2, 3))
    torch.testing.assert_close(outputs[:, -1], torch.where(torch.tensor([[True], [False]]), state.h, 0.0))


@pytest.mark.parametrize("function", [state_tensors, detach_state])
def test_a_state_that_is_no_nest_of_tensors_is_refused(function):
    with pytest.raises(TypeError, match="a state is a tensor or a tuple of states, got dict"):
        function({"h": torch.ones(1)})
