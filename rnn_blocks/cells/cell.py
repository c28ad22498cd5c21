"""The cell face: one step of time."""

from itertools import takewhile

from torch import Tensor, nn

from rnn_blocks.checks import whole
from rnn_blocks.engine import State, map_state, with_hidden

STEP_METHODS = ("project", "project_step", "step", "advance", "coefficients", "output")
"""What a step is made of; the last two in cells whose recurrence is linear."""


class Cell(nn.Module):
    """One step of a recurrence.

    A cell of your own needs :meth:`step`, in plain torch, and nothing else: autograd does the rest. What needs no state
    can move into :meth:`project`, which sees all time steps at once and so does them in one product; a state other than
    one ``(batch, hidden_size)`` tensor is told by :meth:`initial_state`. Its first tensor is ``h``, what recurrent
    connections read.

    Args:
        input_size: features of each input.
        hidden_size: features of each output (and, by default, of the state).

    Raises:
        ValueError: where a size is not positive.

    >>> import torch
    >>> class Decay(Cell):
    ...     def step(self, projected, state):
    ...         state = 0.5 * state + projected
    ...         return state, state
    >>> cell = Decay(1, 1)
    >>> output, state = cell(torch.ones(1, 1), torch.ones(1, 1))
    >>> output
    tensor([[1.5000]])
    """

    fusable: bool = False
    """Whether ``engine="auto"`` may take the fused engine: the step is a pure function of tensors.

    It is said by the class that says what a step is: a subclass of yours that changes a step says it anew.
    """

    native_on: frozenset[str] = frozenset()
    """The types of device on which :meth:`native` is the fastest way to train."""

    native_from: int = 0
    """From how many steps on, of all sequences of a call together, it is so on CPU."""

    output_is_hidden: bool = False
    """Whether the output is ``h`` in another dtype; wrappers that change ``h`` see for themselves where it is ``h``."""

    gate_names: tuple[str, ...] = ()
    """Letters of the blocks of ``hidden_size`` rows that the stacked weights hold; none where there is one block."""

    recurrent_names: tuple[str, ...] = ("weight_hh",)
    """Those of the cell's own parameters that a state reaches the next through."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for kind in takewhile(lambda kind: "fusable" not in vars(kind), cls.__mro__):
            if not kind.__module__.startswith("rnn_blocks.") and not vars(kind).keys().isdisjoint(STEP_METHODS):
                cls.fusable = False

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = whole("input_size", input_size)
        self.hidden_size = whole("hidden_size", hidden_size)

    def project(self, inputs: Tensor) -> State:
        """All that needs no state: ``(time, batch, input_size)`` to what :meth:`step` takes.

        The result is a tensor ``(time, batch, …)`` or a nest of such; a step is given a slice of each.
        """
        return inputs

    def project_step(self, inputs: Tensor) -> State:
        """:meth:`project` of one step, ``(batch, input_size)``."""
        return map_state(lambda tensor: tensor.squeeze(0), self.project(inputs.unsqueeze(0)))

    def step(self, projected: State, state: State) -> tuple[Tensor, State]:
        """One time step: a slice of :meth:`project`'s result and the state, to the output and the next state."""
        raise NotImplementedError(f"{type(self).__name__} needs a `step(projected, state) -> (output, state)`")

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """A step in which the recurrent connections read ``hidden`` in place of the state's own ``h``.

        Wrappers that change what is read, and not what is remembered, call it: recurrent dropout, skips through time.
        By default ``hidden`` takes the place of ``h`` altogether; a cell whose ``h`` is memory as well (a GRU's) says
        here which is which.
        """
        return self.step(projected, with_hidden(state, hidden))

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """The state before the first step: zeros, of the dtype and on the device of ``like``."""
        return like.new_zeros(batch_size, self.hidden_size)

    def begin(self, state: State) -> State:
        """What a call makes of the state that it is given, before its first step: by default nothing else.

        A cell whose noise lasts for one call draws it here: what :meth:`project` draws would be drawn at each step
        where a wrapper projects step by step.
        """
        return state

    def native(self, inputs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State] | None:
        """All steps through a kernel of torch's own, or ``None`` where there is none for this cell."""
        return None

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step from raw inputs, ``(batch, input_size)``.

        Raises:
            ValueError: for inputs without a batch.
        """
        if inputs.dim() < 2:
            raise ValueError(
                f"a cell takes inputs (batch, input_size), got a tensor of shape {tuple(inputs.shape)}: "
                "inputs.unsqueeze(0) is a batch of one"
            )
        if state is None:
            state = self.initial_state(inputs.shape[0], inputs)
        return self.step(self.project_step(inputs), self.begin(state))

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.input_size}, {self.hidden_size}"
