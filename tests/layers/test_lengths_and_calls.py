"""Lengths, packed sequences, padding that may hold anything, and layers inside others, which are called as modules."""

from functools import partial

import pytest
import torch
import zoo
import zoo_layers
from torch import nn
from torch.nn.utils import rnn
from torch.testing import assert_close
from users import CLOSE, engines, every_cell, every_layer, gradients, total

import rnn_blocks
from rnn_blocks import GRU, LSTM, Recurrent, Stack


@every_cell
def test_nothing_past_a_length_counts(name):
    cell, results = zoo.CELLS[name](3, 4).double().eval(), []
    inputs = torch.randn(3, 5, cell.input_size, dtype=torch.float64)
    lengths = torch.tensor([5, 0, 3])
    padding = torch.arange(5) >= lengths[:, None]
    for filling in (0.0, float("nan")):
        for engine in engines(cell):
            cell.zero_grad()
            filled = inputs.masked_fill(padding[..., None], filling).requires_grad_()
            result = Recurrent(cell, engine=engine)(filled, lengths=lengths)
            total(*result).backward()
            results.append((*result, filled.grad, {k: g.clone() for k, g in gradients(cell).items() if g is not None}))
            assert not filled.grad[padding].any()
    for result in results[1:]:
        assert_close(result, results[0], **CLOSE)


@every_layer
def test_nothing_past_a_length_counts_in_a_layer(name):
    layer, results = zoo_layers.LAYERS[name]().double(), []
    inputs = torch.randn(3, 5, 3, dtype=torch.float64)
    lengths = torch.tensor([5, 0, 3])
    padding = torch.arange(5) >= lengths[:, None]
    for filling in (0.0, float("nan"), float("inf")):
        layer.zero_grad()
        filled = inputs.masked_fill(padding[..., None], filling).requires_grad_()
        result = layer(filled, lengths=lengths)
        total(*result).backward()
        assert not filled.grad[padding].any()
        results.append((*result, filled.grad, {k: g.clone() for k, g in gradients(layer).items() if g is not None}))
    for result in results[1:]:
        assert_close(result, results[0], **CLOSE)


class TestLengths:
    def test_may_be_a_list(self):
        layer, inputs = GRU(3, 4), torch.randn(3, 5, 3)
        expected = layer(inputs, lengths=torch.tensor([5, 0, 3]))
        assert_close(layer(inputs, lengths=[5, 0, 3]), expected)
        with torch.device("meta"):  # whatever torch's default device is
            assert_close(layer(inputs, lengths=[5, 0, 3]), expected)

    @pytest.mark.parametrize("lengths", [[True, False, True], torch.tensor([True, False, True])])
    def test_are_no_marks(self, lengths):
        with pytest.raises(ValueError, match=r"lengths must be 3 integers, one a sequence, got torch.bool of shape"):
            GRU(3, 4)(torch.randn(3, 5, 3), lengths=lengths)

    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("make", [LSTM, partial(GRU, bidirectional=True), partial(GRU, num_layers=2)])
    @pytest.mark.parametrize("lengths", [[5, 4, 2], [2, 5, 4]])
    def test_of_a_packed_sequence_are_its_own(self, make, batch_first, lengths):
        layer = make(3, 4, batch_first=batch_first)
        inputs = torch.randn(3, 5, 3) if batch_first else torch.randn(5, 3, 3)
        packed = rnn.pack_padded_sequence(inputs, torch.tensor(lengths), batch_first, enforce_sorted=False)
        outputs, state = layer(packed)
        expected, after = layer(inputs, lengths=lengths)
        assert torch.equal(outputs.batch_sizes, packed.batch_sizes)
        assert_close(rnn.pad_packed_sequence(outputs, batch_first, total_length=5)[0], expected)
        assert_close(state, after)
        with pytest.raises(ValueError, match="a packed sequence has its lengths with it"):
            layer(packed, lengths=lengths)

    def test_of_a_packed_sequence_as_in_torch(self):
        module = nn.LSTM(3, 4, num_layers=2)
        packed = rnn.pack_sequence([torch.randn(n, 3) for n in (2, 5, 4)], enforce_sorted=False)
        outputs, _ = LSTM.from_torch(module)(packed)
        expected, _ = module(packed)
        assert_close(outputs.data, expected.data)
        assert torch.equal(outputs.sorted_indices, expected.sorted_indices)


@every_layer
def test_layers_inside_are_called_as_modules(name):
    layer = zoo_layers.LAYERS[name]()
    inside = [module for module in layer.modules() if isinstance(module, rnn_blocks.Layer)]
    called = []
    for module in inside:
        module.register_forward_hook(
            lambda module, args, result: called.append((module, args[0].shape, result[0].shape))
        )
    layer(torch.randn(2, 5, 3), lengths=[5, 3])
    assert {id(module) for module, *_ in called} == {id(module) for module in inside}
    assert len(called) == len(inside)
    for module, taken, given in called:
        assert (taken, given) == ((2, 5, module.input_size), (2, 5, module.output_size))


def test_a_forward_hook_may_change_what_a_layer_inside_gives():
    stack, inputs = Stack([GRU(3, 4), GRU(4, 2)]), torch.randn(2, 5, 3)
    lower, _ = stack.layers[0](inputs)
    expected, _ = stack.layers[1](2 * lower)
    stack.layers[0].register_forward_hook(lambda module, args, result: (2 * result[0], result[1]))
    assert_close(stack(inputs)[0], expected)
