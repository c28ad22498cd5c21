"""What an optimizer holds; of optimizers around optimizers, which one makes the update, and which one is stepped."""

from collections.abc import Iterator

from torch import nn
from torch.optim import Optimizer

HANDLES = ("LightningOptimizer", "_FabricOptimizer", "AcceleratedOptimizer")
"""Classes of Lightning, Fabric and Accelerate, which step, and unscale the gradients of, what they are made for."""


def parameters_of(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    """All that it updates, group by group.

    >>> import torch
    >>> weight, bias = torch.nn.Linear(2, 3).parameters()
    >>> optimizer = torch.optim.SGD([{"params": [weight]}, {"params": [bias]}], lr=0.1)
    >>> [len(parameter) for parameter in parameters_of(optimizer)]
    [3, 3]
    """
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def groups_of(optimizer: Optimizer) -> list[list[nn.Parameter]]:
    """The parameters of each group, each once: torch takes one that is there twice, with a warning."""
    return [_once(group["params"]) for group in optimizer.param_groups]


def innermost(optimizer: Optimizer) -> Optimizer:
    """What makes the update of the weights: the optimizer that a wrapper, such as Lookahead, has in it.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    >>> innermost(optimizer) is optimizer
    True
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer) and inner is not optimizer:
        if inner.param_groups is not optimizer.param_groups and _ids(inner) != _ids(optimizer):
            break  # a part of one that has others beside it
        optimizer = inner
    return optimizer


def behind_handle(optimizer: Optimizer) -> Optimizer:
    """What is stepped: a wrapper is, as a whole, but for the handles of Lightning, Fabric and Accelerate."""
    while any(owner.__name__ in HANDLES for owner in type(optimizer).__mro__):
        inner: object = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer) or inner is optimizer:
            break
        optimizer = inner
    return optimizer


def _once(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    if len(set(map(id, parameters))) == len(parameters):
        return parameters
    return list({id(parameter): parameter for parameter in parameters}.values())


def _ids(optimizer: Optimizer) -> list[int]:
    return [id(parameter) for parameter in parameters_of(optimizer)]
