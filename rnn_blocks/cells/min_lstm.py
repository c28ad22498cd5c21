"""The minimal long short-term memory."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from rnn_blocks.cells.min_gru import Candidate, MinimalCell
from rnn_blocks.engine import State


class MinLSTMCell(MinimalCell):
    """The minimal LSTM of Feng et al. (2024), "Were RNNs all we needed?", section 3.2.

    An LSTM without output gate whose gates see the input alone, and are normalised to sum to 1. With
    ``f, i, n = W x_t + b``, cut into three::

        f', i' = σ(f) / (σ(f) + σ(i)), σ(i) / (σ(f) + σ(i))
        h_t = f' · h_{t-1} + i' · n

    In linear space; ``candidate="positive"`` has ``g(n)`` in the place of ``n``, see :class:`~rnn_blocks.MinGRUCell`.

    Args:
        input_size: features of each input.
        hidden_size: features of the state ``h``, which is also the output.
        candidate: ``"identity"`` or ``"positive"``.

    Raises:
        ValueError: for another ``candidate``.

    >>> import torch
    >>> output, h = MinLSTMCell(2, 3)(torch.ones(5, 2))
    >>> output.shape
    torch.Size([5, 3])
    """

    gate_names = ("f", "i", "n")

    def __init__(self, input_size: int, hidden_size: int, *, candidate: Candidate = "identity") -> None:
        super().__init__(input_size, hidden_size, num_gates=3, candidate=candidate)

    def coefficients(self, projected: State) -> tuple[Tensor, Tensor]:
        """``(…, 3 * hidden_size)`` to ``f'`` and ``i' · n``."""
        assert isinstance(projected, Tensor)
        f, i, n = projected.chunk(3, dim=-1)
        f = (logsigmoid(f) - logsigmoid(i)).sigmoid()  # σ(f) / (σ(f) + σ(i)), also where both are too small to divide
        return f, (1 - f) * self._activated(n)
