"""Which weights stand before a normalisation, so that their scale means nothing: told by their gradients."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rnn_blocks.callbacks.measuring import numbers
from rnn_blocks.callbacks.measuring.norms import tensor_norms, total_norm
from rnn_blocks.callbacks.measuring.step import StepGradients

FIRST_LOOKS, EVERY = 8, 100  # a parameter's first steps with a gradient are looked at, and then every so many steps
ENOUGH = 3  # looks at a weight and a gradient that are not zero
TOLERANCE = 0.05  # of √d·|cos(w, ∇w)|, which is about 1 by chance; before a norm 0.002, in bfloat16 0.02


class ScaleInvariance:
    r"""Tells the scale-invariant weights of one optimizer.

    Where a loss does not change when a weight w is multiplied by a positive number, as before a batch norm, its
    gradient is perpendicular to it: ⟨w, ∇w⟩ = 0 (van Laarhoven 2017). A step along it makes w longer, by Pythagoras,
    and so the next one shorter in angle: such weights bear steps of any length. They are told, among the weights of two
    dimensions and more, by √d·\|cos(w, ∇w)\| < 0.05 with d their number of elements, the measure of AdamP (Heo et al.
    2021), in all steps looked at: the first eight in which a weight has a gradient, and every hundredth. Until three
    looks at a weight and a gradient that are not zero, it does not count as one; once it has been found to depend on
    its scale, it never will. Nothing is read from the device.

    >>> weight = torch.nn.Parameter(torch.randn(3, 4))
    >>> optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> scale = ScaleInvariance()
    >>> for step in range(5):
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.layer_norm(weight.flatten(), [12])[:5].square().sum().backward()
    ...     sensitive = scale.sensitive_norm(StepGradients(optimizer), [[weight]])
    >>> bool(StepGradients(optimizer).total > 0.1), sensitive.item()
    (True, 0.0)
    """

    def __init__(self) -> None:
        self._steps = 0
        self._tried: list[int] = []  # how often each parameter has been looked at
        self._places: dict[int, int] = {}
        self._most = torch.zeros(0)
        self._seen = torch.zeros(0, dtype=torch.int64)
        self._invariant: Tensor | None = None  # where none is, and that is known without waiting for the device: None
        self._judged = False

    def sensitive_norm(self, gradients: StepGradients, groups: Sequence[Sequence[Tensor]]) -> Tensor:
        """Norm of the gradients of those weights whose scale is not known to mean nothing, ``()``.

        Args:
            gradients: the step's, of some of the parameters.
            groups: all parameters that are clipped, by parameter group; later groups may come later.
        """
        norms = gradients.current_norms
        self._extend(gradients, groups, norms.device)
        places = [self._places[id(parameter)] for parameter in gradients.parameters]
        if self._steps % EVERY == 0 or min(map(self._tried.__getitem__, places), default=FIRST_LOOKS) < FIRST_LOOKS:
            self._look(gradients, places)
            self._judged = False
        self._steps += 1
        total = gradients.clipped_total
        if not self._judged:
            invariant = (self._seen >= ENOUGH) & (self._most < TOLERANCE)
            self._invariant = invariant if not numbers.is_one_on_a_cpu(total) or invariant.any() else None
            self._judged = True
        if self._invariant is None:
            return total
        invariant = self._invariant.to(norms.device)
        if len(places) < len(self._tried):
            invariant = invariant[_there(places, norms)]
        return total_norm(norms.masked_fill(invariant, 0.0))

    def state_dict(self) -> dict[str, Any]:
        """A copy, which later steps leave alone."""
        return {
            "steps": self._steps,
            "tried": list(self._tried),
            "most": self._most.clone(),
            "seen": self._seen.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._steps, self._tried = state["steps"], list(state["tried"])
        self._most, self._seen, self._judged = state["most"].clone(), state["seen"].clone(), False

    def _extend(self, gradients: StepGradients, groups: Sequence[Sequence[Tensor]], device: torch.device) -> None:
        if not all(id(parameter) in self._places for parameter in gradients.parameters):
            self._places = {id(parameter): place for place, parameter in enumerate(chain.from_iterable(groups))}
        fresh = len(self._places) - len(self._tried)
        if fresh > 0:
            self._tried += [0] * fresh
            self._most = torch.cat([self._most, self._most.new_zeros(fresh)])
            self._seen = torch.cat([self._seen, self._seen.new_zeros(fresh)])
        self._most, self._seen = self._most.to(device), self._seen.to(device)

    @torch.no_grad()
    def _look(self, gradients: StepGradients, places: list[int]) -> None:
        norms = gradients.current_norms
        looked = [
            (index, place, parameter, gradient)
            for index, (place, parameter) in enumerate(zip(places, gradients.parameters, strict=True))
            if (gradient := parameter.grad) is not None and parameter.ndim > 1 and not gradient.is_sparse
        ]
        for place in places:
            self._tried[place] += 1
        if not looked:
            return
        products = torch.stack([_product(parameter, gradient, norms) for _, _, parameter, gradient in looked])
        lengths = tensor_norms([parameter for _, _, parameter, _ in looked]).to(norms)
        lengths = lengths * norms[_there([index for index, *_ in looked], norms)]
        sizes = _there([parameter.numel() for _, _, parameter, _ in looked], norms).sqrt()
        dependence = sizes * products.abs() / lengths
        told = dependence.isfinite()  # neither is zero
        index = _there([place for _, place, *_ in looked], norms)
        found = torch.maximum(self._most[index], dependence.masked_fill(~told, 0.0).to(self._most))
        self._most = self._most.index_copy(0, index, found)
        self._seen = self._seen.index_copy(0, index, self._seen[index] + told)


def _product(weight: Tensor, gradient: Tensor, norms: Tensor) -> Tensor:
    """⟨w, ∇w⟩, of complex ones the real part of Σ w·∇w̄, over all ranks where they are sharded, ``()``."""
    products = weight.detach() * (gradient.conj() if gradient.is_complex() else gradient)
    product: Tensor = products.sum(dtype=torch.promote_types(weight.dtype, torch.float32))
    product = product.full_tensor() if isinstance(product, DTensor) else product
    return (product.real if product.is_complex() else product).to(norms)


def _there(numbers: list[int], norms: Tensor) -> Tensor:
    """On the norms' device, without waiting for it."""
    return torch.tensor(numbers).to(norms.device, non_blocking=True)
