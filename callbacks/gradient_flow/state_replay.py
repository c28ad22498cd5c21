"""A recurrence run once more, step by step, to see what the gradient is at each of its hidden states.

Fused kernels hand out neither their states' gradients nor, but for the last, their states; a hook on their output sees
what the loss takes from each step directly, and nothing of what comes back through the recurrence. So a call is
recorded, what reaches its results in the training's own backward pass is caught, and the recurrence alone is run again
by a plain loop from which the rest follows. The training's own graph, random numbers and gradients stay as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from rnn_blocks.callbacks.measuring.norms import widest

Source = Literal["all", "last"]


class ReplayError(Exception):
    """A call that cannot be run again by the plain loop; its message is the reason, to be told of the layer."""


class Surroundings:
    """Random numbers and autocasting, as they are where this is made, to be had again later."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.numbers = _numbers(device)
        self.autocast = torch.is_autocast_enabled(device.type)
        self.autocast_dtype = torch.get_autocast_dtype(device.type)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within it all is as it was; after it, as it is now."""
        now = _numbers(self.device)
        try:
            _set_numbers(self.device, self.numbers)
            with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast), torch.enable_grad():
                yield
        finally:
            _set_numbers(self.device, now)


def _numbers(device: torch.device) -> list[Tensor]:
    """The state of the host's generator, and of the device's own."""
    own = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(*_which(device))]
    return [torch.get_rng_state(), *own]


def _set_numbers(device: torch.device, numbers: list[Tensor]) -> None:
    torch.set_rng_state(numbers[0])
    for state in numbers[1:]:
        torch.get_device_module(device).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> list[torch.device]:
    return [] if device.type == "mps" else [device]  # of which there is only one


class Caught:
    """The gradients that reach what a call gave, by an index for each tensor.

    Attributes:
        gradients: those that have come since `keep`.
        kept: those of the training.
        scale: by which these are scaled.
    """

    def __init__(self) -> None:
        self.gradients: dict[int, Tensor] = {}
        self.kept: dict[int, Tensor] = {}
        self.scale: Tensor | float = 1.0

    def keep(self, scale: Tensor | float) -> None:
        """Count what has come for the training; its backward passes add up."""
        if not self.gradients:
            return
        for index, gradient in self.gradients.items():
            _add(self.kept, index, gradient)
        self.gradients.clear()
        self.scale = scale

    def alias(self, index: int, tensor: Tensor) -> Tensor:
        """`tensor`, to be used in its place: the gradient of the alias is that of its uses after the call alone.

        The tensor itself may have uses within the call: the last state is a part of the output, or the other way round.
        They come last in the backward pass, so that sums are added up in the same order with the alias as without.
        """
        from rnn_blocks.engine import is_transformed

        if not tensor.requires_grad:
            return tensor
        # A view would lose its node to operations in place; transforms of torch.func know views, and no such function.
        alias: Tensor = tensor.view_as(tensor) if is_transformed() else _Alias.apply(tensor)  # type: ignore[no-untyped-call]
        # On the node and not on the tensor: hooks that others put on the tensor come before, and may change what comes.
        assert alias.grad_fn is not None
        alias.grad_fn.register_prehook(lambda gradients: self._catch(index, gradients[0]))
        return alias

    def watch(self, index: int, tensor: Tensor) -> None:
        """Catch all that reaches `tensor`, from within the call too."""
        if tensor.requires_grad:
            tensor.register_hook(partial(self._catch, index))

    def _catch(self, index: int, gradient: Tensor | None) -> None:
        if gradient is not None:
            _add(self.gradients, index, gradient.detach())


def _add(sums: dict[int, Tensor], index: int, gradient: Tensor) -> None:
    sums[index] = sums[index] + gradient if index in sums else gradient


class _Alias(torch.autograd.Function):
    """A tensor as it is, in the same memory, and no view of it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Tap:
    """A step that keeps each hidden state, and gives it the very value that it had in the training.

    Rounding differs between a kernel and a loop, and a recurrence that explodes makes much of it: after some tens of
    steps it would be elsewhere. Here each step starts where the training's own did.

    Attributes:
        hidden: ``h`` after each step, ``(rows, …)``.
        differences: what a step gave less what the training had, ``(rows, hidden_size)``.
    """

    def __init__(self, step: Callable[[Any, Any], tuple[Tensor, Any]], known: Sequence[Tensor]) -> None:
        self.step = step
        self.known = known
        self.hidden: list[Tensor] = []
        self.differences: list[Tensor] = []

    def __call__(self, projected: Any, state: Any) -> tuple[Tensor, Any]:
        """One step, as `step` is called."""
        from rnn_blocks.engine import hidden_of

        output, after = self.step(projected, state)
        if len(self.hidden) == len(self.known):
            raise ReplayError(f"was not measured: in {len(self.known)} steps of time it took more of its cell's")
        hidden, known = hidden_of(after), self.known[len(self.hidden)]
        self.differences.append(output.detach() - known)
        if output is hidden:
            # Behind autograd's back: in its eyes this is the result of the step's own operations, and it is, but for
            # the last digits. All that is computed from it, within the step too, stays so.
            output.data.copy_(known)
        self.hidden.append(hidden)
        return output, after


@dataclass(frozen=True)
class Flow:
    """``∂L/∂h_t`` of one recurrence by the distance of ``t`` from each sequence's end.

    Attributes:
        sums: over the sequences, of the squared norm of the gradient, ``(distances,)``.
        counts: how many sequences are as long, ``(distances,)``.
        error: of the repeated steps against the training's own, relative, ``()``.
    """

    sums: Tensor
    counts: Tensor
    error: Tensor


def gradients_of(roots: Sequence[tuple[Tensor, Tensor | None]], wanted: Sequence[Tensor]) -> list[Tensor]:
    """Of all `roots` with the gradients that reached them, with respect to each tensor of `wanted`; the graph stays."""
    reached = [(root, gradient) for root, gradient in roots if gradient is not None and root.requires_grad]
    usable = [tensor for tensor in wanted if tensor.requires_grad]
    if not reached or not usable:
        return [torch.zeros_like(tensor) for tensor in wanted]
    found = iter(
        torch.autograd.grad(
            [root for root, _ in reached],
            usable,
            [gradient.to(root.dtype) for root, gradient in reached],
            allow_unused=True,
            retain_graph=True,
        )
    )
    gradients = [next(found) if tensor.requires_grad else None for tensor in wanted]
    return [
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(wanted, gradients, strict=True)
    ]


def last_steps_only(gradient: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Zero but at each sequence's last step; ``(time, batch, …)`` both."""
    if gradient is None:
        return None
    steps = torch.arange(len(gradient), device=gradient.device)[:, None]
    last = steps == (len(gradient) if lengths is None else lengths) - 1
    return torch.where(last.view(*last.shape, *[1] * (gradient.dim() - 2)), gradient, 0.0)


def flow(squares: Tensor, lengths: Tensor | None, error: Tensor) -> Flow:
    """From squared norms ``(time, batch)`` in order of time to distances from each sequence's end.

    >>> found = flow(torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 0.0]]), torch.tensor([3, 2]), torch.tensor(0.0))
    >>> found.sums.tolist(), found.counts.tolist()
    ([9.0, 7.0, 1.0], [2, 2, 1])
    """
    time, batch = squares.shape
    if lengths is None:
        return Flow(squares.flip(0).sum(1), torch.full((time,), batch, device=squares.device), error)
    at = lengths - 1 - torch.arange(time, device=squares.device)[:, None]  # (distance, batch)
    alive = at >= 0
    return Flow(torch.where(alive, squares.gather(0, at.clamp(min=0)), 0.0).sum(1), alive.sum(1), error)


def squared_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Of each row of each step's gradient ``(rows, …)``: ``(time, rows)``, in the widest floating dtype."""
    stacked = torch.stack(list(gradients)).flatten(2)
    return stacked.abs().to(widest(stacked.device)).square().sum(-1)


def relative_error(differences: Tensor, known: Tensor, lengths: Tensor | None) -> Tensor:
    """``‖differences‖ / ‖known‖`` over the steps that count; ``(time, batch, …)`` both."""
    if lengths is not None:
        counts = torch.arange(len(known), device=known.device)[:, None] < lengths
        differences = torch.where(counts.view(*counts.shape, *[1] * (known.dim() - 2)), differences, 0.0)
    norms = [torch.linalg.vector_norm(tensor.abs().to(widest(tensor.device))) for tensor in (differences, known)]
    error: Tensor = norms[0] / norms[1].clamp(min=torch.finfo(norms[1].dtype).tiny)
    return error
