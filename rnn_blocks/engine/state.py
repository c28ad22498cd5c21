"""The state of a recurrence: a tensor, or a tuple of states, with the batch as the first dimension of each tensor."""

from collections.abc import Callable, Iterable
from typing import TypeAlias, Union

from torch import Tensor

State: TypeAlias = Union[Tensor, tuple["State", ...]]  # noqa: UP007 (a string cannot be joined by |)


def map_state(function: Callable[..., Tensor], state: State, *others: State) -> State:
    """Apply ``function`` to each tensor of ``state`` (and its counterparts in ``others``), keeping the nest.

    Raises:
        ValueError: where the nests are not of one shape.

    >>> import torch
    >>> map_state(torch.add, (torch.ones(1), (torch.ones(1),)), (torch.ones(1), (torch.zeros(1),)))
    (tensor([2.]), (tensor([1.]),))
    """
    if isinstance(state, Tensor):
        if not all(isinstance(other, Tensor) for other in others):
            raise ValueError(f"the states are not of one shape: a tensor against {[describe_state(o) for o in others]}")
        return function(state, *others)
    _check_nest(state)
    if any(isinstance(other, Tensor) or len(other) != len(state) for other in others):
        raise ValueError(
            f"the states are not of one shape: {describe_state(state)} against {[describe_state(o) for o in others]}"
        )
    parts = [map_state(function, *parts) for parts in zip(state, *others, strict=True)]
    return _nest_like(state, parts)


def _check_nest(state: object) -> None:
    if not isinstance(state, tuple | list):
        raise TypeError(f"a state is a tensor or a tuple of states, got {type(state).__name__}")


def _nest_like(state: tuple[State, ...], parts: list[State]) -> tuple[State, ...]:
    """With names, where ``state`` has them."""
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def state_tensors(state: State) -> list[Tensor]:
    """All tensors of ``state``, in order.

    >>> import torch
    >>> len(state_tensors((torch.ones(1), (torch.ones(1), torch.ones(1)))))
    3
    """
    if isinstance(state, Tensor):
        return [state]
    _check_nest(state)
    return [tensor for part in state for tensor in state_tensors(part)]


def detach_state(state: State) -> State:
    """``state`` cut from the graph that made it: what truncated BPTT carries to the next chunk.

    >>> import torch
    >>> detach_state((torch.ones(1, requires_grad=True) * 2,))[0].requires_grad
    False
    """
    return map_state(lambda tensor: tensor.detach(), state)


def hidden_of(state: State) -> Tensor:
    """The first tensor of ``state``: by convention ``h``, what recurrent connections read.

    >>> import torch
    >>> hidden_of(((torch.ones(1), torch.zeros(2)), torch.zeros(3)))
    tensor([1.])
    """
    while not isinstance(state, Tensor):
        state = state[0]
    return state


def with_hidden(state: State, hidden: Tensor) -> State:
    """``state`` with another first tensor.

    >>> import torch
    >>> with_hidden((torch.ones(1), torch.zeros(1)), torch.full((1,), 7.0))
    (tensor([7.]), tensor([0.]))
    """
    return hidden if isinstance(state, Tensor) else _nest_like(state, [with_hidden(state[0], hidden), *state[1:]])


def like_state(state: State, tensors: Iterable[Tensor]) -> State:
    """``tensors``, in the order of :func:`state_tensors`, in the nest of ``state``.

    >>> import torch
    >>> like_state((torch.ones(1), (torch.ones(1),)), [torch.zeros(1), torch.zeros(2)])
    (tensor([0.]), (tensor([0., 0.]),))
    """
    remaining = iter(tensors)
    return map_state(lambda _: next(remaining), state)


def describe_state(state: State) -> str:
    """The shapes of ``state``, for messages.

    >>> import torch
    >>> describe_state((torch.ones(2, 3), torch.ones(2, 4)))
    '((2, 3), (2, 4))'
    """
    if isinstance(state, Tensor):
        return str(tuple(state.shape))
    return f"({', '.join(describe_state(part) for part in state)})"
