"""Paths around the layers of a stack."""

from typing import Literal, TypeAlias

from torch import Tensor, nn

Skip: TypeAlias = Literal["residual", "dense", "highway", "input"]
SKIPS: tuple[Skip, ...] = ("residual", "dense", "highway", "input")


def carry(input_size: int, output_size: int) -> nn.Module:
    """What passes a layer by: the layer's input as it is, or a learned projection of it where the widths differ.

    The projection has no bias, so that what is zero stays zero.

    >>> carry(4, 4), carry(3, 4)
    (Identity(), Linear(in_features=3, out_features=4, bias=False))
    """
    return nn.Identity() if input_size == output_size else nn.Linear(input_size, output_size, bias=False)


class ResidualPath(nn.Module):
    """``y = layer(x) + x``, or ``+ P x`` where the widths differ.

    He et al. (2016); between recurrent layers: Wu et al. (2016).

    Args:
        input_size: features that the layer takes.
        output_size: features that it gives.

    >>> import torch
    >>> ResidualPath(2, 2)(torch.ones(1, 2), torch.full((1, 2), 3.0))
    tensor([[4., 4.]])
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.carry = carry(input_size, output_size)

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """A layer's ``(…, input_size)`` and ``(…, output_size)`` to the latter with the path added."""
        passed: Tensor = self.carry(inputs)
        return outputs + passed


class HighwayPath(nn.Module):
    """A highway around a layer (Srivastava et al. 2015, eq. 3).

    ``y = t · layer(x) + (1 - t) · x`` with ``t = σ(W x + b)``, and ``P x`` for the second ``x`` where the widths
    differ. The bias ``b`` starts at -1: at first most passes by, which is what lets deep stacks begin to learn.

    Args:
        input_size: features that the layer takes.
        output_size: features that it gives.

    >>> import torch
    >>> path = HighwayPath(2, 2)
    >>> torch.nn.init.zeros_(path.gate.weight).shape, path.gate.bias.tolist()
    (torch.Size([2, 2]), [-1.0, -1.0])
    >>> path(torch.zeros(1, 2), torch.ones(1, 2)).tolist() == torch.tensor([[-1.0, -1.0]]).sigmoid().tolist()
    True
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.carry = carry(input_size, output_size)
        self.gate = nn.Linear(input_size, output_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the gate's weights anew, and put its bias at -1."""
        self.gate.reset_parameters()
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """A layer's ``(…, input_size)`` and ``(…, output_size)`` to what leaves the highway, ``(…, output_size)``."""
        t: Tensor = self.gate(inputs).sigmoid()
        passed: Tensor = self.carry(inputs)
        return passed + t * (outputs - passed)
