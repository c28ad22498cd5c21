"""A method as a module's call."""

from typing import Any

from torch import nn


class MethodCall(nn.Module):
    """A method of a module as the call of another, which is what ``torch.func.functional_call`` takes.

    Args:
        module: whose method it is; its parameters are this module's, under ``"module."``.
        method: the method's name.

    >>> import torch
    >>> call = MethodCall(nn.Linear(2, 1), "forward")
    >>> weights = {"module.weight": torch.ones(1, 2), "module.bias": torch.zeros(1)}
    >>> torch.func.functional_call(call, weights, (torch.tensor([3.0, 4.0]),)).item()
    7.0
    """

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def __call__(self, *arguments: Any) -> Any:
        """No module of anybody's: hooks of all modules, as profilers have them, do not see it."""
        return self.forward(*arguments)

    def forward(self, *arguments: Any) -> Any:
        """What the method returns."""
        return getattr(self.module, self.method)(*arguments)
