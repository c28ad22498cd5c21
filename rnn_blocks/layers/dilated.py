"""Dilated recurrence: each step reads the state of several steps before."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from rnn_blocks.cells import Cell
from rnn_blocks.checks import whole
from rnn_blocks.engine import State, map_state
from rnn_blocks.layers.recurrent import Engine, Recurrent
from rnn_blocks.layers.redrawn import redrawn
from rnn_blocks.layers.skip_paths import Skip
from rnn_blocks.layers.stack import Stack


class DilatedRecurrent(Recurrent):
    """A cell whose every step reads the state of ``dilation`` steps before (Chang et al. 2017, eq. 2).

    ``output_t, s_t = cell(x_t, s_{t-d})``. So a sequence falls into ``d`` phases, steps ``p, p + d, p + 2d, …``, that
    know nothing of each other. They run side by side, as ``d`` times the sequences of a ``d``-th of the steps: fewer
    and larger products. Steps in a multiple of ``d`` cost least, since no phase is then shorter than another.

    The state holds the phases: the cell's, each tensor ``(batch, dilation, …)``, the phase of a sequence's next step
    first, so that chunks of any length carry on where the last one stopped. A reset starts all phases afresh.

    Args:
        cell: any :class:`~rnn_blocks.Cell`.
        dilation: how many steps back the state read is, ``d``; 1 is :class:`~rnn_blocks.Recurrent`.
        engine: see :class:`~rnn_blocks.Recurrent`.
        batch_first: see :class:`~rnn_blocks.Layer`.

    Raises:
        ValueError: for a dilation below 1.

    >>> import torch, rnn_blocks
    >>> layer = DilatedRecurrent(rnn_blocks.GRUCell(3, 4), 2)
    >>> inputs = torch.randn(5, 7, 3)
    >>> outputs, state = layer(inputs)
    >>> outputs.shape, state.shape
    (torch.Size([5, 7, 4]), torch.Size([5, 2, 4]))
    >>> odd, _ = rnn_blocks.Recurrent(layer.cell)(inputs[:, 1::2])
    >>> torch.allclose(outputs[:, 1::2], odd, atol=1e-6)
    True
    """

    def __init__(self, cell: Cell, dilation: int, *, engine: Engine = "auto", batch_first: bool = True) -> None:
        super().__init__(cell, engine=engine, batch_first=batch_first)
        self.dilation = whole("dilation", dilation)

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """The cell's for each phase: tensors ``(batch, dilation, …)``."""
        state = self.cell.initial_state(batch_size * self.dilation, like)
        return map_state(lambda tensor: tensor.reshape(batch_size, self.dilation, *tensor.shape[1:]), state)

    def run(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """Over all steps, the phases side by side; time first."""
        d, (time, batch) = self.dilation, inputs.shape[:2]
        phase = torch.arange(d, device=inputs.device)[:, None]  # (dilation, 1)
        rounds = -(-time // d)
        counts = None
        if lengths is not None or time % d:
            ends = inputs.new_full((batch,), time, dtype=torch.int64) if lengths is None else lengths
            counts = ((ends - phase + d - 1) // d).view(-1)  # (dilation * batch,)
        resets = None if resets is None else resets.bool()
        marks = None if resets is None else _resets_by_phase(resets, d)
        outputs, phases = super().run(
            _fold(inputs, rounds, d),
            map_state(lambda tensor: tensor.transpose(0, 1).flatten(0, 1), state),
            counts,
            marks,
        )
        outputs = outputs.reshape(rounds * d, batch, *outputs.shape[2:])[:time]
        after = map_state(lambda tensor: tensor.unflatten(0, (d, batch)).transpose(0, 1), phases)
        if lengths is None:
            after = map_state(lambda tensor: tensor.roll(-(time % d), 1), after)
        else:
            row = torch.arange(batch, device=inputs.device)[:, None]
            turned = (lengths[:, None] + phase.view(-1)) % d  # (batch, dilation)
            after = map_state(lambda tensor: tensor[row, turned], after)
        if resets is not None:
            stale = _reset_since_last_step(resets, lengths, d)  # (batch, dilation)
            fresh = self.initial_state(batch, inputs)
            after = map_state(lambda new, old: torch.where(_column(stale, old), new, old), fresh, after)
        return outputs, after

    def step(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step of time of the phase whose turn it is, which then goes to the end of the queue."""
        if state is None:
            state = self.initial_state(inputs.shape[0], inputs)
        output, after = super().step(inputs, map_state(lambda tensor: tensor[:, 0], state))
        return output, map_state(lambda old, new: torch.cat([old[:, 1:], new[:, None]], dim=1), state, after)

    def extra_repr(self) -> str:
        """The dilation and the engine."""
        return f"dilation={self.dilation}, {super().extra_repr()}"


class Dilated(Stack):
    """A dilated recurrent network (Chang et al. 2017): layers whose every step reads the state of some steps before.

    Where the dilations double from layer to layer, the path between steps far apart is short. Layers to put into other
    stacks are :class:`~rnn_blocks.DilatedRecurrent`.

    Args:
        cells: a cell for each layer, from the bottom up. One cell for several layers is copied for those above, with
            weights of their own (every part that has a ``reset_parameters`` draws them anew); it must then give as many
            features as it takes.
        dilations: how many steps back each layer reads, such as ``[1, 2, 4, 8]``; or one number.
        skip: see :class:`~rnn_blocks.Stack`.
        dropout: see :class:`~rnn_blocks.Stack`.
        engine: see :class:`~rnn_blocks.Recurrent`.
        batch_first: see :class:`~rnn_blocks.Layer`.

    Raises:
        ValueError: where there are not as many cells as dilations, a dilation is below 1, or the widths do not fit.

    >>> import torch, rnn_blocks
    >>> layer = Dilated(rnn_blocks.LSTMCell(3, 3), [1, 2, 4])
    >>> outputs, (first, second, (h, c)) = layer(torch.randn(2, 7, 3))
    >>> outputs.shape, h.shape
    (torch.Size([2, 7, 3]), torch.Size([2, 4, 3]))
    """

    def __init__(
        self,
        cells: Cell | Sequence[Cell],
        dilations: int | Sequence[int],
        *,
        skip: Skip | None = None,
        dropout: float = 0.0,
        engine: Engine = "auto",
        batch_first: bool = True,
    ) -> None:
        steps = [dilations] if isinstance(dilations, int) else list(dilations)
        each = [cells, *(redrawn(cells) for _ in steps[1:])] if isinstance(cells, Cell) else list(cells)
        if len(each) != len(steps):
            raise ValueError(f"there must be one cell a dilation, got {len(each)} cells and dilations {steps}")
        layers = [
            DilatedRecurrent(cell, dilation, engine=engine, batch_first=batch_first)
            for cell, dilation in zip(each, steps, strict=True)
        ]
        super().__init__(layers, skip=skip, dropout=dropout)


def _fold(sequence: Tensor, rounds: int, dilation: int) -> Tensor:
    """Whole rounds, padded by zeros, each laid out as one step: ``(rounds, dilation * batch, …)``."""
    time, batch = sequence.shape[:2]
    missing = rounds * dilation - time
    if missing:
        sequence = pad(sequence, [0, 0] * (sequence.dim() - 1) + [0, missing])
    return sequence.reshape(rounds, dilation * batch, *sequence.shape[2:])


def _resets_by_phase(resets: Tensor, dilation: int) -> Tensor:
    """Steps of a phase since whose last there was a reset: it starts afresh there, ``(rounds, dilation * batch)``."""
    before = pad(resets.long().cumsum(0), [0, 0, dilation, 0])  # before[t]: the resets up to step t - dilation
    recent = before[dilation:] > before[:-dilation]
    return _fold(recent, -(-len(resets) // dilation), dilation)


def _reset_since_last_step(resets: Tensor, lengths: Tensor | None, dilation: int) -> Tensor:
    """Phases after whose last step there was a reset: they will start afresh at their next, ``(batch, dilation)``."""
    time, batch = resets.shape
    count = pad(resets.long().cumsum(0), [0, 0, 1, 0])  # count[t]: the resets before step t
    ends = torch.full((batch,), time, device=resets.device) if lengths is None else lengths
    phase = torch.arange(dilation, device=resets.device)[:, None]  # in the order of their next steps
    since = (ends - dilation + 1 + phase).clamp(min=0)  # the step after a phase's last, (dilation, batch)
    return (count.gather(0, ends[None]) > count.gather(0, since)).t()


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (like.dim() - 2))  # (batch, dilation, 1, …)
