"""Ready-made layers are stacks of their cells: their constructors' options, the same for all."""

import inspect
from typing import get_type_hints

import pytest
import torch
from torch.testing import assert_close
from typing_extensions import Unpack

import rnn_blocks
from rnn_blocks import LSTM, Bidirectional, Recurrent, RecurrentStack, Stack
from rnn_blocks.layers.recurrent_stack import StackOptions
from rnn_blocks.signatures import with_options_of

READY_MADE = {
    name: layer
    for name, layer in vars(rnn_blocks).items()
    if inspect.isclass(layer) and issubclass(layer, RecurrentStack) and layer is not RecurrentStack
}
every_layer = pytest.mark.parametrize("name", READY_MADE)
SIZES = ["input_size", "hidden_size"]
COMMON = ["num_layers", "bidirectional", "dropout", "skip", "init", "engine", "batch_first"]


def cells_of(layer):
    return [part.cell for part in layer.modules() if isinstance(part, Recurrent)]


def own_options(make):
    """What a cell takes besides its sizes, with the defaults."""
    parameters = inspect.signature(type(cells_of(make(3, 4))[0])).parameters
    return {key: parameter for key, parameter in parameters.items() if key not in SIZES}


@every_layer
def test_options_are_the_common_ones_and_the_cells_with_its_defaults(name):
    parameters = inspect.signature(READY_MADE[name]).parameters
    own = own_options(READY_MADE[name])
    assert list(parameters) == SIZES + list(own) + COMMON
    common = inspect.signature(RecurrentStack).parameters
    for key, parameter in parameters.items():
        expected = own.get(key) or common[key]
        assert (parameter.default, parameter.kind, parameter.annotation) == (
            expected.default,
            expected.kind,
            expected.annotation,
        )


def test_the_common_options_are_the_stacks_for_type_checkers_too():
    hints = get_type_hints(RecurrentStack.__init__)
    assert get_type_hints(StackOptions) == {name: hints[name] for name in COMMON}


@every_layer
def test_every_option_is_told_and_a_wrong_one_is_an_error(name):
    told = inspect.getdoc(READY_MADE[name])
    for option in inspect.signature(READY_MADE[name]).parameters:
        assert f"\n    {option}: " in told
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_layer'"):
        READY_MADE[name](3, 4, num_layer=2)


@every_layer
def test_the_cells_options_reach_every_cell(name):
    others = {
        "nonlinearity": "tanh",
        "eps": 1e-3,
        "depth": 2,
        "num_heads": 2,
        "forget_gate": "exponential",
        "learned": True,
        "candidate": "positive",
        "activation": "relu",
        "r_min": 0.5,
        "reset_after": False,
    }
    make = READY_MADE[name]
    options = {key: others[key] for key in own_options(make) if key in others}
    if name == "Elman":
        options = {"nonlinearity": "relu"}
    for cell in cells_of(make(3, [4, 2], bidirectional=True, **options)):
        assert {key: getattr(cell, key) for key in options} == options


@every_layer
@torch.no_grad()
def test_every_layer_may_have_a_width_of_its_own_and_read_both_ways(name):
    layer = READY_MADE[name](3, [8, 4, 6], bidirectional=True)
    assert [(cell.input_size, cell.hidden_size) for cell in cells_of(layer)] == [
        *[(3, 8)] * 2,
        *[(16, 4)] * 2,
        *[(8, 6)] * 2,
    ]
    assert all(isinstance(level, Bidirectional) and level.merge == "concat" for level in layer.layers)
    assert (layer.output_size, layer.causal) == (12, False)
    outputs, _ = layer(torch.randn(2, 5, 3), lengths=torch.tensor([5, 2]))
    assert outputs.shape == (2, 5, 12)


@every_layer
@pytest.mark.parametrize("skip", [None, "residual", "highway", "dense", "input"])
def test_a_skip_gives_the_layers_the_widths_that_it_needs(name, skip):
    layer = READY_MADE[name](3, [4, 4, 2], skip=skip, dropout=0.2)
    assert (layer.skip, layer.dropout, layer.output_size) == (skip, 0.2, 2)
    assert [cell.input_size for cell in cells_of(layer)] == Stack.input_sizes(3, [4, 4, 2], skip=skip)
    assert READY_MADE[name](3, 4, num_layers=2, bidirectional=True, skip=skip).output_size == 8


@every_layer
def test_engine_and_order_of_dimensions_reach_every_layer(name):
    layer = READY_MADE[name](3, 4, num_layers=2, bidirectional=True, engine="loop", batch_first=False)
    inner = [part for part in layer.modules() if isinstance(part, Recurrent)]
    assert len(inner) == 4
    assert all((part.engine, part.batch_first) == ("loop", False) for part in inner)
    assert not layer.batch_first


@every_layer
def test_weights_start_as_init_says(name):
    make = READY_MADE[name]
    torch.manual_seed(3)
    first = make(3, 4, num_layers=2, bidirectional=True)
    torch.manual_seed(3)
    cells = [type(cell)(cell.input_size, 4) for cell in cells_of(first)]
    for cell, expected in zip(cells_of(first), cells, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(cell.parameters(), expected.parameters(), strict=True))


def test_init_is_that_of_every_cell():
    layer = LSTM(3, 4, num_layers=2, bidirectional=True, init="orthogonal+unit-forget-bias")
    for cell in cells_of(layer):
        assert_close(cell.bias, torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(4))
        assert_close(cell.weight_hh[:4] @ cell.weight_hh[:4].T, torch.eye(4))
    with pytest.raises(ValueError, match="'ones' is not known"):
        LSTM(3, 4, init="ones")


def test_widths_and_number_of_layers_must_agree():
    assert len(LSTM(3, [4, 5], num_layers=2).layers) == 2
    with pytest.raises(ValueError, match=r"hidden_size \[4, 5\] is for 2 layers, but num_layers is 3"):
        LSTM(3, [4, 5], num_layers=3)
    with pytest.raises(ValueError, match="at least one number, one a layer, got none"):
        LSTM(3, [])
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        LSTM(3, 4, num_layers=0)
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        LSTM(3, [4, 0])


def test_any_cell_can_be_stacked_as_the_ready_made_ones_are():
    def make_cell(input_size, hidden_size):
        return rnn_blocks.Leaky(rnn_blocks.ElmanCell(input_size, hidden_size), time_constant=2.0)

    layer = RecurrentStack(make_cell, 3, [4, 2], skip="dense")
    assert [cell.input_size for cell in cells_of(layer)] == [3, 7]
    assert layer(torch.randn(2, 5, 3))[0].shape == (2, 5, 2)


def test_a_layer_of_a_cell_without_options_is_one_line():
    @with_options_of(RecurrentStack)
    class Mine(RecurrentStack):
        def __init__(self, input_size: int, hidden_size: int, **options: Unpack[StackOptions]) -> None:
            super().__init__(rnn_blocks.GRUCell, input_size, hidden_size, **options)

    assert list(inspect.signature(Mine).parameters) == SIZES + COMMON
    assert type(cells_of(Mine(3, 4, num_layers=3))[2]) is rnn_blocks.GRUCell
