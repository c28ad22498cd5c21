"""The layers that torch has too, under their own names."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import nn
from typing_extensions import Self, Unpack

from rnn_blocks.cells import ElmanCell, GRUCell, LSTMCell
from rnn_blocks.layers.recurrent import Engine
from rnn_blocks.layers.recurrent_stack import RecurrentStack, StackOptions
from rnn_blocks.layers.torch_weights import options_for_torch, options_of_torch, read_weights, write_weights
from rnn_blocks.signatures import with_options_of


@with_options_of(RecurrentStack)
class Elman(RecurrentStack):
    """Elman (1990) layers on top of each other, see :class:`~rnn_blocks.ElmanCell`.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.

    >>> import torch
    >>> outputs, (h,) = Elman(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape, h.shape
    (torch.Size([2, 7, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__(partial(ElmanCell, nonlinearity=nonlinearity), input_size, hidden_size, **options)
        self.nonlinearity = nonlinearity

    @classmethod
    def from_torch(cls, module: nn.RNN, *, engine: Engine = "auto") -> Self:
        """The same layers as torch's: its weights, options, dtype, device and mode.

        Raises:
            ValueError: for a module that is no ``torch.nn.RNN``.

        >>> Elman.from_torch(nn.RNN(3, 4, num_layers=2, nonlinearity="relu")).nonlinearity
        'relu'
        """
        options = options_of_torch(module, nn.RNN)
        nonlinearity: Literal["tanh", "relu"] = "tanh" if module.nonlinearity == "tanh" else "relu"
        layer = cls(module.input_size, module.hidden_size, nonlinearity=nonlinearity, engine=engine, **options)
        return read_weights(layer, module, ElmanCell)

    def to_torch(self) -> nn.RNN:
        """The same layers as a module of torch's, the second of whose biases is zero.

        Raises:
            ValueError: for what torch does not have: widths that differ, skips, other cells.

        >>> Elman(3, 4).to_torch()
        RNN(3, 4, batch_first=True)
        """
        input_size, hidden_size, options = options_for_torch(self, ElmanCell)
        module = nn.RNN(input_size, hidden_size, nonlinearity=self.nonlinearity, **options)
        return write_weights(self, module, ElmanCell)


@with_options_of(RecurrentStack)
class LSTM(RecurrentStack):
    """Long short-term memory layers on top of each other, see :class:`~rnn_blocks.LSTMCell`.

    >>> import torch
    >>> outputs, ((h1, c1), (h2, c2)) = LSTM(3, 4, num_layers=2)(torch.randn(2, 7, 3))
    >>> outputs.shape, c2.shape
    (torch.Size([2, 7, 4]), torch.Size([2, 4]))
    """

    def __init__(self, input_size: int, hidden_size: int | Sequence[int], **options: Unpack[StackOptions]) -> None:
        super().__init__(LSTMCell, input_size, hidden_size, **options)

    @classmethod
    def from_torch(cls, module: nn.LSTM, *, engine: Engine = "auto") -> Self:
        """The same layers as torch's: its weights, options, dtype, device and mode.

        Raises:
            ValueError: for a module that is no ``torch.nn.LSTM``, or one with ``proj_size``.

        >>> import torch
        >>> module, inputs = nn.LSTM(3, 4, num_layers=2, batch_first=True), torch.randn(2, 7, 3)
        >>> torch.testing.assert_close(LSTM.from_torch(module)(inputs)[0], module(inputs)[0])
        """
        layer = cls(module.input_size, module.hidden_size, engine=engine, **options_of_torch(module, nn.LSTM))
        return read_weights(layer, module, LSTMCell)

    def to_torch(self) -> nn.LSTM:
        """The same layers as a module of torch's, the second of whose biases is zero.

        Raises:
            ValueError: for what torch does not have: widths that differ, skips, other cells.

        >>> LSTM(3, 4, bidirectional=True).to_torch()
        LSTM(3, 4, batch_first=True, bidirectional=True)
        """
        input_size, hidden_size, options = options_for_torch(self, LSTMCell)
        return write_weights(self, nn.LSTM(input_size, hidden_size, **options), LSTMCell)


@with_options_of(RecurrentStack)
class GRU(RecurrentStack):
    """Gated recurrent layers on top of each other, see :class:`~rnn_blocks.GRUCell`.

    Args:
        reset_after: whether the reset gate acts after the recurrent product of the candidate, as in torch, or before.

    >>> import torch
    >>> outputs, (h,) = GRU(3, 4)(torch.randn(2, 7, 3))
    >>> outputs.shape, h.shape
    (torch.Size([2, 7, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        *,
        reset_after: bool = True,
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__(partial(GRUCell, reset_after=reset_after), input_size, hidden_size, **options)

    @classmethod
    def from_torch(cls, module: nn.GRU, *, engine: Engine = "auto") -> Self:
        """The same layers as torch's: its weights, options, dtype, device and mode.

        Raises:
            ValueError: for a module that is no ``torch.nn.GRU``.

        >>> import torch
        >>> module, inputs = nn.GRU(3, 4, batch_first=True), torch.randn(2, 7, 3)
        >>> torch.testing.assert_close(GRU.from_torch(module)(inputs)[0], module(inputs)[0])
        """
        layer = cls(module.input_size, module.hidden_size, engine=engine, **options_of_torch(module, nn.GRU))
        return read_weights(layer, module, GRUCell)

    def to_torch(self) -> nn.GRU:
        """The same layers as a module of torch's, the second of whose biases is zero but for the candidate's.

        Raises:
            ValueError: for what torch does not have: widths that differ, skips, other cells, ``reset_after=False``.

        >>> GRU(3, 4).to_torch()
        GRU(3, 4, batch_first=True)
        """
        input_size, hidden_size, options = options_for_torch(self, GRUCell)
        return write_weights(self, nn.GRU(input_size, hidden_size, **options), GRUCell)
