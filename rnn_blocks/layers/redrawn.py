"""Copies with weights of their own."""

import copy
from typing import TypeVar

from torch import nn

from rnn_blocks.cells.settled import writable

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def redrawn(module: AnyModule) -> AnyModule:
    """A copy of ``module`` in which every part that has a ``reset_parameters`` has drawn its weights anew.

    >>> import torch, rnn_blocks
    >>> cell = rnn_blocks.GRUCell(3, 4)
    >>> torch.equal(redrawn(cell).weight_ih, cell.weight_ih)
    False
    """
    twin = copy.deepcopy(module)
    with writable(twin) as plain:
        for part in reversed(list(plain.modules())):  # the outer ones last: they may set their parts' weights
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return twin
