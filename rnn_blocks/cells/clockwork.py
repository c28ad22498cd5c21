"""Groups of units that update at periods of their own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.wrapper import CellWrapper, first_state, map_units, with_output
from rnn_blocks.checks import whole
from rnn_blocks.engine import State, hidden_of


class Clockwork(CellWrapper):
    """Clockwork units around any cell: groups of units that update at periods of their own and else stay as they are.

    Koutník et al. (2014), "A clockwork RNN". The units form ``len(periods)`` groups of equal size; at step ``t``
    (from 0) those of group ``k`` update where ``t mod periods[k] = 0``, so all do at the first step::

        s_t = s̃_t  where t mod period = 0,  else s_{t-1}

    for ``s`` each tensor of the cell's state that holds one number a unit: ``h``, and an LSTM's ``c``. In the paper a
    group reads slower ones only, by a block-triangular recurrent matrix; that is a matter of the inner cell's
    weights, and here every group reads every other. All units are computed at each step, so the clock saves no time.

    The state is ``(the inner cell's, the number of the step)``, the latter ``(batch, 1)`` integers.

    Args:
        cell: any cell.
        periods: each group's period in steps, the first units' first; the paper's are 1, 2, 4, 8, …

    Raises:
        ValueError: for no period, one below 1, or a number of groups that does not divide the cell's units.

    >>> import torch, rnn_blocks
    >>> cell = Clockwork(rnn_blocks.LSTMCell(2, 4), periods=[1, 3])
    >>> outputs, ((h, c), count) = rnn_blocks.Recurrent(cell)(torch.randn(1, 5, 2))
    >>> (outputs[0, 1:] == outputs[0, :-1]).int()  # units that stayed, from the second step on
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1],
            [0, 0, 0, 0],
            [0, 0, 1, 1]], dtype=torch.int32)
    >>> count.item()
    5
    """

    keeps_state = True
    unit_periods: Tensor

    def __init__(self, cell: Cell, periods: Sequence[int]) -> None:
        super().__init__(cell)
        self.periods = tuple(whole(f"period {k}", period, 1, " step") for k, period in enumerate(periods))
        if not self.periods:
            raise ValueError("periods must be one number of steps a group, each at least 1, got []")
        width = hidden_of(first_state(cell)).shape[-1]
        if width % len(self.periods):
            raise ValueError(
                f"the {width} units of the cell do not form {len(self.periods)} groups of equal size, "
                f"as periods {list(self.periods)} ask for"
            )
        self.register_buffer("unit_periods", torch.empty(width, dtype=torch.long), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set each unit's period to that of the arguments."""
        periods = torch.tensor(self.periods, device=self.unit_periods.device)
        self.unit_periods.copy_(periods.repeat_interleave(len(self.unit_periods) // len(self.periods)))

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """The inner cell's step, for the units that are due."""
        inner, count = state
        assert isinstance(count, Tensor)
        output, after = self.cell.advance(projected, inner, hidden)
        due = count % self.unit_periods == 0  # (batch, units)
        merged = map_units(lambda old, new: torch.where(due, new, old), self.cell, inner, after)
        output, merged = with_output(self.cell, output, after, merged)
        return output, (merged, count + 1)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """The inner cell's, at step 0."""
        count = torch.zeros(batch_size, 1, dtype=torch.long, device=like.device)
        return self.cell.initial_state(batch_size, like), count

    def extra_repr(self) -> str:
        """The periods."""
        return f"periods={list(self.periods)}"
