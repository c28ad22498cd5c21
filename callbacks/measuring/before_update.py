"""The moment right before an optimizer changes the weights."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class Handle:
    """What removes a function from an optimizer's steps again."""

    def __init__(self, *handles: RemovableHandle) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()


def before_update(optimizer: Optimizer, function: Callable[[], object]) -> Handle:
    """Call a function at every step of an optimizer, when its gradients are there and before its weights change.

    Under Lightning's automatic optimisation the whole training step runs in the closure that `step` is given: the
    function is called behind it.

    An optimizer whose `step` calls that of the class that it is derived from makes one step, though torch calls the
    hooks of both.

    Returns:
        What removes it again.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> handle = before_update(optimizer, lambda: print(weight.grad, weight.data))
    >>> loss = optimizer.step(lambda: weight.sum().backward())
    tensor([1., 1.]) tensor([1., 1.])
    """
    stepping = False

    def followed(closure: Callable[..., Any]) -> Callable[..., Any]:
        def both(*args: Any, **kwargs: Any) -> Any:
            nonlocal stepping
            try:
                loss = closure(*args, **kwargs)
            except BaseException:
                stepping = False  # there is no end of this step
                raise
            function()
            return loss

        return both

    def begin(
        optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        nonlocal stepping
        if stepping:
            return None
        stepping = True
        if callable(closure := kwargs.get("closure")):
            return args, kwargs | {"closure": followed(closure)}
        if len(args) > 1 and callable(args[1]):  # args[0] is the optimizer
            return (args[0], followed(args[1]), *args[2:]), kwargs
        function()
        return None

    def end(*_: object) -> None:
        nonlocal stepping
        stepping = False

    return Handle(optimizer.register_step_pre_hook(begin), optimizer.register_step_post_hook(end))
