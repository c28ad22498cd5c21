"""What is measured and clipped as one: all gradients of an optimizer, a group's, a parameter's, an output unit's."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from rnn_blocks.callbacks.gradient_norms import (
    StepGradients,
    row_norms,
    scale_,
    stored_values,
    tensor_norms,
    total_norm,
)
from rnn_blocks.callbacks.policies import Scope
from rnn_blocks.callbacks.update_length import effective_learning_rate, group_learning_rates, weight_norms


class Units(ABC):
    """The units of one optimizer, in the order of its parameter groups, whether they have a gradient in a step or not.

    S stands for the shape of what there is of each unit: ``()`` in the scope "global", ``(units,)`` in the others.

    Attributes:
        sizes: number of units in each parameter group.
    """

    sizes: list[int]

    def __init__(self, optimizer: Optimizer) -> None:
        self._numbers = _numbers(optimizer)

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer still has the parameters that these units were made of."""
        return self._numbers == _numbers(optimizer)

    @abstractmethod
    def norms(self, gradients: StepGradients) -> Tensor:
        """Norm of each unit's gradient as it is now, S; NaN where there is none."""

    @abstractmethod
    def weight_norms(self, optimizer: Optimizer, first_group: int = 0) -> list[Tensor]:
        """Norms of the units' weights by parameter group from `first_group` on, ``()`` or ``(its units,)`` each."""

    @abstractmethod
    def multiply_(self, gradients: StepGradients, coefficient: Tensor, read: bool) -> None:
        """Multiply each unit's gradient in place by its `coefficient`, S.

        Args:
            gradients: the step's.
            coefficient: S, of any device.
            read: whether coefficients may be read, so as to multiply only what is not multiplied by 1.
        """

    @abstractmethod
    def clipped_norms(self, gradients: StepGradients, norms: Tensor, coefficient: Tensor) -> Tensor:
        """Norm of each parameter's gradient once it is multiplied, ``(parameters that have one,)``.

        Args:
            gradients: the step's.
            norms: what `norms` gave before, S.
            coefficient: S.
        """

    @abstractmethod
    def count(self, gradients: StepGradients) -> int:
        """How many units have a gradient."""

    def learning_rate(self, optimizer: Optimizer, gradients: StepGradients) -> float | Tensor | None:
        """`effective_learning_rate` of each unit, S; a number where all are equal."""
        rates = group_learning_rates(optimizer)
        if not isinstance(rates, list):
            return rates
        device = gradients.norms.device
        by_group = [
            rate.to(device) if isinstance(rate, Tensor) else torch.full((), rate, device=device) for rate in rates
        ]
        return torch.cat([rate.expand(size) for rate, size in zip(by_group, self.sizes, strict=True)])


class Whole(Units):
    """All gradients of the optimizer are one unit."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.sizes = [1 for _ in self._numbers]

    def norms(self, gradients: StepGradients) -> Tensor:
        """``()``."""
        return gradients.clipped_total

    def weight_norms(self, optimizer: Optimizer, first_group: int = 0) -> list[Tensor]:
        """``()`` each, without frozen weights: they make no step, and would loosen the bound of all others."""
        return weight_norms(optimizer, first_group)

    def multiply_(self, gradients: StepGradients, coefficient: Tensor, read: bool) -> None:
        """In one call by device."""
        scale_(gradients.gradients, coefficient)

    def clipped_norms(self, gradients: StepGradients, norms: Tensor, coefficient: Tensor) -> Tensor:
        """Every norm times the one coefficient."""
        return gradients.current_norms * coefficient

    def count(self, gradients: StepGradients) -> int:
        """One."""
        return 1

    def learning_rate(self, optimizer: Optimizer, gradients: StepGradients) -> float | Tensor | None:
        """``()`` where groups differ: their mean square weighted by their gradients."""
        return effective_learning_rate(optimizer, gradients)


class Parameters(Units):
    """Each parameter is a unit."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self._places = {id(parameter): place for place, parameter in enumerate(_all_parameters(optimizer))}
        self._present: list[int] = []
        self._present_index = torch.empty(0, dtype=torch.int64)
        self.sizes = self._numbers

    def norms(self, gradients: StepGradients) -> Tensor:
        """Those of the gradients, at their parameters' places."""
        norms = gradients.current_norms
        index = self._index(gradients)
        if index is None:
            return norms
        return norms.new_full((len(self._places),), math.nan).index_copy(0, index, norms)

    def weight_norms(self, optimizer: Optimizer, first_group: int = 0) -> list[Tensor]:
        """Of every parameter, frozen or not."""
        return [tensor_norms(group["params"]) for group in optimizer.param_groups[first_group:]]

    def multiply_(self, gradients: StepGradients, coefficient: Tensor, read: bool) -> None:
        """In one call by device."""
        values = [stored_values(gradient) for gradient in gradients.gradients]
        coefficients = self._of_gradients(gradients, coefficient)
        if read:
            clipped = [
                (value, factor) for value, factor in zip(values, coefficients.tolist(), strict=True) if factor != 1
            ]
            if clipped:  # a coefficient may round to 1
                torch._foreach_mul_([value for value, _ in clipped], [factor for _, factor in clipped])
            return
        for device in {value.device for value in values}:
            there = coefficients.to(device, torch.float32, non_blocking=True).unbind()
            pairs = [(value, factor) for value, factor in zip(values, there, strict=True) if value.device == device]
            torch._foreach_mul_([value for value, _ in pairs], [factor for _, factor in pairs])

    def clipped_norms(self, gradients: StepGradients, norms: Tensor, coefficient: Tensor) -> Tensor:
        """Every norm times its coefficient."""
        return gradients.current_norms * self._of_gradients(gradients, coefficient)

    def count(self, gradients: StepGradients) -> int:
        """As many as there are gradients."""
        return len(gradients.parameters)

    def _index(self, gradients: StepGradients) -> Tensor | None:
        """Places of the gradients among all parameters; None where every parameter has one."""
        if len(gradients.parameters) == len(self._places):
            return None
        present = [self._places[id(parameter)] for parameter in gradients.parameters]
        device = gradients.norms.device
        if present != self._present or self._present_index.device != device:
            self._present, self._present_index = present, torch.tensor(present).to(device, non_blocking=True)
        return self._present_index

    def _of_gradients(self, gradients: StepGradients, coefficient: Tensor) -> Tensor:
        index = self._index(gradients)
        return coefficient if index is None else coefficient[index]


class Groups(Parameters):
    """Each parameter group is a unit."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.sizes = [1 for _ in self._numbers]

    def norms(self, gradients: StepGradients) -> Tensor:
        """Over the gradients of each group."""
        parts = torch.split(gradients.current_norms, [len(group) for group in gradients.groups])
        return torch.stack([total_norm(part) if len(part) else part.new_full((), math.nan) for part in parts])

    def weight_norms(self, optimizer: Optimizer, first_group: int = 0) -> list[Tensor]:
        """Over each group without its frozen weights, ``(1,)``."""
        return [norm.reshape(1) for norm in weight_norms(optimizer, first_group)]

    def count(self, gradients: StepGradients) -> int:
        """As many as there are groups with a gradient."""
        return sum(1 for group in gradients.groups if group)

    def _of_gradients(self, gradients: StepGradients, coefficient: Tensor) -> Tensor:
        parts = zip(coefficient.unbind(), gradients.groups, strict=True)
        return torch.cat([part.expand(len(group)) for part, group in parts])


class Rows(Parameters):
    """Each output unit is one: a row of a parameter of two or more dimensions; any other parameter as a whole."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self._rows = [_num_rows(parameter) for parameter in _all_parameters(optimizer)]
        self.sizes = [sum(map(_num_rows, group["params"])) for group in optimizer.param_groups]
        self._parameter_of_row = torch.arange(len(self._rows)).repeat_interleave(torch.tensor(self._rows))

    def norms(self, gradients: StepGradients) -> Tensor:
        """Row after row of parameter after parameter; a sparse gradient has only the rows that it stores."""
        wholes = gradients.current_norms.split(1)
        found: dict[int, Tensor] = {}
        matrices: dict[int, Tensor] = {}
        for parameter, whole in zip(gradients.parameters, wholes, strict=True):
            place, gradient = self._places[id(parameter)], parameter.grad
            if gradient is None or gradient.ndim < 2:  # None: another callback has taken it away since
                found[place] = whole.expand(self._rows[place])
            else:
                matrices[place] = gradient
        found |= dict(zip(matrices, row_norms(list(matrices.values())), strict=True)) if matrices else {}
        absent = wholes[0].new_full((1,), math.nan)
        return torch.cat([found.get(place, absent.expand(rows)) for place, rows in enumerate(self._rows)])

    def weight_norms(self, optimizer: Optimizer, first_group: int = 0) -> list[Tensor]:
        """Of every row, frozen or not."""
        return [torch.cat(row_norms(group["params"])) for group in optimizer.param_groups[first_group:]]

    def multiply_(self, gradients: StepGradients, coefficient: Tensor, read: bool) -> None:
        """Parameter by parameter."""
        lowest = self._lowest(coefficient).tolist() if read else None
        parts = coefficient.split(self._rows)
        for parameter in gradients.parameters:
            place = self._places[id(parameter)]
            if parameter.grad is not None and (lowest is None or lowest[place] != 1):
                _multiply_rows_(parameter.grad, parts[place])

    def clipped_norms(self, gradients: StepGradients, norms: Tensor, coefficient: Tensor) -> Tensor:
        """The norms of the rows, multiplied and put together again."""
        squares = (norms * coefficient).square().nan_to_num(nan=0.0)  # of rows that a sparse gradient does not store
        sums = squares.new_zeros(len(self._rows)).index_add(0, self._row_index(norms.device), squares)
        index = self._index(gradients)
        after = (sums if index is None else sums[index]).sqrt()
        return after + 0 * gradients.current_norms  # NaN where the gradient is not finite

    def count(self, gradients: StepGradients) -> int:
        """As many as the parameters with a gradient have rows."""
        return sum(self._rows[self._places[id(parameter)]] for parameter in gradients.parameters)

    def _row_index(self, device: torch.device) -> Tensor:
        self._parameter_of_row = self._parameter_of_row.to(device, non_blocking=True)
        return self._parameter_of_row

    def _lowest(self, coefficient: Tensor) -> Tensor:
        """Of each parameter's rows, ``(parameters,)``."""
        ones = coefficient.new_ones(len(self._rows))
        return ones.scatter_reduce(0, self._row_index(coefficient.device), coefficient, "amin")


KINDS: dict[Scope, type[Units]] = {"global": Whole, "group": Groups, "parameter": Parameters, "unit": Rows}


def _numbers(optimizer: Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def _all_parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _num_rows(parameter: Tensor) -> int:
    return len(parameter) if parameter.ndim > 1 else 1


def _multiply_rows_(gradient: Tensor, coefficient: Tensor) -> None:
    """Multiply row i of `gradient` in place by number i of `coefficient` ``(rows,)``; a vector by its only one."""
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    factor = coefficient.to(gradient.device, dtype, non_blocking=True)
    if gradient.ndim < 2:
        stored_values(gradient).mul_(factor.squeeze(0))
    elif gradient.is_sparse:
        values = gradient._values()
        values.mul_(factor[gradient._indices()[0]].view(-1, *[1] * (values.ndim - 1)))
    else:
        factor = factor.view(-1, *[1] * (gradient.ndim - 1))
        if isinstance(gradient, DTensor):
            mesh = gradient.device_mesh
            factor = DTensor.from_local(factor, mesh, [Replicate()] * mesh.ndim, run_check=False)
        gradient.mul_(factor)
