"""A learning rate in proportion to the length of the chunk that was read."""

from typing import Any

from torch.optim import Optimizer

from rnn_blocks.checks import whole


class ChunkRate:
    """Multiplies the learning rate of one step by the length of its chunk over the length that it is meant for.

    Merity et al. (2018), section 5: where the length of a chunk is drawn, a step on a short chunk would weigh its few
    tokens like the many of a long one. A step that gathers the gradients of several chunks takes their mean length.

    Args:
        bptt: steps of a chunk that the learning rate is meant for.

    Raises:
        ValueError: for a ``bptt`` below 1.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=10.0)
    >>> rate = ChunkRate(70)
    >>> rate.read(35)
    >>> rate.scale(optimizer)
    >>> optimizer.param_groups[0]["lr"]
    5.0
    >>> rate.done()
    >>> optimizer.param_groups[0]["lr"]
    10.0
    """

    def __init__(self, bptt: int) -> None:
        self.bptt = whole("lr_for_bptt", bptt)
        self._lengths: list[int] = []
        self._scaled: list[tuple[dict[str, Any], Any]] = []  # parameter groups, and their own rates

    def read(self, length: int) -> None:
        """Notes a chunk whose gradient will be part of the next step."""
        self._lengths.append(length)

    def scale(self, optimizer: Optimizer) -> None:
        """Sets the rate of the step that is about to be made."""
        if self._scaled or not self._lengths:
            return  # an optimizer that asks for the gradient several times a step
        factor = sum(self._lengths) / len(self._lengths) / self.bptt
        for group in optimizer.param_groups:
            self._scaled.append((group, group["lr"]))
            group["lr"] = group["lr"] * factor  # another object where it is a tensor: the user's stays as it is

    def done(self) -> None:
        """Sets the rate back, and forgets the chunks of the step that was made."""
        for group, rate in self._scaled:
            group["lr"] = rate
        self._scaled, self._lengths = [], []
