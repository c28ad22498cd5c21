"""Zoneout."""

from itertools import chain, repeat

import torch
from torch import Tensor

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.wrapper import CellWrapper, first_state, map_units, unit_tensors, with_output
from rnn_blocks.checks import is_within
from rnn_blocks.engine import State


class Zoneout(CellWrapper):
    """Zoneout around any cell: in training each unit keeps its value with probability ``p``, at each step anew.

    Krueger et al. (2017), "Zoneout: regularizing RNNs by randomly preserving hidden activations". For each tensor
    ``s`` of the cell's state that holds one number a unit (``h``, and an LSTM's ``c``), with ``s̃_t`` the inner
    cell's new one::

        s_t = s_{t-1}  with probability p,  else s̃_t        in training
        s_t = p · s_{t-1} + (1 - p) · s̃_t                   in evaluation

    A unit's tensors other than ``h`` keep their values together. Unlike dropout this leaves a path on which gradients
    pass unchanged. The noise of all steps is drawn at once, before the first of them (inside a Mogrifier,
    whose inner cell reads step by step, at each step).

    Args:
        cell: any cell.
        p: of every such tensor; or ``(p of h, p of the others)``. The paper's LSTM for characters has
            ``(0.05, 0.5)``.

    Raises:
        ValueError: for a ``p`` outside of [0, 1).

    >>> import torch, rnn_blocks
    >>> cell = Zoneout(rnn_blocks.LSTMCell(2, 100), p=0.3)
    >>> outputs, (h, c) = rnn_blocks.Recurrent(cell)(torch.randn(1, 50, 2))
    >>> kept = outputs[:, 1:].isclose(outputs[:, :-1])
    >>> round(kept.float().mean().item(), 1)
    0.3
    """

    def __init__(self, cell: Cell, p: float | tuple[float, float]) -> None:
        super().__init__(cell)
        pair = tuple(p) if isinstance(p, tuple | list) else (p, p)
        if len(pair) != 2 or not all(is_within(rate, high=1) for rate in pair):
            raise ValueError(f"p must be at least 0 and below 1, or two such numbers, got {p!r}")
        self.p_hidden, self.p_others = pair
        units = unit_tensors(cell, first_state(cell))
        self.num_tensors, self.unit_shape = len(units), tuple(units[0].shape[1:])

    def project(self, inputs: Tensor) -> State:
        """The inner cell's, and which units keep their value: in training, masks for ``h`` and for the others."""
        projected = self.cell.project(inputs)
        if not self.training:
            return projected, ()
        time, batch = inputs.shape[:2]
        rates = [rate for rate in self._rates() if rate]
        # one draw with time first: chunks of a sequence draw what the whole sequence draws
        noise = torch.rand(time, len(rates), batch, *self.unit_shape, device=inputs.device)
        masks = (part < rate for part, rate in zip(noise.unbind(1), rates, strict=True))
        return projected, tuple(mask.to(inputs.dtype) for mask in masks)

    def advance(self, projected: State, state: State, hidden: Tensor) -> tuple[Tensor, State]:
        """The inner cell's step, from which some units keep what they had."""
        inner, masks = projected
        assert isinstance(masks, tuple)
        output, after = self.cell.advance(inner, state, hidden)
        rates, drawn = self._rates(), iter(masks)
        kept = [next(drawn) if self.training and rate else None for rate in rates]
        numbers = chain([0], repeat(1))

        def keep(old: Tensor, new: Tensor) -> Tensor:
            number = next(numbers)
            rate, mask = rates[number], kept[number]
            if not rate:
                return new
            return new + (mask.to(new.dtype) if isinstance(mask, Tensor) else rate) * (old - new)

        return with_output(self.cell, output, after, map_units(keep, self.cell, state, after))

    def _rates(self) -> list[float]:
        return [self.p_hidden, self.p_others][: self.num_tensors]

    def extra_repr(self) -> str:
        """The probabilities."""
        return f"p={self.p_hidden if self.p_hidden == self.p_others else (self.p_hidden, self.p_others)}"
