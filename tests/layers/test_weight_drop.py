"""A layer within WeightDrop is that layer with some weights zero for a call, after which they are the same bits."""

import copy
from functools import partial
from types import MethodType

import oracles
import pytest
import torch
from torch import nn
from torch.nn.functional import dropout
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close
from twins import run_seeded

from rnn_blocks import GRU, LSTM, Bidirectional, Elman, ElmanCell, GRUCell, Recurrent, RHNCell, Stack, WeightDrop
from rnn_blocks.engine import state_tensors
from rnn_blocks.engine.fused import _programs

EXACT = {"rtol": 1e-10, "atol": 1e-12, "check_stride": False}


class Watched(ElmanCell):
    """A cell that notes how many of its recurrent weights are zero at each call."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.seen: list[float] = []

    def project(self, inputs):
        self.seen.append((self.weight_hh == 0).float().mean().item())
        return super().project(inputs)


def test_weights_are_the_same_bits_after_fifty_calls_each_of_which_sees_a_part_zero():
    layer = WeightDrop(Recurrent(Watched(3, 40), engine="loop"), 0.2)
    cell = layer.layer.cell
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in layer.named_parameters()}
    for _ in range(50):
        layer(torch.randn(2, 3, 3))[0].sum().backward()
    assert all(0.15 < part < 0.25 for part in cell.seen)
    assert len(set(cell.seen)) > 10  # masks differ
    for name, parameter in layer.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert isinstance(cell.weight_hh, nn.Parameter)
    assert cell.weight_hh.is_leaf


def test_training_evaluation_and_training_again_drop_dont_drop_and_drop():
    layer = WeightDrop(Recurrent(Watched(3, 40), engine="loop"), 0.2)
    seen = layer.layer.cell.seen
    for training in (True, False, True, False):
        layer.train(training)(torch.randn(1, 2, 3))
        layer.step(torch.randn(1, 3))
    assert [part > 0 for part in seen] == [True, True, False, False] * 2


LAYERS = {
    **{
        f"{make.__name__}-{engine}": lambda make=make, engine=engine: make(3, 4, num_layers=2, engine=engine)
        for make in (LSTM, GRU, Elman)
        for engine in ("native", "fused", "loop")
    },
    "bidirectional": lambda: Bidirectional(LSTM(3, 4), GRU(3, 2, engine="fused")),
    "rhn": lambda: Recurrent(RHNCell(3, 4, depth=3)),
}


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=["whole", "ragged"])
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_layer_with_dropped_weights_and_their_gradients_masked(name, lengths):
    layer = WeightDrop(LAYERS[name](), 0.4).double()
    inputs = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    state = oracles.random_state(layer.initial_state(3, inputs))
    options = {} if lengths is None else {"lengths": torch.tensor(lengths)}

    torch.manual_seed(3)
    outputs, after = layer(inputs, state, **options)
    found = oracles.gradients_of(oracles.weighted_sum(outputs, after), [inputs, *layer.parameters()])

    torch.manual_seed(3)
    plain = copy.deepcopy(layer.layer)
    masks = []
    for key, parameter in plain.named_parameters():
        ones = torch.ones_like(parameter)
        masks.append(dropout(ones, 0.4) if key.endswith("weight_hh") else ones)
        parameter.data.mul_(masks[-1])
    assert any(not mask.all() for mask in masks)
    expected, final = plain(inputs, state, **options)
    gradients = oracles.gradients_of(oracles.weighted_sum(expected, final), [inputs, *plain.parameters()])
    assert_close(outputs, expected, **EXACT)
    assert_close(state_tensors(after), state_tensors(final), **EXACT)
    assert_close(found[0], gradients[0], **EXACT)
    assert_close(found[1:], [g * mask for g, mask in zip(gradients[1:], masks, strict=True)], **EXACT)


def pruned(cell):
    prune.l1_unstructured(cell, "weight_hh", amount=0.3)


def normed(cell):
    parametrizations.weight_norm(cell, "weight_hh")


@pytest.mark.parametrize("change", [normed, pruned])
@pytest.mark.parametrize(("make", "engine"), [(LSTM, "native"), (GRU, "fused"), (Elman, "loop")])
def test_weights_that_are_computed_are_dropped_as_by_a_loop_over_them(make, engine, change):
    layer, plain = (make(3, 4, num_layers=2, engine=engine).double() for _ in range(2))
    cells, by_hand = ([part.cell for part in stack.layers] for stack in (layer, plain))
    for cell in cells:
        change(cell)
    dropping = WeightDrop(layer, 0.4)
    inputs = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    state = oracles.random_state(layer.initial_state(3, inputs))
    leaves = [inputs, *layer.parameters()]
    torch.manual_seed(3)
    outputs, after = dropping(inputs, state)
    found = oracles.gradients_of(oracles.weighted_sum(outputs, after), leaves)

    torch.manual_seed(3)
    for cell, twin in zip(cells, by_hand, strict=True):
        computed = cell.weight_hh if change is normed else cell.weight_hh_orig * cell.weight_hh_mask
        mask = dropout(torch.ones_like(computed), 0.4)
        assert not mask.all()
        twin._parameters |= {name: cell._parameters[name] for name in twin._parameters if name != "weight_hh"}
        del twin.weight_hh
        twin.weight_hh = computed * mask
    expected, final = oracles.run_by_hand(by_hand, inputs, state)
    gradients = oracles.gradients_of(oracles.weighted_sum(expected, tuple(final)), leaves)
    assert_close(outputs, expected, **EXACT)
    assert_close(state_tensors(after), state_tensors(tuple(final)), **EXACT)
    assert_close(found, gradients, **EXACT)
    assert not torch.equal(outputs, dropping(inputs, state)[0])


@pytest.mark.parametrize("change", [normed, pruned])
def test_a_layer_whose_weights_are_computed_trains_once_wrapped_or_before(change):
    trained = []
    for first in (True, False):
        torch.manual_seed(0)
        layer = GRU(3, 4, engine="fused").double()
        cell = layer.layers[0].cell
        if first:
            change(cell)
        dropping = WeightDrop(layer, 0.4)
        if not first:
            change(cell)
        optimizer = torch.optim.SGD(dropping.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            dropping(torch.randn(2, 3, 3, dtype=torch.float64))[0].square().sum().backward()
            assert all(parameter.grad.any() for parameter in dropping.parameters())
            optimizer.step()
        trained.append(dropping.state_dict())
        assert len(_programs[cell]) == 1
    assert_close(trained[0], trained[1], rtol=0, atol=0)


def test_methods_put_on_a_layer_run_with_what_is_left_of_its_computed_weights():
    layer, ran = WeightDrop(Recurrent(GRUCell(3, 4), engine="loop"), 0.4), []
    inner, inputs = layer.layer, torch.randn(2, 5, 3)
    pruned(inner.cell)
    expected, _ = run_seeded(layer, inputs)

    def run(module, *arguments):
        ran.append(type(module))
        return Recurrent.run(module, *arguments)

    for method in (partial(run, inner), MethodType(run, inner)):
        inner.run = method
        assert_close(run_seeded(layer, inputs)[0], expected)
    assert ran == [Recurrent] * 2


def test_hooks_of_a_cell_run_where_its_computed_weights_are_dropped():
    layer, seen = WeightDrop(GRU(3, 4), 0.4), []
    cell = layer.layer.layers[0].cell
    pruned(cell)
    cell.register_forward_pre_hook(lambda module, args: seen.append((module, args[0].shape)))
    layer.layer.register_forward_hook(lambda module, args, result: seen.append((module, result[0].shape)))
    layer.layer.register_full_backward_hook(lambda module, *_: seen.append(module))
    layer(torch.randn(2, 5, 3, requires_grad=True))[0].sum().backward()
    assert seen == [(cell, (5, 2, 3)), (layer.layer, (2, 5, 4)), layer.layer]


def test_one_inside_another_keeps_nothing_of_what_was_computed_for_a_call():
    inner = WeightDrop(GRU(3, 4), 0.4)
    outer = WeightDrop(Stack([inner]), 0.3)
    parametrizations.weight_norm(inner.layer.layers[0].cell, "weight_hh")
    outer(torch.randn(2, 5, 3))[0].sum().backward()
    copy.deepcopy(outer)(torch.randn(2, 5, 3))[0].sum().backward()
    assert inner._calls["call"].module is inner.layer


@pytest.mark.parametrize("name", LAYERS)
def test_in_evaluation_it_is_the_layer(name):
    layer = WeightDrop(LAYERS[name](), 0.4).eval()
    inputs = torch.randn(2, 4, 3)
    assert torch.equal(layer(inputs)[0], layer.layer(inputs)[0])
    if layer.causal:
        assert torch.equal(layer.step(inputs[:, 0])[0], layer.layer.step(inputs[:, 0])[0])


def test_gradients_of_the_true_weights_are_those_of_finite_differences():
    layer = WeightDrop(GRU(2, 3, engine="fused"), 0.4).double()
    inputs = torch.randn(2, 3, 2, dtype=torch.float64)
    weight = layer.layer.layers[0].cell.weight_hh
    outputs, state = run_seeded(layer, inputs)
    (gradient,) = oracles.gradients_of(oracles.weighted_sum(outputs, state), [weight])
    for index in [(0, 0), (4, 1), (8, 2)]:
        values = []
        for change in (1e-6, -2e-6):
            weight.data[index] += change
            values.append(oracles.weighted_sum(*run_seeded(layer, inputs)))
        weight.data[index] += 1e-6
        assert_close((values[0] - values[1]) / 2e-6, gradient[index], rtol=1e-6, atol=1e-7)


def test_one_mask_serves_all_sequences_of_a_call():
    layer = WeightDrop(LSTM(3, 20), 0.5)
    outputs, _ = layer(torch.randn(1, 6, 3).expand(4, 6, 3))
    assert_close(outputs, outputs[:1].expand_as(outputs))
    assert not torch.equal(outputs, layer(torch.randn(1, 6, 3).expand(4, 6, 3))[0])


def test_the_state_dict_is_the_layers_behind_one_prefix():
    layer = LSTM(3, 4, num_layers=2)
    assert list(WeightDrop(layer, 0.5).state_dict()) == [f"layer.{key}" for key in layer.state_dict()]


def test_a_layer_put_in_place_of_another_is_the_one_that_runs():
    layer = WeightDrop(LSTM(3, 4), 0.5)
    layer.layer = GRU(3, 4)
    inputs = torch.randn(2, 3, 3)
    expected = layer.layer(inputs)[0]
    assert not torch.equal(layer(inputs)[0], expected)
    assert torch.equal(layer.eval()(inputs)[0], expected)


def test_a_call_that_fails_leaves_the_weights_in_place():
    layer = WeightDrop(LSTM(3, 4, engine="native"), 0.5)
    weight = layer.layer.layers[0].cell.weight_hh
    with pytest.raises(ValueError, match="native kernels take no resets"):
        layer(torch.randn(2, 3, 3), resets=torch.ones(2, 3, dtype=torch.bool))
    assert layer.layer.layers[0].cell.weight_hh is weight


def test_other_weights_can_be_dropped():
    layer = WeightDrop(Recurrent(RHNCell(3, 30, depth=2), engine="loop"), 0.5, weights=("weight_ih", "weight_hh"))
    untouched = WeightDrop(layer.layer, 0.5, weights=["bias"])
    inputs = torch.randn(2, 3, 3)
    found = []
    for one in (layer, untouched):
        gradients = oracles.gradients_of(one(inputs)[0].sum(), list(one.parameters()))
        named = zip((key for key, _ in one.named_parameters()), gradients, strict=True)
        found.append(
            {key.removeprefix("layer.cell.") for key, gradient in named if (gradient == 0).float().mean() > 0.3}
        )
    assert found == [{"weight_ih", "weight_hh", "deeper.0.weight_hh"}, {"bias", "deeper.0.bias"}]


def test_a_name_that_no_weight_has_is_refused_with_the_choices():
    for weights in (("weight_hx",), (), "bias"):
        with pytest.raises(
            ValueError, match="names of parameters of this LSTM, some of 'bias', 'weight_hh', 'weight_ih', got"
        ):
            WeightDrop(LSTM(3, 4), 0.5, weights=weights)
