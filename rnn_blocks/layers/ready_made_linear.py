"""Layers of linear recurrences, whose steps run all at once."""

import math
from collections.abc import Sequence
from functools import partial

from typing_extensions import Unpack

from rnn_blocks.cells import LeakyIntegratorCell, LRUCell, MinGRUCell, MinLSTMCell, RGLRUCell, SRUCell
from rnn_blocks.cells.min_gru import Candidate
from rnn_blocks.cells.sru import Activation
from rnn_blocks.layers.recurrent_stack import RecurrentStack, StackOptions
from rnn_blocks.signatures import with_options_of


@with_options_of(RecurrentStack)
class LeakyIntegrator(RecurrentStack):
    """Leaky units with linear self-connections, see :class:`~rnn_blocks.LeakyIntegratorCell`.

    Args:
        time_constant: in steps, at least 1, or the shortest and the longest of a spectrum over the units.
        learned: whether the time constants are trained.

    >>> import torch
    >>> outputs, (h,) = LeakyIntegrator(3, 4, time_constant=20.0)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        time_constant: float | tuple[float, float] = (1.5, 100.0),
        learned: bool = False,
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__(
            partial(LeakyIntegratorCell, time_constant=time_constant, learned=learned),
            input_size,
            hidden_size,
            **options,
        )


@with_options_of(RecurrentStack)
class MinGRU(RecurrentStack):
    """Minimal gated recurrent units, see :class:`~rnn_blocks.MinGRUCell`.

    Args:
        candidate: ``"identity"`` or ``"positive"``.

    >>> import torch
    >>> outputs, (h,) = MinGRU(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        candidate: Candidate = "identity",
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__(partial(MinGRUCell, candidate=candidate), input_size, hidden_size, **options)


@with_options_of(RecurrentStack)
class MinLSTM(RecurrentStack):
    """Minimal long short-term memory, see :class:`~rnn_blocks.MinLSTMCell`.

    Args:
        candidate: ``"identity"`` or ``"positive"``.

    >>> import torch
    >>> outputs, (h,) = MinLSTM(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        candidate: Candidate = "identity",
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__(partial(MinLSTMCell, candidate=candidate), input_size, hidden_size, **options)


@with_options_of(RecurrentStack)
class SRU(RecurrentStack):
    """Simple recurrent units, see :class:`~rnn_blocks.SRUCell`.

    Args:
        activation: ``"tanh"``, ``"relu"`` or ``"identity"``.

    >>> import torch
    >>> outputs, (c,) = SRU(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        activation: Activation = "tanh",
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__(partial(SRUCell, activation=activation), input_size, hidden_size, **options)


@with_options_of(RecurrentStack)
class RGLRU(RecurrentStack):
    """Real-gated linear recurrent units, see :class:`~rnn_blocks.RGLRUCell`.

    >>> import torch
    >>> outputs, (h,) = RGLRU(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(self, input_size: int, hidden_size: int | Sequence[int], **options: Unpack[StackOptions]) -> None:
        super().__init__(RGLRUCell, input_size, hidden_size, **options)


@with_options_of(RecurrentStack)
class LRU(RecurrentStack):
    """Linear recurrent units with complex states, see :class:`~rnn_blocks.LRUCell`.

    Args:
        r_min: the least absolute eigenvalue at the start.
        r_max: the greatest.
        max_phase: the greatest phase, in radians.

    >>> import torch
    >>> outputs, (h,) = LRU(3, 4, r_min=0.9)(torch.randn(2, 7, 3))
    >>> outputs.shape, h.dtype
    (torch.Size([2, 7, 4]), torch.complex64)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__(
            partial(LRUCell, r_min=r_min, r_max=r_max, max_phase=max_phase), input_size, hidden_size, **options
        )
