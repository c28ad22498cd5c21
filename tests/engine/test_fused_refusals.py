"""Steps that cannot be recorded are refused with the reason, and none is run from the record of another."""

import gc

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

import rnn_blocks
from rnn_blocks import Cell, Recurrent

INPUTS = torch.randn(3, 6, 4)


def cell_of(step, **attributes):
    cell = type("Own", (Cell,), {"step": step})(4, 4)
    for name, value in attributes.items():
        setattr(cell, name, value)
    return cell


def assert_runs_as_the_loop(cell):
    inputs = INPUTS.clone().requires_grad_()
    found, _ = Recurrent(cell, engine="fused")(inputs)
    expected, _ = Recurrent(cell, engine="loop")(inputs)
    torch.testing.assert_close(found, expected)


def hidden(projected, state):
    return torch.tanh(projected + state)


def by_tolist(_, projected, state):
    h = hidden(projected, state)
    return h * h.abs().max().tolist(), h


def by_numpy(_, projected, state):
    h = hidden(projected, state)
    return h * float(h.detach().numpy().max()), h


def by_array(_, projected, state):
    h = hidden(projected, state)
    return h * float(np.asarray(h.detach()).max()), h


def by_a_shape(_, projected, state):
    h = hidden(projected, state)
    return (-h if len((h > 0).nonzero()) > 6 else h), h


def by_a_mask(_, projected, state):
    h = hidden(projected, state)
    return h * h[h > 0].mean(), h


def by_a_choice(_, projected, state):
    h = hidden(projected, state)
    return h * torch.masked_select(h, h > 0).numel(), h


@pytest.mark.parametrize("step", [by_tolist, by_numpy, by_array, by_a_shape, by_a_mask, by_a_choice])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "no_grad"])
def test_a_step_that_looks_at_numbers_is_refused(step, grad):
    layer = Recurrent(cell_of(step), engine="fused")
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=r"cannot be recorded: .* numbers \("):
        layer(INPUTS)


def test_masks_and_places_that_keep_the_shape_are_recorded():
    def step(_, projected, state):
        h = hidden(projected, state).clone()
        h[h < -0.5] = 0.25
        h = h[:, torch.tensor([3, 1, 2, 0])]
        return h.masked_fill(h > 0.5, 0.1), h

    assert_runs_as_the_loop(cell_of(step))


@pytest.mark.parametrize("kind", ["result", "list of modules", "list of parameters"])
def test_a_tensor_that_takes_a_gradient_and_is_no_parameter_is_refused(kind):
    other = {
        "result": nn.Linear(3, 4)(torch.randn(1, 3)),
        "list of modules": [nn.Linear(4, 4)],
        "list of parameters": [nn.Parameter(torch.randn(4))],
    }[kind]

    def step(cell, projected, state):
        if kind == "list of modules":
            projected = cell.other[0](projected)
        else:
            projected = projected + (cell.other if kind == "result" else cell.other[0])
        h = hidden(projected, state)
        return h, h

    layer = Recurrent(cell_of(step, other=other), engine="fused")
    with pytest.raises(ValueError, match="takes a gradient and is no parameter of its module"):
        layer(INPUTS.clone().requires_grad_())
    with torch.no_grad():  # where none is asked for
        assert_runs_as_the_loop(layer.cell)


def test_a_function_that_takes_the_place_of_another_one_is_recorded_anew():
    cell = cell_of(lambda cell, projected, state: (cell.f(hidden(projected, state)),) * 2)
    for k in range(12):  # a new function is likely to come to lie where the last one lay
        cell.f = lambda h, k=k: h * k
        gc.collect(1)
        assert_runs_as_the_loop(cell)


class Settings:
    scale = 1.0


@pytest.mark.parametrize("kind", ["object", "array", "list", "nested"])
def test_a_setting_that_changes_inside_is_recorded_anew(kind):
    values = {"object": Settings(), "array": np.ones(3000), "list": [Settings()], "nested": {"a": [Settings()]}}
    scale = {
        "object": lambda value: value.scale,
        "array": lambda value: float(value[1500]),
        "list": lambda value: value[0].scale,
        "nested": lambda value: value["a"][0].scale,
    }[kind]
    setting = values[kind]
    cell = cell_of(lambda cell, p, h: (hidden(p, h) * scale(cell.setting),) * 2, setting=setting)
    for value in (1.0, 2.0, 3.0):
        if kind == "array":
            setting[1500] = value
        else:
            inside = setting if kind == "object" else setting[0] if kind == "list" else setting["a"][0]
            inside.scale = value
        assert_runs_as_the_loop(cell)


def test_a_setting_that_holds_the_cell_or_itself_is_no_endless_matter():
    cell = cell_of(lambda cell, p, h: (hidden(p, h) * cell.setting.scale,) * 2, setting=Settings())
    cell.setting.owner = cell
    cell.setting.itself = [cell.setting]
    assert_runs_as_the_loop(cell)


def test_a_step_put_on_the_class_takes_over():
    cell = cell_of(lambda _, p, h: (hidden(p, h),) * 2)
    assert_runs_as_the_loop(cell)
    type(cell).step = lambda _, p, h: (p * h, hidden(p, h))
    assert_runs_as_the_loop(cell)


@pytest.mark.parametrize("layer", [rnn_blocks.LayerNormLSTM, rnn_blocks.MinGRU])
def test_many_gradients_at_once_are_refused_but_by_the_loop(layer):
    layer = layer(4, 5)
    with pytest.raises(RuntimeError, match="of many gradients at once: use engine='loop'"):
        jacobian(lambda inputs: layer(inputs)[0], INPUTS[:1, :3], vectorize=True)
    for part in layer.modules():
        if isinstance(part, Recurrent):
            part.engine = "loop"
    found = jacobian(lambda inputs: layer(inputs)[0], INPUTS[:1, :3], vectorize=True)
    expected = jacobian(lambda inputs: layer(inputs)[0], INPUTS[:1, :3])
    torch.testing.assert_close(found, expected)
