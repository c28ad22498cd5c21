"""A batch of sequences with blanks."""

from typing import NamedTuple

from torch import Tensor


class ClozeBatch(NamedTuple):
    """Sequences in which some tokens are blanked out, padded at the end.

    Attributes:
        inputs: token ids, ``(batch, time)``, int64, with the mask's id at each blank; what stands past a length is
            never read.
        targets: the token that belongs into each blank, ``(batch, time)``, int64; -100 everywhere else.
        lengths: tokens of each sequence, ``(batch,)``; ``None`` where all are as long as the batch.

    >>> import torch
    >>> mask = 9
    >>> batch = ClozeBatch(torch.tensor([[5, mask, 7]]), torch.tensor([[-100, 6, -100]]), torch.tensor([3]))
    >>> batch.inputs.shape
    torch.Size([1, 3])
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None = None
