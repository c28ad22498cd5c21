"""Gated layers beyond torch's, each a stack of one kind of cell."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from typing_extensions import Unpack

from rnn_blocks.cells import IndRNNCell, LayerNormGRUCell, LayerNormLSTMCell, PeepholeLSTMCell, RHNCell, SLSTMCell
from rnn_blocks.layers.recurrent_stack import RecurrentStack, StackOptions
from rnn_blocks.signatures import with_options_of


@with_options_of(RecurrentStack)
class PeepholeLSTM(RecurrentStack):
    """Long short-term memory layers whose gates see the cell, see :class:`~rnn_blocks.PeepholeLSTMCell`.

    >>> import torch
    >>> outputs, ((h, c),) = PeepholeLSTM(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(self, input_size: int, hidden_size: int | Sequence[int], **options: Unpack[StackOptions]) -> None:
        super().__init__(PeepholeLSTMCell, input_size, hidden_size, **options)


@with_options_of(RecurrentStack)
class LayerNormLSTM(RecurrentStack):
    """Long short-term memory layers with layer normalisation, see :class:`~rnn_blocks.LayerNormLSTMCell`.

    Args:
        eps: added to each variance.

    >>> import torch
    >>> outputs, ((h, c),) = LayerNormLSTM(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self, input_size: int, hidden_size: int | Sequence[int], *, eps: float = 1e-5, **options: Unpack[StackOptions]
    ) -> None:
        super().__init__(partial(LayerNormLSTMCell, eps=eps), input_size, hidden_size, **options)


@with_options_of(RecurrentStack)
class LayerNormGRU(RecurrentStack):
    """Gated recurrent layers with layer normalisation, see :class:`~rnn_blocks.LayerNormGRUCell`.

    Args:
        eps: added to each variance.

    >>> import torch
    >>> outputs, (h,) = LayerNormGRU(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self, input_size: int, hidden_size: int | Sequence[int], *, eps: float = 1e-5, **options: Unpack[StackOptions]
    ) -> None:
        super().__init__(partial(LayerNormGRUCell, eps=eps), input_size, hidden_size, **options)


@with_options_of(RecurrentStack)
class IndRNN(RecurrentStack):
    """Independently recurrent layers, see :class:`~rnn_blocks.IndRNNCell`.

    Args:
        nonlinearity: ``"relu"`` or ``"tanh"``.

    >>> import torch
    >>> outputs, (h1, h2) = IndRNN(3, 4, num_layers=2)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        nonlinearity: Literal["relu", "tanh"] = "relu",
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__(partial(IndRNNCell, nonlinearity=nonlinearity), input_size, hidden_size, **options)


@with_options_of(RecurrentStack)
class SLSTM(RecurrentStack):
    """Scalar long short-term memory layers of xLSTM, see :class:`~rnn_blocks.SLSTMCell`.

    Args:
        forget_gate: ``"sigmoid"`` or ``"exponential"``.
        num_heads: how many groups the units fall into, within which alone ``h`` is fed back.

    >>> import torch
    >>> outputs, ((h, c, m),) = SLSTM(3, 4, num_heads=2)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        forget_gate: Literal["sigmoid", "exponential"] = "sigmoid",
        num_heads: int = 1,
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__(
            partial(SLSTMCell, forget_gate=forget_gate, num_heads=num_heads), input_size, hidden_size, **options
        )


@with_options_of(RecurrentStack)
class RHN(RecurrentStack):
    """Recurrent highway networks on top of each other, see :class:`~rnn_blocks.RHNCell`.

    Args:
        depth: how many highway layers a step has.
        transform_bias: what the biases of the transform gates start at.

    >>> import torch
    >>> outputs, (h,) = RHN(3, 4, depth=3)(torch.randn(2, 7, 3))
    >>> outputs.shape
    torch.Size([2, 7, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        depth: int = 5,
        transform_bias: float = -2.0,
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__(
            partial(RHNCell, depth=depth, transform_bias=transform_bias), input_size, hidden_size, **options
        )
