import pytest
import torch
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM, Elman, GRUCell, Recurrent, Stack


class Ones(Recurrent):
    """Gives ones whatever comes in, and remembers what that was."""

    def __init__(self, width: int) -> None:
        super().__init__(GRUCell(width, width))
        self.seen: list[torch.Tensor] = []

    def run(self, inputs, state, lengths, resets):
        self.seen.append(inputs.detach())
        return torch.ones_like(inputs), state

    def step(self, inputs, state=None):
        self.seen.append(inputs.detach())
        return torch.ones_like(inputs), state


@pytest.mark.parametrize("stepwise", [False, True], ids=["whole", "step"])
def test_dropout_falls_between_layers_only_and_only_in_training(stepwise):
    layers = [Ones(500) for _ in range(3)]
    stack = Stack(layers, dropout=0.25)
    inputs = torch.ones(1, 4, 500)

    def run():
        for layer in layers:
            layer.seen.clear()
        outputs = stack.step(inputs[:, 0])[0] if stepwise else stack(inputs)[0]
        return outputs, [layer.seen[0] for layer in layers]

    outputs, (first, *later) = run()
    assert (first == 1).all()
    assert (outputs == 1).all()
    for seen in later:
        assert_close(seen.unique(), torch.tensor([0.0, 4 / 3]))
        assert 0.15 < (seen == 0).float().mean() < 0.35
    assert not torch.equal(later[0], later[1])
    stack.eval()
    outputs, seen = run()
    assert all((tensor == 1).all() for tensor in [outputs, *seen])


@pytest.mark.parametrize("make", [LSTM, GRU, Elman])
def test_dropout_of_ready_made_layers_is_the_stacks(make):
    assert make(3, 4, num_layers=2, dropout=0.3).dropout == 0.3
    one = make(3, 4, num_layers=1, dropout=0.9)
    inputs = torch.randn(2, 5, 3)
    assert torch.equal(one(inputs)[0], one.eval()(inputs)[0])


def test_a_stack_is_its_layers_one_after_the_other():
    lower, upper = LSTM(3, 8), GRU(8, 4)
    inputs = torch.randn(2, 7, 3)
    outputs, (first, second) = Stack([lower, upper])(inputs)
    between, expected_first = lower(inputs)
    expected, expected_second = upper(between)
    assert torch.equal(outputs, expected)
    assert torch.equal(first[0][1], expected_first[0][1])
    assert torch.equal(second[0], expected_second[0])


def test_a_stack_without_layers_is_refused():
    with pytest.raises(ValueError, match="a stack needs at least one layer, got none"):
        Stack([])


def test_widths_that_do_not_fit_are_refused_with_the_place():
    with pytest.raises(ValueError, match="layer 2 takes 5 features, but layer 1 below it gives 4"):
        Stack([GRU(3, 8), GRU(8, 4), GRU(5, 4)])


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_outside_its_range_is_refused(dropout):
    with pytest.raises(ValueError, match=f"dropout must be at least 0 and below 1, got {dropout}"):
        LSTM(3, 4, num_layers=2, dropout=dropout)


def test_layers_that_disagree_on_the_order_of_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"the layers must agree on batch_first, got \[True, False\]"):
        Stack([GRU(3, 4), GRU(4, 4, batch_first=False)])
