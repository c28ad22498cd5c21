"""What somebody else may change in place before a backward pass that reads it."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor


class Unchanged:
    """Tensors that are to be as they were: what autograd checks of those that it saves itself.

    Args:
        tensors: what others may have in hand.
        held: what will be read; of ``tensors`` those are watched whose memory it is, which therefore stays anyway.

    >>> import torch
    >>> given, other = torch.zeros(2, 3), torch.zeros(2, 3)
    >>> unchanged = Unchanged([given, other], [given.split(2, -1)[0]])
    >>> other.add_(1).sum().item(), unchanged.check()
    (6.0, None)
    >>> given.add_(1).sum().item()
    6.0
    >>> try:
    ...     unchanged.check()
    ... except RuntimeError as error:
    ...     print(str(error).split(":")[0])
    one of the variables needed for gradient computation has been modified by an inplace operation
    """

    def __init__(self, tensors: Iterable[Tensor], held: Iterable[Any]) -> None:
        memory = {memory_of(tensor) for tensor in held if isinstance(tensor, Tensor)}
        self._versions = [
            (tensor.detach(), tensor._version)  # detached, so that no graph is held, and of the same version for ever
            for tensor in tensors
            if memory_of(tensor) in memory and not tensor.is_inference()
        ]

    def check(self) -> None:
        """Raise where one has been changed.

        Raises:
            RuntimeError: as autograd's.
        """
        for tensor, version in self._versions:
            if tensor._version != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"a tensor of shape {tuple(tensor.shape)}, which went into or came out of a recurrent layer, is at "
                    f"version {tensor._version}; expected version {version} instead"
                )


def memory_of(tensor: Tensor) -> int:
    """What tensors that lie in one memory have in common.

    >>> import torch
    >>> given = torch.zeros(2, 3)
    >>> memory_of(given[0]) == memory_of(given), memory_of(given.clone()) == memory_of(given)
    (True, False)
    """
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:  # a sparse tensor
        return id(tensor)
