"""The linear recurrent unit."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rnn_blocks.cells.linear_cell import LinearCell, at_least_single
from rnn_blocks.checks import is_within
from rnn_blocks.engine import State, input_product


class LRUCell(LinearCell):
    """The linear recurrent unit of Orvieto et al. (2023), "Resurrecting recurrent neural networks for long sequences".

    A diagonal recurrence of complex numbers (section 3 and eqs. 5–7)::

        λ = exp(-exp(ν) + i exp(θ))
        h_t = λ · h_{t-1} + γ · (B x_t)
        y_t = Re(C h_t) + D x_t

    ``|λ| < 1`` whatever ``ν`` is. The eigenvalues start uniform on the ring of ``r_min`` to ``r_max`` (lemma 3.2), with
    phases in ``[0, max_phase]``; ``γ``, kept as its logarithm, starts at ``√(1 - |λ|²)``, so that the state is of
    the input's size (eq. 7).

    The state is complex, ``hidden_size`` numbers; the output is ``y``. All parameters are real, ``B`` and ``D`` the
    rows of one matrix, ``C``'s parts the columns of another. Half precision and autocast leave the recurrence in
    complex64; float64 inputs have complex128.

    Args:
        input_size: features of each input.
        hidden_size: complex numbers in the state ``h``, and features of each output.
        r_min: the least ``|λ|`` at the start.
        r_max: the greatest.
        max_phase: the greatest phase, in radians.

    Raises:
        ValueError: unless ``0 <= r_min < r_max <= 1`` and ``0 < max_phase <= 2π``.

    >>> output, h = LRUCell(2, 3)(torch.ones(5, 2))
    >>> output.shape, h.dtype
    (torch.Size([5, 3]), torch.complex64)
    """

    recurrent_names = ("nu", "theta")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
    ) -> None:
        super().__init__(input_size, hidden_size)
        if not is_within(r_min, high=1) or not is_within(r_max, high=1, up_to=True) or r_min >= r_max:
            raise ValueError(f"the ring must have 0 <= r_min < r_max <= 1, got r_min={r_min!r} and r_max={r_max!r}")
        if not is_within(max_phase, high=2 * math.pi, above=True, up_to=True):
            raise ValueError(f"max_phase must be above 0 and at most 2π, got {max_phase!r}")
        self.r_min = r_min
        self.r_max = r_max
        self.max_phase = max_phase
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden_size, input_size))  # Re B, Im B, D
        self.weight_ho = nn.Parameter(torch.empty(hidden_size, 2 * hidden_size))  # Re C, -Im C
        self.nu = nn.Parameter(torch.empty(hidden_size))
        self.theta = nn.Parameter(torch.empty(hidden_size))
        self.log_gamma = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the eigenvalues anew, and the weights: normal, of variance 1 / what goes into each (section 3.2)."""
        nn.init.normal_(self.weight_ih[: 2 * self.hidden_size], std=1 / math.sqrt(2 * self.input_size))
        nn.init.normal_(self.weight_ih[2 * self.hidden_size :], std=1 / math.sqrt(self.input_size))
        nn.init.normal_(self.weight_ho, std=1 / math.sqrt(self.hidden_size))
        tiny = torch.finfo(torch.float32).eps  # |λ| = 0 and 1, and phase 0, have no finite logarithms
        with torch.no_grad():
            squared = torch.empty_like(self.nu, dtype=torch.float64).uniform_(self.r_min**2, self.r_max**2)
            squared.clamp_(tiny, 1 - tiny)
            phase = torch.empty_like(squared).uniform_(0, self.max_phase).clamp_(min=tiny)
            self.nu.copy_((-0.5 * squared.log()).log())
            self.theta.copy_(phase.log())
            self.log_gamma.copy_(0.5 * (-squared).log1p())

    def eigenvalues(self) -> Tensor:
        """``λ``, complex, ``(hidden_size,)``, in at least single precision."""
        nu, theta = at_least_single(self.nu), at_least_single(self.theta)
        return torch.polar((-nu.exp()).exp(), theta.exp())

    def project(self, inputs: Tensor) -> Tensor:
        """``Re B x``, ``Im B x`` and ``D x`` in one product: ``(time, batch, 3 * hidden_size)``."""
        return input_product(inputs, self.weight_ih)

    def coefficients(self, projected: State) -> tuple[Tensor, Tensor]:
        """``λ``, ``(hidden_size,)``, and ``γ · (B x)``."""
        assert isinstance(projected, Tensor)
        real, imaginary, _ = projected.chunk(3, dim=-1)
        gamma = self.log_gamma.to(projected.dtype).exp()
        return self.eigenvalues(), torch.complex(gamma * real, gamma * imaginary)

    def output(self, projected: State, h: Tensor) -> Tensor:
        """``Re(C h) + D x``."""
        assert isinstance(projected, Tensor)
        _, _, passed = projected.chunk(3, dim=-1)
        parts = torch.cat([h.real, h.imag], dim=-1).to(self.weight_ho.dtype)  # (…, 2 * hidden_size)
        return linear(parts, self.weight_ho) + passed

    def initial_state(self, batch_size: int, like: Tensor) -> Tensor:
        """Complex zeros, of the precision of ``like``, at least complex64, and on its device."""
        zeros = super().initial_state(batch_size, like)
        return torch.complex(zeros, zeros)

    def extra_repr(self) -> str:
        """The sizes and the ring."""
        return f"{super().extra_repr()}, r_min={self.r_min:g}, r_max={self.r_max:g}, max_phase={self.max_phase:g}"
