"""Clipping by output unit: each row of a gradient is measured and multiplied by itself."""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from rnn_blocks.callbacks.clipping.units import NO_NORMS, ByParameter, Groups, multiply_each_
from rnn_blocks.callbacks.measuring.norms import row_norms, stored_values, with_norm
from rnn_blocks.callbacks.measuring.step import StepGradients


class ByRow(ByParameter):
    """Each output unit is one: a row of a parameter of two or more dimensions; any other parameter as a whole.

    Units stand parameter after parameter, row after row. A sparse gradient has only the rows that it stores.
    """

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self._rows = [_num_rows(parameter) for group in groups for parameter in group]
        self._begins = [0, *itertools.accumulate(self._rows)]  # the first unit of each parameter, and the end
        self.sizes = [sum(map(_num_rows, group)) for group in groups]
        self._parameter_of_unit = torch.arange(len(self._rows)).repeat_interleave(torch.tensor(self._rows))
        self._parts: _Parts | None = None

    def norms(self, gradients: StepGradients) -> Tensor:
        """Of whole parameters those that are known already, of others row by row."""
        current, parts = gradients.current_norms, self._parts_of(gradients)
        absent = current.new_full((self._begins[-1],), math.nan)
        tensors = gradients.gradients
        if len(tensors) < len(gradients.parameters):  # another callback has taken them away since
            return absent
        matrices = [tensors[index] for index in parts.matrices]
        rows = row_norms(matrices) if matrices else []
        return absent.index_copy(0, parts.units, torch.cat([current[parts.whole], *rows]))

    def weight_norms(self, groups: Groups) -> list[Tensor]:
        """Of every row, frozen or not; 0 where it has none, as one of whole numbers."""
        return [torch.cat(row_norms(list(map(with_norm, group)))) if group else NO_NORMS for group in groups]

    def multiply_(self, gradients: StepGradients, coefficient: Tensor, read: bool) -> None:
        """Whole parameters in one call by device, others one by one."""
        tensors, parts = gradients.gradients, self._parts_of(gradients)
        if len(tensors) < len(gradients.parameters):
            return
        whole = [stored_values(tensor) for tensor in tensors if tensor.ndim < 2]
        multiply_each_(whole, coefficient[parts.units[: len(whole)]], read)
        lowest = self._lowest(coefficient).tolist() if read else None
        by_parameter = coefficient.split(self._rows)
        for index in parts.matrices:
            place = parts.places[index]
            if lowest is None or lowest[place] != 1:
                _multiply_rows_(tensors[index], by_parameter[place])

    def clipped_norms(self, gradients: StepGradients, norms: Tensor, coefficient: Tensor) -> Tensor:
        """The norms of the rows, multiplied and put together again."""
        squares = (norms * coefficient).square().nan_to_num(nan=0.0)  # of rows that a sparse gradient does not store
        sums = squares.new_zeros(len(self._rows)).index_add(0, self._parameter_of(norms.device), squares)
        index = self._index(gradients)
        after = (sums if index is None else sums[index]).sqrt()
        return after + 0 * gradients.current_norms  # NaN where the gradient is not finite

    def count(self, gradients: StepGradients) -> int:
        """As many as the parameters with a gradient have rows."""
        return self._parts_of(gradients).num_units

    def _parts_of(self, gradients: StepGradients) -> "_Parts":
        places = [self.places[id(parameter)] for parameter in gradients.parameters]
        device = gradients.norms.device
        parts = self._parts
        if parts is None or parts.places != places or parts.units.device != device:
            whole = [index for index, parameter in enumerate(gradients.parameters) if parameter.ndim < 2]
            matrices = [index for index, parameter in enumerate(gradients.parameters) if parameter.ndim > 1]
            of_parameters = [range(self._begins[places[i]], self._begins[places[i] + 1]) for i in whole + matrices]
            units = list(itertools.chain.from_iterable(of_parameters))
            parts = self._parts = _Parts(
                places,
                matrices,
                torch.tensor(whole, dtype=torch.int64).to(device, non_blocking=True),
                torch.tensor(units, dtype=torch.int64).to(device, non_blocking=True),
                len(units),
            )
        return parts

    def _parameter_of(self, device: torch.device) -> Tensor:
        self._parameter_of_unit = self._parameter_of_unit.to(device, non_blocking=True)
        return self._parameter_of_unit

    def _lowest(self, coefficient: Tensor) -> Tensor:
        """Of each parameter's units, ``(parameters,)``."""
        ones = coefficient.new_ones(len(self._rows))
        return ones.scatter_reduce(0, self._parameter_of(coefficient.device), coefficient, "amin")


class _Parts(NamedTuple):
    """The parameters that have a gradient in a step, and which units they are; `gradients` are in their order."""

    places: list[int]  # among all parameters
    matrices: list[int]  # which gradients are clipped by rows
    whole: Tensor  # which gradients are clipped as a whole
    units: Tensor  # the units of the whole, then those of the matrices
    num_units: int


def _num_rows(parameter: Tensor) -> int:
    return len(parameter) if parameter.ndim > 1 else 1


@torch.no_grad()
def _multiply_rows_(gradient: Tensor, coefficient: Tensor) -> None:
    """Multiply row i of `gradient` in place by number i of `coefficient` ``(rows,)``."""
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    factor = coefficient.to(gradient.device, dtype, non_blocking=True)
    if gradient.is_sparse:
        values = gradient._values()
        values.mul_(factor[gradient._indices()[0]].view(-1, *[1] * (values.ndim - 1)))
        return
    if len(gradient) == 1:
        stored_values(gradient).mul_(
            factor
        )  # a DTensor of one row, cut by rows, refuses a factor that it would cut too
        return
    factor = factor.view(-1, *[1] * (gradient.ndim - 1))
    if isinstance(gradient, DTensor):
        mesh = gradient.device_mesh
        factor = DTensor.from_local(factor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    gradient.mul_(factor)
