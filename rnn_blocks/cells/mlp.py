"""Nonlinear layers, one on the other."""

from itertools import pairwise
from typing import Literal, TypeAlias

from torch import Tensor, nn

from rnn_blocks.checks import whole

Nonlinearity: TypeAlias = Literal["tanh", "relu"]


class MLP(nn.Module):
    """Nonlinear layers, orthogonal at first.

    Args:
        input_size: features of each input.
        output_size: features of each output, the last layer's units.
        layers: how many.
        width: units of each layer but the last; by default ``output_size``.
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Raises:
        ValueError: for fewer than one layer, a size below 1, or another nonlinearity.

    >>> import torch
    >>> MLP(3, 4, 2, width=5)(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        layers: int,
        *,
        width: int | None = None,
        nonlinearity: Nonlinearity = "tanh",
    ) -> None:
        super().__init__()
        named = {"layers": layers, "input_size": input_size, "output_size": output_size}
        named["width"] = width = output_size if width is None else width
        for name, number in named.items():
            whole(name, number)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        sizes = [input_size, *[width] * (layers - 1), output_size]
        self.layers = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(sizes)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(…, input_size)`` to ``(…, output_size)``."""
        for layer in self.layers:
            inputs = layer(inputs)
            inputs = inputs.tanh() if self.nonlinearity == "tanh" else inputs.relu()
        return inputs

    def extra_repr(self) -> str:
        """The nonlinearity."""
        return f"nonlinearity={self.nonlinearity!r}"
