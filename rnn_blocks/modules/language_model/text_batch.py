"""A batch of a language model's training stream."""

from typing import NamedTuple

from torch import Tensor


class TextBatch(NamedTuple):
    """A chunk of several streams of tokens ("lanes") read side by side.

    Attributes:
        inputs: token ids, ``(lanes, time)``, int64.
        targets: the token after each input, ``(lanes, time)``, int64; -100 where there is none (it does not count).
        num_bytes: bytes of text that the targets stand for; 0 where it is not known.
        fresh: whether the lanes start here, so that no state is carried in from the batch before.

    >>> import torch
    >>> stream = torch.tensor([[5, 7, 9, 2]])
    >>> TextBatch(inputs=stream[:, :-1], targets=stream[:, 1:]).targets.tolist()
    [[7, 9, 2]]
    """

    inputs: Tensor
    targets: Tensor
    num_bytes: float = 0.0
    fresh: bool = True
