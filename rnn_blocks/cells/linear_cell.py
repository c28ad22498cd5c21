"""Cells whose recurrence is linear: two methods, and all steps at once."""

import torch
from torch import Tensor

from rnn_blocks.cells.cell import Cell
from rnn_blocks.engine import State, map_state, run_scan, state_tensors


class LinearCell(Cell):
    """A cell with ``h_t = a_t · h_{t-1} + b_t``, elementwise, ``a_t`` and ``b_t`` being functions of the input alone.

    A cell of your own is :meth:`coefficients` and, where the output is not ``h`` itself, :meth:`output`; its
    :meth:`Cell.step` follows from them, and layers run all steps as one scan. Both methods work on one step,
    ``(batch, …)``, and on all of them at once, ``(time, batch, …)``: what they make of a step may depend on no other.
    The state is one tensor.

    Decays close to 1 are what such cells remember by, and bfloat16 has none between 0.996 and 1. So the two methods get
    the projected inputs in at least single precision, and the state is kept in it; outputs have the dtype of the
    projected inputs (of the first tensor of these, where they are a nest).

    Args:
        input_size: features of each input.
        hidden_size: features of each output (and, by default, of the state).

    Raises:
        TypeError: for a subclass with a ``step`` of its own, which a scan would not see.

    >>> import torch, rnn_blocks
    >>> class Forgetful(LinearCell):
    ...     def __init__(self, input_size, hidden_size):
    ...         super().__init__(input_size, hidden_size)
    ...         self.gates = torch.nn.Linear(input_size, 2 * hidden_size)
    ...
    ...     def project(self, inputs):
    ...         return self.gates(inputs)
    ...
    ...     def coefficients(self, projected):
    ...         forget, candidate = projected.chunk(2, dim=-1)
    ...         return forget.sigmoid(), candidate
    >>> layer = rnn_blocks.Recurrent(Forgetful(3, 4))
    >>> outputs, h = layer(torch.randn(2, 1000, 3))
    >>> outputs.shape, h.shape
    (torch.Size([2, 1000, 4]), torch.Size([2, 4]))
    """

    fusable = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.output_is_hidden = cls.output is LinearCell.output
        if "step" in vars(cls):
            raise TypeError(
                f"{cls.__name__} is a LinearCell, whose step follows from its `coefficients` and `output`: "
                "put them there, or derive from Cell"
            )

    def coefficients(self, projected: State) -> tuple[Tensor, Tensor]:
        """``a`` and ``b`` from :meth:`Cell.project`'s result: ``(…, features)``, or for ``a`` what broadcasts to it."""
        raise NotImplementedError(f"{type(self).__name__} needs a `coefficients(projected) -> (decay, drive)`")

    def output(self, projected: State, h: Tensor) -> Tensor:
        """The outputs, ``(…, hidden_size)``: by default ``h``."""
        return h

    def step(self, projected: State, state: State) -> tuple[Tensor, State]:
        """One time step: a slice of :meth:`project`'s result and ``h``, to the output and the next ``h``."""
        assert isinstance(state, Tensor)
        precise = map_state(at_least_single, projected)
        decay, drive = self.coefficients(precise)
        h = decay * state + drive
        return self._output(projected, precise, h), h

    def scan(
        self, inputs: Tensor, state: State, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """All steps at once.

        Args:
            inputs: ``(time, batch, input_size)``.
            state: ``h`` before the first step.
            lengths: steps that count in each sequence, ``(batch,)``; past them outputs are zero and the state stays.
            resets: ``(time, batch)``, true where the state starts afresh before the step. Decays are multiplied, so a
                state that is not finite stays so through a reset.

        Returns:
            The outputs, ``(time, batch, hidden_size)``, and ``h`` after the last step (of each sequence).
        """
        assert isinstance(state, Tensor)
        active = None
        if lengths is not None:
            active = (torch.arange(inputs.shape[0], device=inputs.device)[:, None] < lengths)[..., None]
            inputs = torch.where(active, inputs, 0.0)  # whatever stands past a length, its gradient is zero
        fresh = None if resets is None else self.initial_state(inputs.shape[1], inputs)
        assert fresh is None or isinstance(fresh, Tensor)
        projected = self.project(inputs)
        precise = map_state(at_least_single, projected)
        decay, drive = self.coefficients(precise)
        states, after = run_scan(decay, drive, state, fresh=fresh, lengths=lengths, resets=resets)
        outputs = self._output(projected, precise, states)
        return outputs if active is None else torch.where(active, outputs, 0.0), after

    def initial_state(self, batch_size: int, like: Tensor) -> Tensor:
        """Zeros, on the device of ``like`` and of its dtype or, if that is half precision, float32."""
        return at_least_single(like.new_zeros(batch_size, self.hidden_size))

    def _output(self, projected: State, precise: State, h: Tensor) -> Tensor:
        return self.output(precise, h).to(state_tensors(projected)[0].dtype)


def at_least_single(tensor: Tensor) -> Tensor:
    """``tensor``, in float32 where it is half precision.

    >>> at_least_single(torch.ones(1, dtype=torch.bfloat16)).dtype, at_least_single(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
