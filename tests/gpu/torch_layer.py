"""Torch's LSTM as a layer of this library, to train the same model with either."""

from torch import Tensor, nn

from rnn_blocks import Layer
from rnn_blocks.engine import State


class TorchLSTM(Layer):
    """``nn.LSTM`` itself, cuDNN's on a GPU.

    Args:
        input_size: features of the inputs.
        hidden_size: features of the outputs.
        num_layers: on top of each other.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__(input_size, hidden_size)
        self.module = nn.LSTM(input_size, hidden_size, num_layers)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """``h`` and ``c``, ``(batch, layers, hidden_size)`` each."""
        zeros = like.new_zeros(batch_size, self.module.num_layers, self.output_size)
        return zeros, zeros

    def run(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """Whole sequences."""
        if lengths is not None or resets is not None:
            raise NotImplementedError("TorchLSTM takes neither lengths nor resets")
        before = tuple(part.transpose(0, 1).contiguous() for part in state)
        outputs, after = self.module(inputs, before)
        return outputs, tuple(part.transpose(0, 1) for part in after)
