"""How often training feeds the decoder the true token, and how often its own guess."""

import math
from typing import Literal, TypeAlias, get_args

from rnn_blocks.checks import number

Decay: TypeAlias = Literal["linear", "exponential", "inverse-sigmoid"]


class ScheduledSampling:
    """The share of true tokens among the decoder's inputs, falling as training goes on.

    Bengio et al. (2015), "Scheduled sampling for sequence prediction with recurrent neural networks", section 2.4,
    with ``i`` the training step::

        ε_i = max(floor, 1 - i / k)                  linear: k steps down to 0
        ε_i = max(floor, exp(-i / k))                exponential: by e in k steps; the paper's base is exp(-1 / k)
        ε_i = max(floor, k / (k + exp(i / k)))       inverse-sigmoid: flat, then down around step k ln k

    Args:
        decay: which of them.
        k: how many steps the decay takes, as said above.
        floor: the share that is always true.

    Raises:
        ValueError: for another decay, ``k`` not positive, or a floor outside [0, 1].

    >>> sampling = ScheduledSampling("linear", k=1000, floor=0.25)
    >>> [sampling.true_share(step) for step in (0, 500, 2000)]
    [1.0, 0.5, 0.25]
    """

    def __init__(self, decay: Decay = "inverse-sigmoid", *, k: float = 2000.0, floor: float = 0.0) -> None:
        if decay not in get_args(Decay):
            raise ValueError(f"decay must be one of {', '.join(map(repr, get_args(Decay)))}, got {decay!r}")
        number("k", k, above=True)
        number("floor", floor, high=1, up_to=True)
        self.decay = decay
        self.k = k
        self.floor = floor

    def true_share(self, step: int) -> float:
        """ε after so many training steps."""
        i, k = float(step), self.k
        if self.decay == "linear":
            share = 1 - i / k
        elif self.decay == "exponential":
            share = math.exp(-i / k)
        else:
            share = k / (k + math.exp(min(i / k, 700.0)))  # exp(709) is the end of float64
        return max(self.floor, share)

    def __repr__(self) -> str:
        """As it was made."""
        return f"{type(self).__name__}({self.decay!r}, k={self.k}, floor={self.floor})"
