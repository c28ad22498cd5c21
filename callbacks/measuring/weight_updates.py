"""How far an optimizer's step moved the weights."""

import torch
from torch import Tensor

from rnn_blocks.callbacks.measuring.norms import tensor_norms


class WeightsBefore:
    """A copy of weights, to compare them with after a step.

    Args:
        weights: one or more, dense or `DTensor`; as much memory as they take is taken until `compare`.

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> before = WeightsBefore([weight])
    >>> _ = weight.data.mul_(2)
    >>> [norms.tolist() for norms in before.compare()]
    [[5.0], [5.0]]
    """

    @torch.no_grad()
    def __init__(self, weights: list[Tensor]) -> None:
        self._weights = weights
        self._copies = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def compare(self) -> tuple[Tensor, Tensor]:
        """Norm of each weight as it was, and of what has been added to it since, ``(weights,)`` each; once only."""
        copies, self._copies = self._copies, []
        norms = tensor_norms(copies)
        for copy, weight in zip(copies, self._weights, strict=True):
            copy.sub_(weight.detach())
        return norms, tensor_norms(copies)
