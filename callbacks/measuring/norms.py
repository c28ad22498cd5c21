"""Norms of gradients and other tensors: of each, of its rows, of all together."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

TINY = 1e-15
"""Norms below it may have squares in them that float32 does not hold, or only a few digits of."""


def with_norm(weight: Tensor) -> Tensor:
    """The weight, or zeros in its place where it has no norm: one of whole numbers, or not made yet by a lazy module.

    >>> with_norm(torch.ones(2)).tolist(), with_norm(torch.ones(2, dtype=torch.uint8)).tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    lazy = is_lazy(weight)
    if not lazy and (weight.is_floating_point() or weight.is_complex()):
        return weight
    zero = torch.zeros((), device=weight.device)
    return zero if lazy else zero.expand(weight.shape)


@torch.no_grad()
def tensor_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of each tensor, over all ranks where it is sharded.

    Squares are summed in float32 or wider whatever the tensors' dtype. Gradients of 1e20 or of 1e-25, whose squares are
    past float32, are measured in float64, where the device has it: finite values give a finite norm, and zeros alone
    one of 0.

    Args:
        tensors: one or more, of any shape, floating dtype and device; sparse and `DTensor` too, mixed as they come.

    Returns:
        The norms, ``(len(tensors),)``, float64 (float32 where the device has no float64), on the first tensor's device.

    Raises:
        ValueError: there is no tensor.

    >>> tensor_norms([torch.tensor([3.0, 4.0]), torch.full((4,), 1e20)]).float()
    tensor([5.0000e+00, 2.0000e+20])
    """
    if not tensors:
        raise ValueError("tensor_norms: got no tensor; give at least one")
    if True in [tensor.is_sparse for tensor in tensors]:  # twice as fast as `any` of a generator
        # Uncoalesced rows of one index count as their sum, so they are added before they are squared.
        tensors = [tensor.coalesce()._values() if tensor.is_sparse else tensor for tensor in tensors]
    if tensors[0].device.type != "cpu":
        return _norms(tensors, widest(tensors[0].device))
    # float64 takes three times as long on a CPU, where looking at the result is free: so only where it is needed.
    norms = _norms(tensors, torch.float32)
    values = norms.tolist()
    if not sum(values) < math.inf:  # NaN too
        return _norms(tensors, torch.float64)
    if min(values) < TINY:
        places = [place for place, norm in enumerate(values) if norm < TINY]
        norms[places] = _norms([tensors[place] for place in places], torch.float64).to(norms)
    return norms


@torch.no_grad()
def row_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Euclidean norm of each tensor's rows, measured as `tensor_norms` does, but for rows of 1e-23: on a CPU, 0.

    Args:
        tensors: as for `tensor_norms`.

    Returns:
        ``(rows,)`` each, float64 (float32 where the device has no float64), on the first tensor's device. A tensor of
        fewer than two dimensions is one row. Rows that a sparse tensor does not store are NaN.

    Raises:
        ValueError: there is no tensor.

    >>> row_norms([torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([6.0, 8.0])])
    [tensor([5., 2.], dtype=torch.float64), tensor([10.], dtype=torch.float64)]
    """
    if not tensors:
        raise ValueError("row_norms: got no tensor; give at least one")
    device = tensors[0].device
    if device.type != "cpu":
        return [_row_norms(tensor, widest(device)).to(device, widest(device)) for tensor in tensors]
    norms = [_row_norms(tensor, torch.float32).to(device, torch.float64) for tensor in tensors]
    [overflow] = torch.cat(norms).isinf().any().reshape(1).tolist()
    if overflow:  # perhaps in float32 only
        norms = [_row_norms(tensor, torch.float64).to(device) for tensor in tensors]
    return norms


def total_norm(norms: Tensor) -> Tensor:
    """Euclidean norm of all that `norms` ``(tensors,)`` were taken of: ``()``, same dtype and device."""
    total: Tensor = torch.linalg.vector_norm(norms)
    return total


@torch.no_grad()
def scale_(gradients: Sequence[Tensor], coefficient: Tensor) -> None:
    """Multiply gradients in place by `coefficient` ``()``, which may live on another device and be of another dtype."""
    values = list(gradients)
    if set(map(type, values)) != {Tensor} or True in [gradient.is_sparse for gradient in values]:  # else they are plain
        values = [stored_values(gradient) for gradient in gradients]
    for (device, dtype), there in by_factor(values).items():
        own = values if len(there) == len(values) else [values[place] for place in there]
        torch._foreach_mul_(own, coefficient.to(device, dtype, non_blocking=True))


def by_factor(values: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], Sequence[int]]:
    """Places of the values by the device and the dtype of the numbers that they are to be multiplied by.

    In float32 a coefficient of 1e-50 is 0, as it takes to bring a gradient in float64 down from 1e50.
    """
    wide = (torch.float64, torch.complex128)
    devices, dtypes = {value.device for value in values}, {value.dtype for value in values}
    if len(devices) == len(dtypes) == 1:
        return {(devices.pop(), torch.float64 if dtypes.pop() in wide else torch.float32): range(len(values))}
    found: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, value in enumerate(values):
        kind = value.device, torch.float64 if value.dtype in wide else torch.float32
        found.setdefault(kind, []).append(place)
    return {**found}


def stored_values(gradient: Tensor) -> Tensor:
    """The dense tensor in this process that holds a gradient's values: changing it in place changes the gradient."""
    if isinstance(gradient, DTensor):
        return gradient.to_local()
    return gradient._values() if gradient.is_sparse else gradient


def widest(device: torch.device) -> torch.dtype:
    """The widest floating dtype there."""
    return torch.float32 if device.type == "mps" else torch.float64


def _norms(tensors: Sequence[Tensor], accumulator: torch.dtype) -> Tensor:
    # The usual case, told without a tuple for each tensor.
    attributes = ({tensor.dtype for tensor in tensors}, {tensor.device for tensor in tensors}, set(map(type, tensors)))
    if all(len(values) == 1 for values in attributes):
        return _norms_of_a_kind(list(tensors), accumulator)
    kinds = [(tensor.dtype, tensor.device, type(tensor)) for tensor in tensors]
    device = tensors[0].device
    parts, order = [], []
    for kind in dict.fromkeys(kinds):  # in one order on every rank, for DTensors need a collective
        indices = [index for index, other in enumerate(kinds) if other == kind]
        norms = _norms_of_a_kind([tensors[index] for index in indices], accumulator)
        parts.append(norms.to(device, widest(device)))
        order += indices
    return torch.cat(parts)[torch.tensor(order).argsort().to(device, non_blocking=True)]


def _norms_of_a_kind(tensors: list[Tensor], accumulator: torch.dtype) -> Tensor:
    norms: Sequence[Tensor] = torch._foreach_norm(tensors, 2, dtype=torch.promote_types(tensors[0].dtype, accumulator))
    if isinstance(tensors[0], DTensor):
        # Each rank holds a shard of the gradient: `full_tensor` sums the squares over the ranks.
        norms = [cast(DTensor, norm).full_tensor() for norm in norms]
    return torch.stack(list(norms)).to(widest(tensors[0].device))


def _row_norms(tensor: Tensor, accumulator: torch.dtype) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, accumulator)
    if tensor.is_sparse:
        tensor = tensor.coalesce()
        if tensor.ndim < 2:
            return _row_norms(tensor._values(), accumulator)
        rows = tensor._indices()[0]
        if tensor.sparse_dim() == 1:
            stored = _row_norms(tensor._values(), accumulator)
        else:  # of a row it may store some numbers
            rows = rows.unique()
            stored = _row_norms(tensor.to_dense(), accumulator)[rows]
        return stored.new_full(tensor.shape[:1], math.nan).index_copy(0, rows, stored)
    dims = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dims, dtype=dtype)
    if isinstance(norms, DTensor):
        norms = norms.full_tensor()
    return norms.reshape(-1)
