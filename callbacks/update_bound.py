"""How long the updates of adaptive optimizers may be: measured on a sample, bounded through the learning rate."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import ASGD, SGD, Optimizer, RMSprop
from torch.utils.hooks import RemovableHandle

from rnn_blocks.callbacks.gradient_norms import stored_values
from rnn_blocks.callbacks.update_length import weight_norms

SAMPLE = 4096  # elements of each parameter that are looked at
EVERY = 16  # steps between two measurements, once a training is under way


class UpdateBound:
    r"""Keeps an optimizer's updates from growing longer than a share of the initial weights' norm.

    Adam and its kin divide the gradient by its own size: their update is about as long at any gradient norm, and no
    clipping shortens it. It is lr·u, where ‖u‖ =: U changes slowly, for it is made of moving averages. With lr₊ the
    highest learning rate so far, the rate of each step is multiplied by

        min(1, longest·‖W₀‖ / (lr₊·U)),

    so that an update at lr₊ is at most longest·‖W₀‖ long, and one at a scheduled share of lr₊ at most that share of it.

    U is measured after steps 1, 2, 4, 8 and every 16th, from at most 4,096 evenly spaced elements of each parameter
    before and after the step, and counts from the next measuring step on, so that nothing waits for a device. Until
    then it is √(number of weights), as in the first update of Adam, Adagrad and Lion (RMSprop: over √(1−α)).

    Related: Tang et al. 2023, "Improving Training Stability for Multitask Ranking Models in Recommender Systems"
    (Clippy: bounds each relative update of an adaptive optimizer); You et al. 2020 (LAMB).

    Args:
        optimizer: not yet stepped, or to be continued by `load_state_dict`.
        longest: length of the longest update over ‖W₀‖.

    Attributes:
        coefficient: what the last step's learning rate was multiplied by.

    >>> weight = torch.nn.Parameter(torch.ones(100))
    >>> optimizer = torch.optim.Adam([weight], lr=0.5)
    >>> bound = UpdateBound(optimizer, longest=0.01)
    >>> bound.attach()
    >>> weight.sum().backward(); optimizer.step()
    >>> round((weight - 1).norm().item(), 4), optimizer.param_groups[0]["lr"]  # 1 % of 10, and not 5
    (0.1, 0.5)
    """

    def __init__(self, optimizer: Optimizer, longest: float) -> None:
        self.optimizer = optimizer
        self.longest = longest
        self.coefficient = 1.0
        self._steps = 0
        self._highest_rate = 0.0
        self._weight_norms: list[float] = []
        self._length: float | None = None  # U, as it counts now
        self._measured: Tensor | None = None  # U, as it will count from the next measuring step on
        self._arrived: torch.cuda.Event | None = None
        self._sample: Sample | None = None
        self._before: Tensor | None = None
        self._rates: list[float | Tensor] | None = None
        self._hooks: list[RemovableHandle] = []

    def attach(self) -> None:
        """Begin to bound the optimizer's steps."""
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step_or_after_closure),
            self.optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        self._restore_rates()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists."""
        measured = None if self._measured is None else self._receive()
        return {
            "steps": self._steps,
            "highest_rate": self._highest_rate,
            "weight_norms": list(self._weight_norms),
            "length": self._length,
            "measured": measured,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue."""
        self._steps, self._highest_rate, self._length = state["steps"], state["highest_rate"], state["length"]
        self._weight_norms = list(state["weight_norms"])
        self._measured = None if state["measured"] is None else torch.tensor(state["measured"], dtype=torch.float64)
        self._arrived = None

    def _before_step_or_after_closure(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # Under automatic optimisation the whole training step runs in the optimizer's closure. It sees, and may set,
        # the user's own rate; only the update that follows is made at the bounded one.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            self._before_step()
            return None

        def closure_at_the_users_rate() -> Any:
            loss = closure()
            self._before_step()
            return loss

        return args[:1], kwargs | {"closure": closure_at_the_users_rate}

    def _before_step(self) -> None:
        self._restore_rates()  # after a step that an error broke off
        rates: list[float | Tensor] = [group.get("lr", math.nan) for group in self.optimizer.param_groups]
        if any(isinstance(rate, Tensor) and rate.is_cuda for rate in rates) or math.nan in rates:
            return  # a rate that only the device knows, or none at all
        rate = max(float(rate) for rate in rates)
        self._highest_rate = max(self._highest_rate, rate)
        self._steps += 1
        self._weight_norms += [norm.item() for norm in weight_norms(self.optimizer, len(self._weight_norms))]
        measures = self._steps & (self._steps - 1) == 0 if self._steps < EVERY else self._steps % EVERY == 0
        if measures and self._measured is not None:
            length = self._receive()
            if 0 < length < math.inf:  # else nothing was updated, or weights are not finite
                self._length = length
        length = self._first_length() if self._length is None else self._length
        unbounded, bound = self._highest_rate * length, self.longest * math.hypot(*self._weight_norms)
        self.coefficient = min(1.0, bound / unbounded) if unbounded and bound else 1.0
        if self.coefficient < 1:
            self._rates = rates
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"] * self.coefficient
        if measures and rate:
            weights = self._weights()
            if self._sample is None or list(map(id, weights)) != list(map(id, self._sample.weights)):
                self._sample = Sample(weights)
            self._before = self._sample.take()

    def _after_step(self) -> None:
        self._restore_rates()
        before, self._before = self._before, None
        if before is None or self._sample is None:
            return
        rate = max(float(group["lr"]) for group in self.optimizer.param_groups) * self.coefficient
        measured = self._sample.distance(before, self._sample.take()) / rate
        if measured.is_cuda:
            self._measured = torch.empty((), dtype=measured.dtype, pin_memory=True)
            self._measured.copy_(measured, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._measured, self._arrived = measured, None

    def _weights(self) -> list[Tensor]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"] if weight.requires_grad]

    def _first_length(self) -> float:
        # Adam's first update is ±lr everywhere; RMSprop, which does not correct its average, divides by less.
        decay = self.optimizer.param_groups[0].get("alpha", 0.0) if isinstance(self.optimizer, RMSprop) else 0.0
        return math.sqrt(sum(weight.numel() for weight in self._weights()) / (1 - decay))

    def _receive(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()  # reached long ago
        assert self._measured is not None
        return float(self._measured)

    def _restore_rates(self) -> None:
        if self._rates is not None:
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=False):
                group["lr"] = rate
            self._rates = None


class Sample:
    """Up to `SAMPLE` evenly spaced elements of the values that this process holds of each weight."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights = weights
        sizes = [stored_values(weight).numel() for weight in weights]
        # Odd strides, so that they do not stay in one column of a matrix whose width is a power of two.
        self._strides = [-(-size // SAMPLE) | 1 if size > SAMPLE else 1 for size in sizes]
        self._counts = [-(-size // stride) for size, stride in zip(sizes, self._strides, strict=True)]
        self._factors = [
            size / max(count, 1) / _copies(weight)
            for size, count, weight in zip(sizes, self._counts, weights, strict=True)
        ]
        self._shares: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def take(self) -> Tensor:
        """The elements as they are now, in one float32 vector on the first weight's device."""
        values = [
            stored_values(weight).reshape(-1)[::stride] if stride > 1 else stored_values(weight).reshape(-1)
            for weight, stride in zip(self.weights, self._strides, strict=True)
        ]
        device = values[0].device
        if len({(value.dtype, value.device) for value in values}) > 1:
            values = [value.to(device, torch.float32) for value in values]
        return torch.cat(values).float()

    @torch.no_grad()
    def distance(self, before: Tensor, after: Tensor) -> Tensor:
        """Estimate of how far all weights have moved, over all ranks, ``()``."""
        if self._shares is None:  # of all the weight's elements, each sampled one stands for so many; sharded and not
            counts = torch.tensor(self._counts)
            shares = torch.tensor(self._factors).repeat_interleave(counts)
            sharded = torch.tensor([isinstance(weight, DTensor) for weight in self.weights]).repeat_interleave(counts)
            self._shares = ((shares * ~sharded).to(after.device), (shares * sharded).to(after.device))
        squares = (after - before).square()
        whole, sharded_part = (squares.dot(share) for share in self._shares)
        if any(isinstance(weight, DTensor) for weight in self.weights):
            dist.all_reduce(sharded_part)
        return (whole + sharded_part).sqrt()


def _copies(weight: Tensor) -> int:
    """How many ranks hold each element of a sharded parameter."""
    if not isinstance(weight, DTensor):
        return 1
    mesh = weight.device_mesh
    replicas = (mesh.size(dim) for dim, placement in enumerate(weight.placements) if isinstance(placement, Replicate))
    # Its mesh may be one of several like it: ranks that would split up other parameters hold this one alike.
    return dist.get_world_size() // mesh.size() * math.prod(replicas)


class UpdateBounds:
    """The bound of each of a training's optimizers whose update does not scale with the gradient."""

    def __init__(self) -> None:
        self._states: dict[int, dict[str, Any]] = {}
        self._bounds: dict[int, UpdateBound] = {}

    def start(self, optimizers: list[Optimizer], longest: float | None) -> None:
        """Bound the updates of a training that begins, or goes on from the state that was loaded."""
        self.stop()
        if longest is None:
            return
        for index, optimizer in enumerate(optimizers):
            if isinstance(optimizer, SGD | ASGD):
                continue
            bound = self._bounds[index] = UpdateBound(optimizer, longest)
            if index in self._states:
                bound.load_state_dict(self._states[index])
            bound.attach()

    def stop(self) -> None:
        """Leave the optimizers as they were."""
        self._states |= {index: bound.state_dict() for index, bound in self._bounds.items()}
        for bound in self._bounds.values():
            bound.detach()
        self._bounds = {}

    def clear(self) -> None:
        """Forget everything."""
        self.stop()
        self._states = {}

    def coefficient(self, index: int) -> float | None:
        """What the last learning rate of an optimizer was multiplied by; None: it is not bounded."""
        return self._bounds[index].coefficient if index in self._bounds else None

    def state_dict(self) -> dict[str, Any]:
        """Dicts, lists and numbers, by the optimizers' indices."""
        states = self._states | {index: bound.state_dict() for index, bound in self._bounds.items()}
        return {str(index): state for index, state in states.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._states = {int(index): bound for index, bound in state.items()}
