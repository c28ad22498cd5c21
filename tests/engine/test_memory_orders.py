"""Recorded steps on tensors whose numbers lie in memory in one order or another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from rnn_blocks import Cell, LSTMCell, Recurrent, SkipThroughTime, SLSTMCell
from rnn_blocks.engine import fused, map_state, state_tensors


class Heads(Cell):
    """Reshapes the inputs, the state and a weight: views of them, where their memory allows it."""

    fusable = True

    def __init__(self, num_heads: int = 2, size: int = 2) -> None:
        super().__init__(num_heads * size, num_heads * size)
        self.num_heads, self.size = num_heads, size
        self.weight = nn.Parameter(torch.randn(num_heads, size, size))

    def step(self, projected: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        heads = [tensor.reshape(-1, self.size) for tensor in (projected, state)]
        weight = self.weight.reshape(1, self.num_heads, self.size, self.size)
        rows = heads[1].reshape(-1, self.num_heads, 1, self.size) @ weight
        hidden = torch.tanh(heads[0] + rows.reshape(-1, self.size)).reshape(projected.shape)
        return hidden, hidden


def columns_first(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor


def with_gaps(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], -1)[..., 0]


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def run(layer: Recurrent, inputs: Tensor, state: object) -> list[Tensor]:
    inputs = inputs.detach().requires_grad_()
    outputs, after = layer(inputs, state)
    numbers = [outputs, *state_tensors(after)]
    leaves = [inputs, *layer.parameters()]
    return numbers + list(torch.autograd.grad(sum((one.sin()).sum() for one in numbers), leaves))


CELLS = {
    "heads": lambda: Heads(),
    "lstm": lambda: LSTMCell(4, 4),
    "nested": lambda: SkipThroughTime(SLSTMCell(4, 4, num_heads=4), delay=2),
}
ORDERS = [as_it_is, columns_first, with_gaps]


@pytest.mark.parametrize("name", CELLS)
@settings(max_examples=12)
@given(
    calls=st.lists(
        st.tuples(
            st.integers(1, 4), st.integers(1, 6), st.booleans(), st.sampled_from(ORDERS), st.sampled_from(ORDERS)
        ),
        min_size=2,
        max_size=4,
    )
)
def test_what_was_recorded_for_one_order_is_right_for_another(name, calls):
    torch.manual_seed(0)
    cell = CELLS[name]().double()
    for batch, time, batch_first, of_state, of_weights in calls:
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.data = of_weights(parameter.data)
        recorded, loop = (Recurrent(cell, engine=engine, batch_first=batch_first) for engine in ("fused", "loop"))
        inputs = torch.randn(*((batch, time) if batch_first else (time, batch)), 4, dtype=torch.float64)
        state = map_state(of_state, map_state(torch.rand_like, loop.initial_state(batch, inputs)))
        assert_close(run(recorded, inputs, state), run(loop, inputs, state), rtol=1e-10, atol=1e-10, check_stride=False)


def test_a_step_is_recorded_once_for_sequences_of_every_length():
    cell = Heads()
    for batch_first in (True, False):
        layer = Recurrent(cell, engine="fused", batch_first=batch_first)
        for time in (1, 3, 7):
            layer(torch.randn(time, 3, 4).transpose(0, 1) if batch_first else torch.randn(time, 3, 4))
            layer(torch.randn(3, time, 4) if batch_first else torch.randn(3, time, 4).transpose(0, 1))
    assert len(fused._programs[cell]) == 1
