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
        if callable(closure := kwargs.get("closure")):
            return args, kwargs | {"closure": _followed(closure, function)}
        if len(args) > 1 and callable(args[1]):  # args[0] is the optimizer
            return (args[0], _followed(args[1], function), *args[2:]), kwargs
        function()
        return None

    return optimizer.register_step_pre_hook(hook)


def _followed(closure: Callable[..., Any], function: Callable[[], object]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        loss = closure(*args, **kwargs)
        function()
        return loss

    return both
