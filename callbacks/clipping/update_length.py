"""How long the update is that a gradient makes, where it scales with the gradient."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import ASGD, SGD, Optimizer

from rnn_blocks.callbacks.measuring import numbers
from rnn_blocks.callbacks.measuring.norms import tensor_norms, total_norm
from rnn_blocks.callbacks.measuring.step import StepGradients


def effective_learning_rate(optimizer: Optimizer, step: StepGradients) -> float | Tensor | None:
    """Length of the update that a lasting gradient makes, over the gradient's norm.

    lr·(1−dampening)/(1−momentum) of each parameter group, infinite with a momentum of 1; where groups differ, the mean
    square of theirs weighted by their squared gradient norms, so that rate × norm is the length of the whole update.

    Returns:
        A number, or ``()`` where it depends on the gradients or is kept in a tensor; None for an optimizer whose update
        does not scale with the gradient.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = SGD([weight], lr=0.1, momentum=0.9)
    >>> round(effective_learning_rate(optimizer, StepGradients(optimizer)), 6)
    1.0
    """
    rates = group_learning_rates(optimizer)
    if not isinstance(rates, list):
        return rates
    groups = [(rate, len(group)) for rate, group in zip(rates, step.groups, strict=True) if group]
    norms = step.norms
    if any(isinstance(rate, Tensor) for rate, _ in groups):
        each = [rate if isinstance(rate, Tensor) else norms.new_tensor(rate) for rate, _ in groups]
        of_groups = torch.stack([rate.to(norms, non_blocking=True) for rate in each])
        places = torch.tensor([place for place, (_, number) in enumerate(groups) for _ in range(number)])
        of_parameters = of_groups[places.to(norms.device, non_blocking=True)]
    else:
        of_each = [rate for rate, number in groups for _ in range(number)]
        of_parameters = torch.tensor(of_each, dtype=norms.dtype).to(norms.device, non_blocking=True)
    return total_norm(of_parameters * norms) / step.total


def group_learning_rates(optimizer: Optimizer) -> float | list[float | Tensor] | None:
    """The same of each parameter group by itself: one number where all are equal; None as above.

    >>> first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    >>> group_learning_rates(SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.2}]))
    [0.1, 0.2]
    """
    if not isinstance(optimizer, SGD | ASGD):
        return None
    rates = [_group_rate(group) for group in optimizer.param_groups]
    first = rates[0]
    if isinstance(first, float) and all(isinstance(rate, float) and rate == first for rate in rates):
        return first
    return rates


def highest_momentum(optimizer: Optimizer, step: StepGradients) -> float:
    """SGD's momentum, the highest of the parameter groups that have a gradient; 0 with any other optimizer.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> weight.grad = torch.ones(2)
    >>> optimizer = SGD([weight], momentum=0.9)
    >>> highest_momentum(optimizer, StepGradients(optimizer))
    0.9
    """
    if not isinstance(optimizer, SGD):
        return 0.0
    groups = zip(optimizer.param_groups, step.groups, strict=True)
    return max((float(group["momentum"]) for group, moved in groups if moved), default=0.0)


@torch.no_grad()
def forget_velocity(optimizer: Optimizer, groups: Sequence[Sequence[Tensor]]) -> bool:
    """Let SGD's momentum begin afresh for these parameters (O'Donoghue and Candès 2015).

    Returns:
        Whether there was any.

    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = SGD([weight], lr=0.1, momentum=0.9)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> forget_velocity(optimizer, [[weight]])
    True
    >>> optimizer.state[weight]["momentum_buffer"]
    tensor([0.])
    """
    there = [optimizer.state.get(parameter, {}).get("momentum_buffer") for group in groups for parameter in group]
    velocities = [velocity for velocity in there if velocity is not None]
    for velocity in velocities:
        velocity.zero_()
    return bool(velocities)


def weight_norms(groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Norm ``()`` of the trainable weights of each parameter group.

    Frozen weights are left out: they make no step, and a large frozen embedding would loosen the bound of all others.
    So are those that a lazy module has not made yet.
    """
    norms = []
    for group in groups:
        weights = [weight for weight in group if weight.requires_grad and not is_lazy(weight)]
        norms.append(total_norm(tensor_norms(weights)) if weights else torch.zeros((), dtype=torch.float64))
    return norms


def _group_rate(group: dict[str, float | Tensor]) -> float | Tensor:
    rate, momentum, dampening = group["lr"], group.get("momentum", 0.0), group.get("dampening", 0.0)
    if isinstance(rate, Tensor) and numbers.is_on_a_cpu(rate):
        rate = float(rate)
    if momentum >= 1:  # such an update grows for as long as the gradient lasts
        return math.inf
    if momentum:
        rate = rate * (1 - dampening) / (1 - momentum)
    return rate.reshape(()) if isinstance(rate, Tensor) else float(rate)
