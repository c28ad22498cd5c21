"""Reading numbers from the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rnn_blocks.callbacks.measuring.norms import widest


def read_together(tensors: Sequence[Tensor]) -> list[list[float]]:
    """The values of several tensors ``(n,)``, in one transfer from the device to the host.

    They may differ in length, floating dtype and device; all go by way of the first one's device.

    >>> read_together([torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor([3.0], dtype=torch.float64)])
    [[1.0, 2.0], [], [3.0]]
    """
    if not tensors:
        return []
    device = tensors[0].device
    values = iter(torch.cat([tensor.to(device, widest(device)) for tensor in tensors]).tolist())
    return [[next(values) for _ in range(len(tensor))] for tensor in tensors]
