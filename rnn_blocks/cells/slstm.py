"""The scalar long short-term memory of xLSTM."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, softplus

from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.engine import State

EXACT = 40.0  # from here on log(1 + exp(e)) is e to the last digit, of float64 too
EMPTY = -1e4  # the logarithm of the weight of a memory that holds nothing: within range in every dtype


class SLSTMCell(WeightedCell):
    """The scalar long short-term memory (sLSTM) of Beck et al. (2024), "xLSTM: extended long short-term memory", eqs.
    8-17: an exponential input gate lets a step outweigh all that was stored before, and a normaliser keeps the result
    in range.

    With ``i, f, z, o = W x_t + U h_{t-1} + b``, cut into four, the paper has::

        C_t = f' · C_{t-1} + i' · tanh(z)        i' = exp(i)
        N_t = f' · N_{t-1} + i'                  f' = σ(f) or exp(f)
        h_t = σ(o) · C_t / N_t

    and, as ``exp`` overflows, carries ``C`` and ``N`` divided by the exponential of a stabiliser, a running maximum.
    Here the stabiliser is ``m = log N``, so that the normaliser becomes one, needs no place in the state, and leaves
    the quotient ``c = C / N``: the same function, with nothing to overflow or to divide by::

        m_f = m_{t-1} + log f'
        m_t = i + log(1 + exp(m_f - i))          = log N_t
        r = σ(m_f - i)                           = f' · N_{t-1} / N_t
        c_t = tanh(z) + r · (c_{t-1} - tanh(z))  = C_t / N_t
        h_t = σ(o) · c_t

    The state is ``(h, c, m)``; the output is ``h``. ``h`` and ``c`` start at zero and ``m`` at -10,000, for a memory
    that weighs nothing: the first step writes all of ``c``.

    Args:
        input_size: features of each input.
        hidden_size: features of ``h``, ``c`` and ``m``.
        forget_gate: ``"sigmoid"`` or ``"exponential"``. The paper allows both; the authors' own code has the
            sigmoid.
        num_heads: how many groups the units fall into, within which alone ``h`` is fed back: ``U`` is block-diagonal
            for each gate. ``weight_hh`` holds the blocks alone: ``(4 * hidden_size, hidden_size / num_heads)``.

    Raises:
        ValueError: for another forget gate, and where ``num_heads`` does not divide ``hidden_size``.

    >>> output, (h, c, m) = SLSTMCell(2, 4, num_heads=2)(torch.full((5, 2), 1e6))
    >>> output.shape, bool(output.isfinite().all())
    (torch.Size([5, 4]), True)
    """

    gate_names = ("i", "f", "z", "o")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        forget_gate: Literal["sigmoid", "exponential"] = "sigmoid",
        num_heads: int = 1,
    ) -> None:
        if forget_gate not in ("sigmoid", "exponential"):
            raise ValueError(f"forget_gate must be 'sigmoid' or 'exponential', got {forget_gate!r}")
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"num_heads must divide hidden_size, {hidden_size}, got {num_heads}")
        super().__init__(input_size, hidden_size, num_gates=4)
        self.forget_gate = forget_gate
        self.input_block = 0
        self.forget_block = 1 if forget_gate == "sigmoid" else None  # an exponential one keeps nothing as it is
        self.num_heads = num_heads
        if num_heads > 1:
            self.weight_hh = nn.Parameter(torch.empty(4 * hidden_size, hidden_size // num_heads))
            self.reset_parameters()

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """``(batch, 4 * hidden_size)`` and ``(h, c, m)`` to ``h`` and the next ``(h, c, m)``."""
        assert isinstance(projected, Tensor)
        _, c, m = state
        assert isinstance(c, Tensor)
        assert isinstance(m, Tensor)
        i, f, z, o = (projected + self._recurrent(hidden)).chunk(4, dim=-1)
        m_f = m + (logsigmoid(f) if self.forget_gate == "sigmoid" else f)
        e = m_f - i
        new = z.tanh()
        c = new + e.sigmoid() * (c - new)
        m = i + softplus(e, threshold=EXACT)
        h = o.sigmoid() * c
        return h, (h, c, m)

    def _recurrent(self, hidden: Tensor) -> Tensor:
        if self.num_heads == 1:
            return linear(hidden, self.weight_hh)
        size = self.hidden_size // self.num_heads
        heads = hidden.unflatten(-1, (self.num_heads, size))  # (batch, head, column)
        weight = self.weight_hh.view(4, self.num_heads, size, size)  # (gate, head, row, column)
        return torch.einsum("bhc,ghrc->bghr", heads, weight).flatten(1)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """Zeros for ``h`` and ``c``, a weight of nothing for ``m``, of the dtype and on the device of ``like``."""
        zeros = like.new_zeros(batch_size, self.hidden_size)
        return zeros, zeros, torch.full_like(zeros, EMPTY)
