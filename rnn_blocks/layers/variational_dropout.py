"""Dropout with one mask for a whole sequence."""

import torch
from torch import Tensor

from rnn_blocks.checks import number, whole
from rnn_blocks.engine import State
from rnn_blocks.layers.layer import Layer


class VariationalDropout(Layer):
    """Dropout of features that is the same at all steps of a sequence, and another for each sequence.

    Gal & Ghahramani (2016), "A theoretically grounded application of dropout in recurrent neural networks"; the
    "locked dropout" of Merity et al. (2018). In training, with noise ``u`` uniform in [0, 1) for each feature of each
    sequence::

        y_t = x_t · [u ≥ p] / (1 - p)

    and in evaluation ``y_t = x_t``. It is a layer, and goes between others in a :class:`~rnn_blocks.Stack`.

    The state is ``u``, ``(batch, size)``: the mask goes with a sequence from one chunk to the next, and into a
    checkpoint. Noise is drawn in evaluation too, so that a state fits either mode. From each reset on there is new
    noise, from torch's global generator: a call with ``resets`` draws as many numbers as its inputs have, wherever the
    resets are, and so draws in chunks what it draws in one call.

    Args:
        size: features of the inputs and of the outputs.
        p: the part of the features that is zeroed.
        each_call: draw new noise at each call in training, so at each chunk of a truncated BPTT, as Merity et al. do:
            a mask that goes with a stream for a whole epoch would train each lane on one part of the features.
        batch_first: see :class:`~rnn_blocks.Layer`.

    Raises:
        ValueError: for a ``size`` below 1, or a ``p`` outside of [0, 1).

    >>> import torch, rnn_blocks
    >>> stack = rnn_blocks.Stack([VariationalDropout(3, 0.5), rnn_blocks.LSTM(3, 4), VariationalDropout(4, 0.5)])
    >>> outputs, state = stack(torch.randn(2, 7, 3))
    >>> dropped = outputs == 0
    >>> torch.equal(dropped[:, 0], dropped[:, -1])
    True
    """

    def __init__(self, size: int, p: float, *, each_call: bool = False, batch_first: bool = True) -> None:
        whole("size", size)
        number("p", p, high=1)
        super().__init__(size, size, batch_first=batch_first)
        self.p = p
        self.each_call = each_call

    def initial_state(self, batch_size: int, like: Tensor) -> Tensor:
        """Noise, of the dtype and on the device of ``like``."""
        return torch.rand(batch_size, self.input_size, dtype=like.dtype, device=like.device)

    def run(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """All steps at once; time first."""
        assert isinstance(state, Tensor)
        if self.each_call and self.training:
            state = self.initial_state(state.shape[0], state)
        noise = state  # (batch, size)
        active = None
        if lengths is not None:
            active = torch.arange(inputs.shape[0], device=inputs.device)[:, None] < lengths  # (time, batch)
        if resets is not None:
            noise = self._noise_of_steps(noise, resets.bool() if active is None else resets.bool() & active)
            state = noise[-1]
        outputs = torch.where(noise >= self.p, inputs / (1 - self.p), 0.0) if self.training and self.p else inputs
        if active is not None:
            outputs = torch.where(active[..., None], outputs, 0.0)
        return outputs, state

    def _noise_of_steps(self, noise: Tensor, resets: Tensor) -> Tensor:
        """``(time, batch, size)``: at each step the noise of the last reset, and before the first what came in."""
        time, batch = resets.shape
        drawn = self.initial_state(time * batch, noise).view(time, *noise.shape)
        steps = torch.arange(1, time + 1, device=resets.device)[:, None]
        last = torch.where(resets, steps, 0).cummax(0).values  # (time, batch): 0 is the noise that came in
        return torch.cat([noise[None], drawn])[last, torch.arange(batch, device=last.device)]

    def extra_repr(self) -> str:
        """The size and the probability."""
        return f"{self.input_size}, p={self.p}" + (", each_call=True" if self.each_call else "")
