import pytest
import torch

import rnn_blocks
from rnn_blocks import GRU, LSTM, Cell, Elman, GRUCell, Layer, Recurrent, Stack

LAYER = LSTM(3, 4, num_layers=2)
INPUTS = torch.zeros(2, 5, 3)


@pytest.mark.parametrize("shape", [(2, 5, 4), (5, 3), (3,), (1, 2, 5, 3)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(batch, time, input_size\) with input_size 3, got a tensor of shape \("):
        LAYER(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"\(time, batch, input_size\) with input_size 3, got a tensor of shape \("):
        LSTM(3, 4, batch_first=False)(torch.zeros(shape))


def test_a_sequence_without_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step, got inputs of 2 sequences of 0 steps"):
        LAYER(torch.zeros(2, 0, 3))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([6, 1]), r"between 0 and the 5 steps given, got \[6, 1\]"),
        (torch.tensor([2, -1]), r"between 0 and the 5 steps given, got \[2, -1\]"),
        (torch.tensor([2, 1, 1]), r"2 integers, one a sequence, got torch.int64 of shape \(3,\)"),
        (torch.tensor([[2, 1]]), r"got torch.int64 of shape \(1, 2\)"),
        (torch.tensor([2.0, 1.0]), "2 integers, one a sequence, got torch.float32"),
    ],
)
def test_bad_lengths_are_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        LAYER(INPUTS, lengths=lengths)


@pytest.mark.parametrize("shape", [(5, 2), (2, 4), (2,), (2, 5, 1)])
def test_resets_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="resets must mark each step of each sequence, 2 sequences of 5 steps as"):
        LAYER(INPUTS, resets=torch.zeros(shape, dtype=torch.bool))


@pytest.mark.parametrize(
    "state",
    [
        torch.zeros(2, 4),
        (torch.zeros(2, 4), torch.zeros(2, 4)),
        ((torch.zeros(2, 4), torch.zeros(2, 4)),),
        ((torch.zeros(2, 4), torch.zeros(2, 4)), (torch.zeros(2, 4), torch.zeros(3, 4))),
    ],
    ids=["a tensor", "one layer's", "one layer too few", "another batch"],
)
def test_a_state_of_another_shape_is_refused_with_the_right_one(state):
    expected = r"the state of this LSTM for 2 sequences is \(\(\(2, 4\), \(2, 4\)\), \(\(2, 4\), \(2, 4\)\)\), got "
    with pytest.raises(ValueError, match=expected):
        LAYER(INPUTS, state)


def test_an_unknown_engine_is_refused_with_the_choices():
    choices = "'auto', 'native', 'fused', 'compiled', 'scan', 'loop'"
    with pytest.raises(ValueError, match=f"engine must be one of {choices}, got 'fast'"):
        GRU(3, 4, engine="fast")


def test_the_native_engine_says_what_it_cannot_run():
    class Own(Cell):
        def step(self, projected, state):
            return state, state

    with pytest.raises(ValueError, match="Own has no native kernel; use engine='auto', 'fused' or 'loop'"):
        Recurrent(Own(3, 3), engine="native")(INPUTS)
    with pytest.raises(ValueError, match="native kernels take no resets; use engine='auto', 'fused' or 'loop'"):
        Recurrent(GRUCell(3, 4), engine="native")(INPUTS, resets=torch.zeros(2, 5, dtype=torch.bool))


def test_the_scan_engine_says_what_it_cannot_run():
    with pytest.raises(ValueError, match="GRUCell is no LinearCell; use engine='auto', 'native', 'fused' or 'loop'"):
        Recurrent(GRUCell(3, 4), engine="scan")(INPUTS)


@pytest.mark.parametrize("make", [LSTM, GRU, Elman])
@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((0, 4), {}, "input_size must be at least 1, got 0"),
        ((3, 0), {}, "hidden_size must be at least 1, got 0"),
        ((3, 4), {"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ],
)
def test_sizes_below_one_are_refused(make, sizes, options, message):
    with pytest.raises(ValueError, match=message):
        make(*sizes, **options)


def test_a_layer_without_its_methods_says_what_it_needs():
    class Half(Layer):
        pass

    with pytest.raises(NotImplementedError, match="Half needs an `initial_state"):
        Half(3, 4)(INPUTS)
    with pytest.raises(NotImplementedError, match="Half needs a `run"):
        Half(3, 4).run(INPUTS, INPUTS, None, None)


def test_a_stack_checks_what_reaches_it_before_any_layer_runs():
    ran = []

    class Watch(Recurrent):
        def run(self, *args):
            ran.append(args)
            return super().run(*args)

    with pytest.raises(ValueError, match="lengths"):
        Stack([Watch(GRUCell(3, 4)), GRU(4, 4)])(INPUTS, lengths=torch.tensor([9, 9]))
    assert not ran


def test_a_linear_cell_without_a_native_kernel_is_told_of_the_scan():
    layer = rnn_blocks.Recurrent(rnn_blocks.MinGRUCell(3, 4), engine="native")
    with pytest.raises(ValueError, match="has no native kernel; use engine='auto', 'scan', 'fused' or 'loop'"):
        layer(torch.randn(2, 5, 3))


def test_weight_drop_says_so_where_another_layer_has_no_such_weights():
    layer = rnn_blocks.WeightDrop(rnn_blocks.GRU(3, 4), 0.5)
    layer.layer = rnn_blocks.LRU(3, 4)
    with pytest.raises(ValueError, match="WeightDrop finds no parameter named 'weight_hh' in this LRU any more"):
        layer(torch.randn(2, 5, 3))
