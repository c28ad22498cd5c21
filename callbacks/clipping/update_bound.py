"""How long the updates of adaptive optimizers may be: measured on a sample, bounded through the learning rate."""

import math
from collections.abc import Container
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer, RMSprop
from torch.utils.hooks import RemovableHandle

from rnn_blocks.callbacks.clipping.rates import Rates
from rnn_blocks.callbacks.measuring.before_update import Handle, before_update
from rnn_blocks.callbacks.measuring.norms import stored_values, tensor_norms
from rnn_blocks.callbacks.measuring.optimizers import parameters_of

SAMPLE = 4096  # elements of each parameter that are looked at
EVERY = 16  # steps between two measurements, once a training is under way


class UpdateBound:
    r"""Keeps an optimizer's updates from growing longer than a share of the initial weights.

    Adam and its kin divide the gradient by its own size: their update is about as long at any gradient norm, and no
    clipping shortens it. It is lr·u, where u changes slowly, for it is made of moving averages. Of each weight matrix i
    let Uᵢ := ‖uᵢ‖ and W₀ᵢ be its values before the first step, and

        r = median of Uᵢ / ‖W₀ᵢ‖ over the matrices (of an even number, the larger of the middle two).

    With lr₊ the highest learning rate so far, the rate of each step is multiplied by

        min(1, longest / (lr₊·r)),

    so that an update at lr₊ moves the middle matrix by at most the share `longest` of what it was, and one at a
    scheduled share of lr₊ at most by that share of it. It is the middle one because scales differ by more than an order
    of magnitude in one model: embeddings that start at N(0, 1) beside matrices that start at 1/√width, of which neither
    is to set the bound of the other. Vectors (biases, gains) and what starts at zero count only where there is nothing
    else, and what is all zero never.

    r is measured after steps 1, 2, 4, 8 and every 16th, from at most 4,096 evenly spaced elements of each matrix before
    and after the step, and counts from the next measuring step on, so that nothing waits for a device. Until then u is
    ±1 everywhere, as in the first update of Adam, Adagrad and Lion (RMSprop: over √(1−α)).

    Related: Tang et al. 2023, "Improving Training Stability for Multitask Ranking Models in Recommender Systems"
    (Clippy: bounds each relative update of an adaptive optimizer); You et al. 2020 (LAMB).

    Args:
        optimizer: not yet stepped, or to be continued by `load_state_dict`.
        longest: of the middle matrix, length of the longest update over ‖W₀ᵢ‖.
        chosen: the parameters that count; groups without any keep their rate. None: all of them.

    Attributes:
        coefficient: what the last step's learning rate was multiplied by.

    >>> weight = torch.nn.Parameter(torch.ones(10, 10))
    >>> optimizer = torch.optim.Adam([weight], lr=0.5)
    >>> bound = UpdateBound(optimizer, longest=0.01)
    >>> bound.attach()
    >>> weight.sum().backward(); optimizer.step()
    >>> round((weight - 1).norm().item(), 4), optimizer.param_groups[0]["lr"]  # 1 % of 10, and not 5
    (0.1, 0.5)
    """

    def __init__(self, optimizer: Optimizer, longest: float, chosen: Container[Tensor] | None = None) -> None:
        self.optimizer = optimizer
        self.longest = longest
        self._chosen = chosen
        self.coefficient = 1.0
        self._steps = 0
        self._highest_rate = 0.0
        self._initial_norms: dict[int, float] = {}  # by the weight's place in the optimizer
        self._ratio: float | None = None  # r, as it counts now
        self._measured: Tensor | None = None  # r, as it will count from the next measuring step on
        self._arrived: torch.cuda.Event | None = None
        self._trained: list[int | None] = []  # the weights by their identity, None where one is frozen
        self._sample: Sample | None = None
        self._before: Tensor | None = None
        self._hooks: list[Handle | RemovableHandle] = []

    def attach(self) -> None:
        """Begin to bound the optimizer's steps."""
        self._hooks = [
            before_update(self.optimizer, self._before_step),  # a closure sees, and may set, the user's own rate
            self.optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def __getstate__(self) -> dict[str, Any]:
        # hooks are the optimizer's, and what else waits for the device is measured again
        return {**vars(self), "_hooks": bool(self._hooks), "_arrived": None, "_before": None, "_measured": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        attached = state.pop("_hooks")
        vars(self).update(state, _hooks=[])
        if attached:
            self.attach()

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        Rates.of(self.optimizer).restore()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists."""
        measured = None if self._measured is None else self._receive()
        return {
            "steps": self._steps,
            "highest_rate": self._highest_rate,
            "initial_norms": dict(self._initial_norms),
            "ratio": self._ratio,
            "measured": measured,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue."""
        self._steps, self._highest_rate, self._ratio = state["steps"], state["highest_rate"], state["ratio"]
        self._initial_norms = dict(state["initial_norms"])
        self._trained, self._sample, self._before = [], None, None  # it is taken anew, against these norms
        self._measured = None if state["measured"] is None else torch.tensor(state["measured"], dtype=torch.float64)
        self._arrived = None

    def _before_step(self) -> None:
        rates, groups = Rates.of(self.optimizer), self._groups()
        rates.begin(id(self))
        users = [rates.users(group) for group in groups]
        if any(rate is None or (isinstance(rate, Tensor) and rate.is_cuda) for rate in users):
            return  # a rate that only the device knows, or none at all
        rate = max((float(rate) for rate in users if rate is not None), default=0.0)
        self._highest_rate = max(self._highest_rate, rate)
        self._steps += 1
        measures = self._steps & (self._steps - 1) == 0 if self._steps < EVERY else self._steps % EVERY == 0
        if measures and self._measured is not None:
            ratio = self._receive()
            if 0 < ratio < math.inf:  # else nothing was updated, or weights are not finite
                self._ratio = ratio
        trained = [id(weight) if weight.requires_grad else None for weight in parameters_of(self.optimizer)]
        if trained != self._trained:  # before a weight that joins, or takes another's place, has moved
            self._trained, self._sample = trained, self._current_sample()
        if self._sample is None:
            self.coefficient = 1.0  # nothing to measure an update against
            return
        ratio = self._sample.first_ratio(self._first_update()) if self._ratio is None else self._ratio
        self.coefficient = min(1.0, self.longest / (self._highest_rate * ratio)) if self._highest_rate else 1.0
        if self.coefficient < 1:
            rates.lower(id(self), groups, self.coefficient)
        if measures and rate:
            self._before = self._sample.take()

    def _after_step(self) -> None:
        rates = Rates.of(self.optimizer)
        groups, before, self._before = self._groups(), self._before, None
        used = max((float(rates.used(group)) for group in groups), default=0.0) if before is not None else 0.0
        rates.restore()
        if before is None or self._sample is None:
            return
        measured = self._sample.ratio(before, self._sample.take()) / used
        if measured.is_cuda:
            self._measured = torch.empty((), dtype=measured.dtype, pin_memory=True)
            self._measured.copy_(measured, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._measured, self._arrived = measured, None

    def _current_sample(self) -> "Sample | None":
        """Of the weights that tell how long an update is; None: there are none."""
        every = enumerate(parameters_of(self.optimizer))
        trained = {place: weight for place, weight in every if weight.requires_grad and self._counts(weight)}
        new = [place for place in trained if place not in self._initial_norms]
        if new:
            norms = tensor_norms([trained[place] for place in new]).tolist()
            self._initial_norms |= dict(zip(new, norms, strict=True))
        scaled = [place for place in trained if 0 < self._initial_norms[place] < math.inf]
        places = [place for place in scaled if trained[place].ndim > 1] or scaled
        if not places:
            return None
        return Sample([trained[place] for place in places], [self._initial_norms[place] for place in places])

    def _first_update(self) -> float:
        # Adam's first update is ±lr everywhere; RMSprop, which does not correct its average, divides by less.
        decay = self.optimizer.param_groups[0].get("alpha", 0.0) if isinstance(self.optimizer, RMSprop) else 0.0
        return float((1 - decay) ** -0.5)

    def _receive(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()  # reached long ago
        assert self._measured is not None
        return float(self._measured)

    def _groups(self) -> list[dict[str, Any]]:
        """The parameter groups that are bounded."""
        groups = self.optimizer.param_groups
        return (
            groups if self._chosen is None else [group for group in groups if any(map(self._counts, group["params"]))]
        )

    def _counts(self, weight: Tensor) -> bool:
        return self._chosen is None or weight in self._chosen


class Sample:
    """Up to `SAMPLE` evenly spaced elements, real numbers, of what this process holds of each weight.

    Args:
        weights: one or more.
        norms: what an update of each is measured against.
    """

    def __init__(self, weights: list[Tensor], norms: list[float]) -> None:
        self.weights = weights
        self._norms = norms
        sizes = [_elements(weight).numel() for weight in weights]
        # Odd strides, so that they do not stay in one column of a matrix whose width is a power of two.
        self._strides = [-(-size // SAMPLE) | 1 if size > SAMPLE else 1 for size in sizes]
        self._counts = [-(-size // stride) for size, stride in zip(sizes, self._strides, strict=True)]
        # Of each weight's elements, a sampled one stands for so many.
        self._shares = [
            size / max(count, 1) / _copies(weight)
            for size, count, weight in zip(sizes, self._counts, weights, strict=True)
        ]
        self._on_device: tuple[Tensor, Tensor, Tensor] | None = None

    def first_ratio(self, size: float) -> float:
        """What `ratio` is of an update of which each element is ±`size`."""
        lengths = [size * math.sqrt(weight.numel() * (1 + weight.is_complex())) for weight in self.weights]
        return sorted(length / norm for length, norm in zip(lengths, self._norms, strict=True))[len(lengths) // 2]

    @torch.no_grad()
    def take(self) -> Tensor:
        """The elements as they are now, in one float32 vector on the first weight's device."""
        values = [
            _elements(weight).reshape(-1)[::stride] if stride > 1 else _elements(weight).reshape(-1)
            for weight, stride in zip(self.weights, self._strides, strict=True)
        ]
        device = values[0].device
        if len({(value.dtype, value.device) for value in values}) > 1:
            values = [value.to(device, torch.float32) for value in values]
        return torch.cat(values).float()

    @torch.no_grad()
    def ratio(self, before: Tensor, after: Tensor) -> Tensor:
        """Estimate of how far the middle one of the weights has moved, over its norm: ``()``."""
        squares = tensor_norms((after - before).split(self._counts)).square()
        if self._on_device is None:
            sharded = [isinstance(weight, DTensor) for weight in self.weights]
            shares, norms = (squares.new_tensor(values) for values in (self._shares, self._norms))
            self._on_device = shares, norms, torch.tensor(sharded, device=squares.device)
        shares, norms, is_sharded = self._on_device
        squares = squares * shares
        if any(isinstance(weight, DTensor) for weight in self.weights):
            parts = squares * is_sharded
            dist.all_reduce(parts)
            squares = torch.where(is_sharded, parts, squares)
        return (squares.sqrt() / norms).sort().values[len(self._norms) // 2]


def _elements(weight: Tensor) -> Tensor:
    """The real numbers that this process holds of a weight: two of a complex one, each of which has an update."""
    values = stored_values(weight)
    return torch.view_as_real(values) if values.is_complex() else values


def _copies(weight: Tensor) -> int:
    """How many ranks hold each element of a sharded parameter."""
    if not isinstance(weight, DTensor):
        return 1
    mesh = weight.device_mesh
    replicas = (mesh.size(dim) for dim, placement in enumerate(weight.placements) if isinstance(placement, Replicate))
    # Its mesh may be one of several like it: ranks that would split up other parameters hold this one alike.
    return dist.get_world_size() // mesh.size() * math.prod(replicas)
