"""The loop and the fused engine side by side, and a cell of one's own for both."""

import oracles
import torch
from torch import nn

from rnn_blocks import Cell, Recurrent
from rnn_blocks.engine import fused, state_tensors

INPUT, HIDDEN = 3, 4


def both(cell, inputs, state=None, **options):
    """Outputs, states and all gradients by the loop and by the fused engine."""
    results = []
    for engine in ("loop", "fused"):
        torch.manual_seed(3)
        x = inputs.clone().requires_grad_()
        outputs, after = Recurrent(cell, engine=engine)(x, state, **options)
        total = oracles.weighted_sum(outputs, after)
        gradients = oracles.gradients_of(total, [x, *(p for p in cell.parameters() if p.requires_grad)])
        results.append([outputs.detach(), *(t.detach() for t in state_tensors(after)), *gradients])
    return results


def programs_of(cell):
    return fused._programs.get(cell, {})


class Scaled(Cell):
    """A cell with a plain number, a plain tensor, a buffer and noise of its own."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.factor = 0.5
        self.offset = torch.tensor(0.1, dtype=torch.float64)
        self.register_buffer("shift", torch.full((hidden_size,), 0.2))
        self.mix = nn.Linear(input_size, hidden_size, bias=False)
        self.noisy = False

    def step(self, projected, state):
        state = self.factor * state + self.mix(projected) + self.offset + self.shift
        if self.noisy:
            state = nn.functional.dropout(state, 0.5, self.training)
        return state.tanh(), state
