import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rnn_blocks.engine import State, run_loop


def add(x: Tensor, state: State) -> tuple[Tensor, State]:
    total, (steps,) = state
    return total + x, (total + x, (steps + 1,))


def start(batch: int, value: float = 0.0) -> State:
    return torch.full((batch, 1), value), (torch.zeros(batch, dtype=torch.int64),)


@given(st.data(), st.integers(1, 6), st.integers(1, 4))
def test_the_loop_adds_up_what_counts_since_the_last_reset(data: st.DataObject, time: int, batch: int) -> None:
    inputs = torch.arange(1.0, time * batch + 1).view(time, batch, 1)
    lengths = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    resets = data.draw(st.lists(st.booleans(), min_size=time * batch, max_size=time * batch))
    marks = torch.tensor(resets).view(time, batch)
    outputs, (total, (steps,)) = run_loop(
        add, inputs, start(batch, 100.0), fresh=start(batch, -7.0), lengths=torch.tensor(lengths), resets=marks
    )
    for n in range(batch):
        expected, value, count = [], 100.0, 0
        for t in range(time):
            if t < lengths[n]:
                value, count = (-7.0, 0) if marks[t, n] else (value, count)
                value, count = value + float(inputs[t, n]), count + 1
            expected.append(value if t < lengths[n] else 0.0)
        assert outputs[:, n, 0].tolist() == expected
        assert (total[n].item(), steps[n].item()) == (value, count)


def test_what_lies_past_a_length_takes_no_gradient():
    inputs = torch.randn(4, 2, 1, requires_grad=True)
    outputs, (total, _) = run_loop(add, inputs, start(2), lengths=torch.tensor([2, 0]))
    (outputs.sum() + total.sum()).backward()
    assert inputs.grad.squeeze(-1).tolist() == [[3.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_a_reset_stops_the_gradient():
    inputs = torch.ones(3, 1, 1, requires_grad=True)
    marks = torch.tensor([[False], [False], [True]])
    outputs, _ = run_loop(add, inputs, start(1), fresh=start(1), resets=marks)
    outputs[2].sum().backward()
    assert inputs.grad.flatten().tolist() == [0.0, 0.0, 1.0]


def test_resets_without_a_state_to_start_from_are_refused():
    with pytest.raises(ValueError, match="give `fresh`"):
        run_loop(add, torch.ones(1, 1, 1), start(1), resets=torch.ones(1, 1, dtype=torch.bool))
