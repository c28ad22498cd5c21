import numpy
import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("layer", [LAYER, GRU(3, 4), Recurrent(GRUCell(3, 4)), Stack([GRU(3, 4), GRU(4, 4)])])
@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 5, 3)])
def test_a_step_of_another_shape_is_refused(layer, shape):
    with pytest.raises(ValueError, match="with input_size 3, got a tensor of shape"):
        layer.step(torch.zeros(shape))


def test_a_step_from_a_state_of_another_batch_or_another_number_of_layers_is_refused():
    for layer in (LAYER, GRU(3, 4), Stack([GRU(3, 4), GRU(4, 4)])):
        _, state = layer.step(torch.zeros(2, 3))
        with pytest.raises(ValueError, match=f"the state of this {type(layer).__name__} for 1 sequences is"):
            layer.step(torch.zeros(1, 3), state)
    _, state = LSTM(3, 4).step(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="the state of this LSTM for 2 sequences is"):
        LAYER.step(torch.zeros(2, 3), state)


def test_a_cell_takes_no_inputs_without_a_batch():
    with pytest.raises(ValueError, match=r"\(batch, input_size\), got a tensor of shape \(3,\)"):
        GRUCell(3, 4)(torch.zeros(3))


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


TAKE_A_LAYER = [
    lambda layer: Stack([GRU(3, 4), layer]),
    lambda layer: rnn_blocks.Bidirectional(layer),
    lambda layer: rnn_blocks.Bidirectional(GRU(3, 4), layer),
    lambda layer: rnn_blocks.WeightDrop(layer, 0.5),
    lambda layer: rnn_blocks.LanguageModel(layer, 9),
    lambda layer: rnn_blocks.ClozeModel(layer, 9, 1),
    lambda layer: rnn_blocks.Encoder(layer, 9),
    lambda layer: rnn_blocks.Decoder(layer, 9),
    lambda layer: rnn_blocks.Seq2Seq(layer, GRU(8, 4), 9, 9),
    lambda layer: rnn_blocks.Seq2Seq(GRU(3, 4), layer, 9, 9),
]


@pytest.mark.parametrize("take", TAKE_A_LAYER)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (GRUCell(4, 4), r"needs a layer, got GRUCell, which is a cell: Recurrent\(cell\) is a layer of it"),
        (nn.RNN(4, 4), r"got RNN of torch.nn: rnn_blocks.Elman.from_torch\(layer\) makes a layer of it"),
        (nn.LSTM(4, 4), r"got LSTM of torch.nn: rnn_blocks.LSTM.from_torch\(layer\) makes a layer of it"),
        (nn.Linear(4, 4), "needs a layer, got Linear$"),
    ],
)
def test_what_is_no_layer_is_refused_with_what_makes_it_one(take, given, message):
    with pytest.raises(ValueError, match=message):
        take(given)


@pytest.mark.parametrize("given", [nn.LSTMCell(3, 4), LSTM(3, 4), nn.Linear(3, 4)])
def test_what_is_no_cell_is_refused(given):
    for take in (Recurrent, lambda cell: rnn_blocks.DilatedRecurrent(cell, 2), rnn_blocks.LearnedState):
        with pytest.raises(ValueError, match=f"needs a cell.*got {type(given).__name__}"):
            take(given)


@pytest.mark.parametrize("take", TAKE_A_LAYER[:1] + TAKE_A_LAYER[4:7])
def test_a_compiled_layer_is_one(take):
    take(torch.compile(GRU(4, 4), backend="eager"))


CELL, MODEL = GRUCell(4, 4), rnn_blocks.LanguageModel(GRU(4, 4), 9)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda number: GRUCell(3, number), "hidden_size"),
        (lambda number: GRUCell(number, 4), "input_size"),
        (lambda number: LSTM(3, number), "hidden_size"),
        (lambda number: LSTM(3, [4, number]), "hidden_size"),
        (lambda number: LSTM(3, 4, num_layers=number), "num_layers"),
        (lambda number: rnn_blocks.RHNCell(3, 4, depth=number), "depth"),
        (lambda number: rnn_blocks.Mogrifier(CELL, rounds=number), "rounds"),
        (lambda number: rnn_blocks.Mogrifier(CELL, rank=number), "rank"),
        (lambda number: rnn_blocks.SkipThroughTime(CELL, delay=number), "delay"),
        (lambda number: rnn_blocks.Clockwork(CELL, [1, number]), "period 1"),
        (lambda number: rnn_blocks.DilatedRecurrent(CELL, number), "dilation"),
        (lambda number: rnn_blocks.VariationalDropout(number, 0.5), "size"),
        (lambda number: rnn_blocks.AdditiveAttention(number, 4), "query_size"),
        (lambda number: rnn_blocks.AdditiveAttention(4, 4, attention_size=number), "attention_size"),
        (lambda number: rnn_blocks.LanguageModel(GRU(4, 4), number), "vocab_size"),
        (lambda number: rnn_blocks.Encoder(GRU(4, 4), number), "vocab_size"),
        (lambda number: rnn_blocks.NeuralCache(window=number), "window"),
        (lambda number: rnn_blocks.DynamicEvaluation(steps=number), "steps"),
        (lambda number: MODEL.generate([1, 2], number), "max_tokens"),
        (lambda number: MODEL.generate([1, 2], 3, top_k=number), "top_k"),
    ],
)
def test_numbers_that_are_no_whole_ones_are_refused(make, name):
    for number in (2.5, 2.0, "2"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number, at least [012].*, got {number!r}"):
            make(number)
    with pytest.raises(ValueError, match=f"{name} must be at least [012].*, got -1"):
        make(-1)
    make(numpy.int64(2))


@pytest.mark.parametrize("pair", [(0.1, 0.2, 0.3), (0.1,), (0.1, 1.0), "0.5", ("0.1", 0.2), None])
def test_pairs_of_rates_are_pairs(pair):
    with pytest.raises(ValueError, match="p must be at least 0 and below 1, or two such numbers, got"):
        rnn_blocks.Zoneout(GRUCell(3, 4), pair)
    with pytest.raises(
        ValueError, match=r"time_constant must be at least 1 step, or \(shortest, longest\) of such, got"
    ):
        rnn_blocks.Leaky(GRUCell(3, 4), time_constant=pair)
    with pytest.raises(ValueError, match=r"time_constant must be a number of steps or a pair .*, at least 1, got"):
        rnn_blocks.LeakyIntegratorCell(3, 4, time_constant=pair)
