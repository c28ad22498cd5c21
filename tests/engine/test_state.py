import pytest
import torch

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
