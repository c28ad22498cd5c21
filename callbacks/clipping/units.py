"""What is measured and clipped as one: all gradients of an optimizer, those of a parameter group, of a parameter."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.optim import Optimizer

from rnn_blocks.callbacks.clipping.update_length import effective_learning_rate, group_learning_rates, weight_norms
from rnn_blocks.callbacks.measuring.norms import by_factor, scale_, stored_values, tensor_norms, total_norm, with_norm
from rnn_blocks.callbacks.measuring.step import StepGradients

Groups = Sequence[Sequence[Tensor]]
"""Parameters by parameter group."""

NO_NORMS = torch.empty(0, dtype=torch.float64)
"""Of a parameter group without parameters."""


class Units(ABC):
    """The units of one optimizer, in the order of its parameter groups, whether they have a gradient in a step or not.

    S stands for the shape of what there is of each unit: ``()`` in the scope "global", ``(units,)`` in the others.

    Args:
        groups: the parameters that are clipped, by parameter group.

    Attributes:
        sizes: number of units in each parameter group.
    """

    sizes: list[int]

    def __init__(self, groups: Groups) -> None:
        self._numbers = [len(group) for group in groups]

    def fits(self, groups: Groups) -> bool:
        """Whether these are still the parameters that the units were made of."""
        return self._numbers == [len(group) for group in groups]

    @abstractmethod
    def norms(self, gradients: StepGradients) -> Tensor:
        """Norm of each unit's gradient as it is now, S; NaN where there is none."""

    @abstractmethod
    def weight_norms(self, groups: Groups) -> list[Tensor]:
        """Norms of the units' weights by group, ``()`` or ``(its units,)`` each."""

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
        norms = gradients.norms
        by_group = [
            rate.to(norms, non_blocking=True) if isinstance(rate, Tensor) else norms.new_full((), rate)
            for rate in rates
        ]
        return torch.cat([rate.expand(size) for rate, size in zip(by_group, self.sizes, strict=True)])


class Whole(Units):
    """All gradients of the optimizer are one unit."""

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self.sizes = [1 for _ in self._numbers]

    def norms(self, gradients: StepGradients) -> Tensor:
        """``()``."""
        return gradients.clipped_total

    def weight_norms(self, groups: Groups) -> list[Tensor]:
        """``()`` each, without frozen weights: they make no step, and would loosen the bound of all others."""
        return weight_norms(groups)

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


class ByParameter(Units):
    """Each parameter is a unit."""

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self.places = {id(parameter): place for place, parameter in enumerate(chain.from_iterable(groups))}
        self._present: list[int] = []
        self._present_index = torch.empty(0, dtype=torch.int64)
        self.sizes = self._numbers

    def fits(self, groups: Groups) -> bool:
        """Whether these are the very parameters."""
        return list(map(id, chain.from_iterable(groups))) == list(self.places) and super().fits(groups)

    def norms(self, gradients: StepGradients) -> Tensor:
        """Those of the gradients, at their parameters' places."""
        norms = gradients.current_norms
        index = self._index(gradients)
        if index is None:
            return norms
        return norms.new_full((len(self.places),), math.nan).index_copy(0, index, norms)

    def weight_norms(self, groups: Groups) -> list[Tensor]:
        """Of every parameter, frozen or not; 0 where it has none, as one of whole numbers."""
        return [tensor_norms(list(map(with_norm, group))) if group else NO_NORMS for group in groups]

    def multiply_(self, gradients: StepGradients, coefficient: Tensor, read: bool) -> None:
        """In one call by device."""
        coefficients = self._of_gradients(gradients, coefficient)
        values = [stored_values(gradient) for gradient in gradients.gradients]
        if len(values) == len(gradients.parameters):  # else another callback has taken them away since
            multiply_each_(values, coefficients, read)

    def clipped_norms(self, gradients: StepGradients, norms: Tensor, coefficient: Tensor) -> Tensor:
        """Every norm times its coefficient."""
        return gradients.current_norms * self._of_gradients(gradients, coefficient)

    def count(self, gradients: StepGradients) -> int:
        """As many as there are gradients."""
        return len(gradients.parameters)

    def _index(self, gradients: StepGradients) -> Tensor | None:
        """Places of the gradients among all parameters; None where every parameter has one."""
        if len(gradients.parameters) == len(self.places):
            return None
        present = [self.places[id(parameter)] for parameter in gradients.parameters]
        device = gradients.norms.device
        if present != self._present or self._present_index.device != device:
            index = torch.tensor(present, dtype=torch.int64)
            self._present, self._present_index = present, index.to(device, non_blocking=True)
        return self._present_index

    def _of_gradients(self, gradients: StepGradients, coefficient: Tensor) -> Tensor:
        index = self._index(gradients)
        return coefficient if index is None else coefficient[index]


class ByGroup(ByParameter):
    """Each parameter group is a unit."""

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self.sizes = [1 for _ in self._numbers]

    def norms(self, gradients: StepGradients) -> Tensor:
        """Over the gradients of each group."""
        parts = torch.split(gradients.current_norms, [len(group) for group in gradients.groups])
        return torch.stack([total_norm(part) if len(part) else part.new_full((), math.nan) for part in parts])

    def weight_norms(self, groups: Groups) -> list[Tensor]:
        """Over each group without its frozen weights, ``(1,)``."""
        return [norm.reshape(1) for norm in weight_norms(groups)]

    def count(self, gradients: StepGradients) -> int:
        """As many as there are groups with a gradient."""
        return sum(1 for group in gradients.groups if group)

    def _of_gradients(self, gradients: StepGradients, coefficient: Tensor) -> Tensor:
        parts = zip(coefficient.unbind(), gradients.groups, strict=True)
        return torch.cat([part.expand(len(group)) for part, group in parts])


@torch.no_grad()
def multiply_each_(values: Sequence[Tensor], coefficients: Tensor, read: bool) -> None:
    """Multiply each of `values` in place by its own of `coefficients` ``(values,)``; see `Units.multiply_`."""
    factors = coefficients.tolist() if read else None
    for (device, dtype), places in by_factor(values).items():
        there = coefficients.to(device, dtype, non_blocking=True).unbind()
        own = [place for place in places if factors is None or factors[place] != 1]
        if own:
            torch._foreach_mul_([values[place] for place in own], [there[place] for place in own])
