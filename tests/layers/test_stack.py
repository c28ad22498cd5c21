import oracles
import pytest
import torch
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM, Elman, GRUCell, LSTMCell, Recurrent, Stack
from rnn_blocks.engine import state_tensors

SKIPS = ("residual", "highway", "dense", "input")


class Ones(Recurrent):
    """Gives ones whatever comes in, and remembers what that was."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(GRUCell(input_size, hidden_size))
        self.seen: list[torch.Tensor] = []

    def run(self, inputs, state, lengths, resets):
        self.seen.append(inputs.detach())
        return inputs.new_ones(*inputs.shape[:-1], self.output_size), state

    def step(self, inputs, state=None):
        return self.run(inputs, state, None, None)


@pytest.mark.parametrize("stepwise", [False, True], ids=["whole", "step"])
def test_dropout_falls_between_layers_only_and_only_in_training(stepwise):
    layers = [Ones(500, 500) for _ in range(3)]
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
    with pytest.warns(UserWarning, match=f"{make.__name__}: dropout 0.9 does nothing to a single layer"):
        one = make(3, 4, num_layers=1, dropout=0.9)
    inputs = torch.randn(2, 5, 3)
    assert torch.equal(one(inputs)[0], one.eval()(inputs)[0])


@pytest.mark.parametrize("make", [lambda: LSTM(3, 4, dropout=0.3), lambda: Stack([GRU(3, 4)], dropout=0.3)])
def test_what_a_single_layers_dropout_does_is_told_where_it_was_made(make):
    with pytest.warns(UserWarning, match="single layer") as told:
        make()
    assert [one.filename for one in told] == [__file__]
    assert [one.lineno for one in told] == [make.__code__.co_firstlineno]


def test_a_stack_is_its_layers_one_after_the_other():
    lower, upper = LSTM(3, 8), GRU(8, 4)
    inputs = torch.randn(2, 7, 3)
    outputs, (first, second) = Stack([lower, upper])(inputs)
    between, expected_first = lower(inputs)
    expected, expected_second = upper(between)
    assert torch.equal(outputs, expected)
    assert torch.equal(first[0][1], expected_first[0][1])
    assert torch.equal(second[0], expected_second[0])


def uneven(skip):
    """Three layers of different kinds and widths, as the skip needs them."""
    sizes = Stack.input_sizes(3, [5, 5, 4], skip=skip)
    cells = [make(i, o) for make, i, o in zip((GRUCell, LSTMCell, GRUCell), sizes, (5, 5, 4), strict=True)]
    return Stack([Recurrent(cell, engine="loop") for cell in cells], skip=skip).double()


def by_hand(stack, inputs, states, lengths):
    """The equations of the skips, sequence by sequence and step by step; the layers by their cells' equations."""
    weights = dict(stack.named_parameters())

    def passed(k, x):
        P = weights.get(f"paths.{k}.carry.weight")
        return x if P is None else P @ x

    sequences, finals = [], []
    for n, length in enumerate(lengths):
        state = [oracles.rows(part, [n]) for part in states]
        steps = []
        for x in inputs[n, :length]:
            y = []
            for k, layer in enumerate(stack.layers):
                below = y[-1] if y else x
                taken = below
                if stack.skip == "dense":
                    taken = torch.cat([x, *y])
                elif stack.skip == "input" and y:
                    taken = torch.cat([x, below])
                one = taken.view(1, 1, -1)
                output, (state[k],) = oracles.run_by_hand([layer.cell], one, [state[k]])
                output = output.flatten()
                if stack.skip == "residual":
                    output = output + passed(k, below)
                if stack.skip == "highway":
                    t = oracles.sigmoid(weights[f"paths.{k}.gate.weight"] @ below + weights[f"paths.{k}.gate.bias"])
                    output = t * output + (1 - t) * passed(k, below)
                y.append(output)
            steps.append(y[-1])
        padding = inputs.new_zeros(inputs.shape[1] - length, stack.output_size)
        sequences.append(torch.cat([torch.stack(steps), padding]) if steps else padding)
        finals.append(state)
    after = [torch.cat(rows) for rows in zip(*(state_tensors(tuple(state)) for state in finals), strict=True)]
    return torch.stack(sequences), after


@pytest.mark.parametrize("lengths", [[4, 4], [1, 4], [0, 2]], ids=str)
@pytest.mark.parametrize("skip", [None, *SKIPS])
def test_a_skip_is_its_equations_written_out(skip, lengths):
    stack = uneven(skip)
    inputs = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    state = oracles.random_state(stack.initial_state(2, inputs))
    outputs, after = stack(inputs, state, lengths=None if lengths == [4, 4] else torch.tensor(lengths))
    expected, final = by_hand(stack, inputs, state, lengths)
    assert_close(outputs, expected, rtol=1e-12, atol=1e-12, check_stride=False)
    assert_close(state_tensors(after), final, rtol=1e-12, atol=1e-12)
    leaves = [inputs, *stack.parameters()]
    found = oracles.gradients_of(oracles.weighted_sum(outputs, after), leaves)
    assert_close(found, oracles.gradients_of(oracles.weighted_sum(expected, tuple(final)), leaves), check_stride=False)


def test_a_path_between_equal_widths_is_the_identity():
    assert len(list(uneven("residual").paths.parameters())) == 2  # 3 to 5, 5 to 4, and 5 to 5 as it is
    plain, residual = GRU(4, 4, num_layers=3), GRU(4, 4, num_layers=3, skip="residual")
    assert plain.state_dict().keys() == residual.state_dict().keys()


def test_a_highway_starts_with_its_gates_at_minus_one():
    assert all((path.gate.bias == -1).all() for path in uneven("highway").paths)


@pytest.mark.parametrize(
    ("skip", "sizes"),
    [(None, [3, 5, 4]), ("residual", [3, 5, 4]), ("highway", [3, 5, 4]), ("dense", [3, 8, 12]), ("input", [3, 8, 7])],
)
def test_the_widths_that_a_skip_needs_are_told(skip, sizes):
    assert Stack.input_sizes(3, [5, 4, 2], skip=skip) == sizes
    stack = Stack([GRU(i, o) for i, o in zip(sizes, [5, 4, 2], strict=True)], skip=skip)
    assert (stack.input_size, stack.output_size) == (3, 2)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("stepwise", [False, True], ids=["whole", "step"])
def test_dropout_spares_the_input_and_what_passes_a_layer_by(skip, stepwise):
    sizes = Stack.input_sizes(300, [300, 300], skip=skip)
    layers = [Ones(size, 300) for size in sizes]
    stack = Stack(layers, skip=skip, dropout=0.25)
    inputs = torch.full((1, 4, 300), 2.0)
    outputs = stack.step(inputs[:, 0])[0] if stepwise else stack(inputs)[0]
    (first,), (second,) = (layer.seen for layer in layers)
    assert (first == 2).all()
    if skip in ("dense", "input"):
        assert (second[..., :300] == 2).all()
        second = second[..., 300:]
    assert 0.15 < (second == 0).float().mean() < 0.35
    if skip == "residual":
        assert (outputs == 4).all()  # 2 + 1 + 1: nothing of the path is lost


def test_a_stack_without_layers_is_refused():
    with pytest.raises(ValueError, match="a stack needs at least one layer, got none"):
        Stack([])


def test_widths_that_do_not_fit_are_refused_with_the_place():
    with pytest.raises(ValueError, match="layer 2 takes 5 features, but layer 1 below it gives 4"):
        Stack([GRU(3, 8), GRU(8, 4), GRU(5, 4)])


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (
            "dense",
            "layer 2 takes 4 features, but with skip='dense' it must take 15: the stack's input has 3, and all layers "
            r"below give 8 \+ 4",
        ),
        (
            "input",
            "layer 2 takes 4 features, but with skip='input' it must take 7: the stack's input has 3, and layer 1 "
            "below it gives 4",
        ),
    ],
)
def test_widths_that_do_not_fit_a_skip_are_refused_with_the_width_needed(skip, message):
    with pytest.raises(ValueError, match=message):
        Stack([GRU(3, 8), GRU(11, 4), GRU(4, 4)], skip=skip)


def test_another_skip_is_refused_with_the_choices():
    with pytest.raises(
        ValueError, match="skip must be None or one of 'residual', 'dense', 'highway', 'input', got 'r'"
    ):
        Stack([GRU(3, 4)], skip="r")


@pytest.mark.parametrize(("dropout", "told"), [(-0.1, ""), (1.0, ""), (float("nan"), ""), ("0.5", "a number, ")])
def test_a_dropout_outside_its_range_is_refused(dropout, told):
    with pytest.raises(ValueError, match=f"dropout must be {told}at least 0 and below 1, got {dropout!r}"):
        LSTM(3, 4, num_layers=2, dropout=dropout)


def test_layers_that_disagree_on_the_order_of_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"the layers must agree on batch_first, got \[True, False\]"):
        Stack([GRU(3, 4), GRU(4, 4, batch_first=False)])
