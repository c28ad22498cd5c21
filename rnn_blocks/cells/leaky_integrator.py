"""Leaky integrators: units that average their input over a time of their own."""

import math

import torch
from torch import Tensor, nn

from rnn_blocks.cells.linear_cell import LinearCell
from rnn_blocks.checks import is_within
from rnn_blocks.engine import State, input_product


class LeakyIntegratorCell(LinearCell):
    """Leaky units with linear self-connections: Mozer (1992); Goodfellow et al., *Deep Learning*, section 10.9.2.

    ::

        h_t = (1 - 1/τ) · h_{t-1} + 1/τ · (W x_t + b)

    ``τ`` is how many steps a unit remembers: where the input jumps, ``h`` has gone ``1 - 1/e`` of the way after some
    ``τ`` steps. A pair of time constants spreads the units over many time scales, as in El Hihi & Bengio (1996).

    Args:
        input_size: features of each input.
        hidden_size: units: features of the state ``h``, which is also the output.
        time_constant: ``τ`` in steps, at least 1; or ``(shortest, longest)``, between which the units' own are spaced
            evenly on a logarithmic scale, the first unit's the shortest.
        learned: whether each unit's ``τ`` is a parameter, as ``τ = 1 + exp(ρ)``: it stays above 1, so starts there.

    Raises:
        ValueError: for a time constant that is not finite, below 1, or 1 and learned; for a pair out of order.

    >>> LeakyIntegratorCell(2, 3, time_constant=(1, 100)).time_constants.round()
    tensor([  1.,  10., 100.])
    """

    recurrent_names = ("log_excess",)
    log_excess: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        time_constant: float | tuple[float, float] = (1.5, 100.0),
        learned: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        ends = tuple(time_constant) if isinstance(time_constant, tuple | list) else (time_constant,) * 2
        if len(ends) != 2 or not all(is_within(end, 1, above=learned) for end in ends) or ends[0] > ends[1]:
            least = "above 1, where they are learned" if learned else "at least 1"
            raise ValueError(
                f"time_constant must be a number of steps or a pair (shortest, longest), {least}, got {time_constant!r}"
            )
        self.shortest, self.longest = (float(end) for end in ends)
        self.learned = learned
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))
        excess = torch.empty(hidden_size)  # ρ
        if learned:
            self.log_excess = nn.Parameter(excess)
        else:
            self.register_buffer("log_excess", excess)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, uniform within ``±1/√input_size``, and put the time constants where they started."""
        bound = 1 / math.sqrt(self.input_size)
        nn.init.uniform_(self.weight_ih, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        logs = torch.linspace(math.log(self.shortest), math.log(self.longest), self.hidden_size, dtype=torch.float64)
        with torch.no_grad():
            self.log_excess.copy_(torch.expm1(logs).log())

    @property
    def time_constants(self) -> Tensor:
        """``τ`` of each unit, in steps: ``(hidden_size,)``."""
        return 1 + self.log_excess.exp()

    def project(self, inputs: Tensor) -> Tensor:
        """``W x + b`` for all steps in one product: ``(time, batch, hidden_size)``."""
        return input_product(inputs, self.weight_ih, self.bias)

    def coefficients(self, projected: State) -> tuple[Tensor, Tensor]:
        """``(…, hidden_size)`` to ``1 - 1/τ``, ``(hidden_size,)``, and the input's part."""
        assert isinstance(projected, Tensor)
        excess = self.log_excess.to(projected.dtype)
        return excess.sigmoid(), (-excess).sigmoid() * projected  # 1/τ = 1 / (1 + e^ρ)

    def extra_repr(self) -> str:
        """The sizes and the time constants."""
        spectrum = f"{self.shortest:g}" if self.shortest == self.longest else f"({self.shortest:g}, {self.longest:g})"
        return f"{super().extra_repr()}, time_constant={spectrum}" + (", learned=True" if self.learned else "")
