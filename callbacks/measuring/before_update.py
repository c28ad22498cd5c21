"""The moment right before an optimizer changes the weights."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def before_update(optimizer: Optimizer, function: Callable[[], object]) -> RemovableHandle:
    """Call a function at every step of an optimizer, when its gradients are there and before its weights change.

    Under Lightning's automatic optimisation the whole training step runs in the closure that `step` is given: the
    function is called behind it.

    Returns:
        What removes it again.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> handle = before_update(optimizer, lambda: print(weight.grad, weight.data))
    >>> loss = optimizer.step(lambda: weight.sum().backward())
    tensor([1., 1.]) tensor([1., 1.])
    """

    def hook(
        optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            function()
            return None

        def closure_and_function() -> Any:
            loss = closure()
            function()
            return loss

        return args[:1], kwargs | {"closure": closure_and_function}

    return optimizer.register_step_pre_hook(hook)
