"""Steps that cannot be recorded are refused with the reason, and none is run from the record of another."""

import gc
import weakref

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


class Sub(torch.Tensor):
    pass


@torch.library.custom_op("rnn_blocks_tests::total", mutates_args=())
def total(values: torch.Tensor) -> float:
    return float(values.sum())


def written_to_a_view(x):
    made = torch.zeros(x.shape)
    made[:, 0] = x[:, 0]
    return 1.0 if made.sum() > 0 else -1.0


def written_to_the_base_of_a_view(x):
    made = torch.zeros(x.shape)
    view = made.view(-1)
    made.copy_(x)
    return view.sum().item()


def written_out(x):
    made = torch.zeros(2)
    torch.sum(x, dim=(0, 1), out=made[0])
    return made[0].item()


def written_by_foreach(x):
    made = [torch.zeros(1)]
    torch._foreach_add_(made, [x.sum()])
    return made[0].item()


def written_to_data(x):
    made = torch.zeros(x.shape)
    made.data.copy_(x)
    return made.sum().item()


def written_to_a_constant(x):
    made = torch.tensor([1.0, 2.0])
    made[0] = x[0, 0]
    return made.sum().item()


def drawn_into_a_view(x):
    made = torch.zeros(2, 2)
    made[:, 0].uniform_()
    return made.sum().item()


def put_into_another(x):
    made = torch.zeros(x.shape)
    made.data = x
    return made


BY_WAYS_UNSEEN = [
    *(written_to_a_view, written_to_the_base_of_a_view, written_out, written_by_foreach, written_to_data),
    *(written_to_a_constant, drawn_into_a_view, put_into_another),
    pytest.param(lambda x: (x.as_subclass(Sub) * 2).as_subclass(torch.Tensor), id="subclass"),
    pytest.param(lambda x: nn.Parameter(x, requires_grad=False), id="parameter"),
    pytest.param(lambda x: torch.tensor(list(x[0])), id="list"),
    pytest.param(lambda x: torch.as_tensor([[value, 1.0, 1.0, 1.0] for value in x[:, 0]]), id="nested list"),
    pytest.param(lambda x: torch.from_dlpack(x), id="dlpack"),
    pytest.param(lambda x: torch.ops.rnn_blocks_tests.total(x), id="operator that gives a number"),
]


@pytest.mark.parametrize("way", BY_WAYS_UNSEEN)
@pytest.mark.parametrize("grad", [True, False], ids=["training", "no_grad"])
def test_numbers_that_come_by_a_way_that_leaves_no_operator_are_refused(way, grad):
    def step(_, projected, state):
        h = hidden(projected, state) * way(projected.detach())
        return h, h

    layer = Recurrent(cell_of(step), engine="fused")
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="this step cannot be recorded: it "):
        layer(INPUTS)


def test_noise_that_is_drawn_anew_for_the_derivative_is_refused():
    def step(_, projected, state):
        def noisy(x, h):
            return nn.functional.dropout(hidden(x, h), 0.5, True)

        h = torch.utils.checkpoint.checkpoint(noisy, projected, state, use_reentrant=False)
        return h, h

    with pytest.raises(ValueError, match="its derivative draws random numbers anew, as of a checkpoint"):
        Recurrent(cell_of(step), engine="fused")(INPUTS.clone().requires_grad_())


def test_a_generator_of_the_cells_draws_in_a_step():
    def step(cell, projected, state):
        h = hidden(projected, state) + torch.empty_like(projected).normal_(generator=cell._generator)
        return h, h

    found = []
    for engine in ("fused", "loop"):
        cell = cell_of(step, _generator=torch.Generator())
        layer = Recurrent(cell, engine=engine)
        layer(INPUTS)  # recording draws as well
        cell._generator.manual_seed(3)
        found.append(layer(INPUTS)[0])
    torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.cond's own
def test_a_branch_that_torch_takes_for_both_is_recorded():
    def step(_, projected, state):
        h = torch.cond(
            projected.sum() > 0, lambda x, h: (x + h).tanh(), lambda x, h: (x - h).tanh(), (projected, state)
        )
        return h, h

    cell = cell_of(step)
    assert_runs_as_the_loop(cell)
    inputs = -INPUTS
    for engine in ("fused", "loop"):
        assert torch.isfinite(Recurrent(cell, engine=engine)(inputs)[0]).all()
    with torch.no_grad():
        torch.testing.assert_close(*(Recurrent(cell, engine=engine)(inputs)[0] for engine in ("fused", "loop")))


def test_what_a_step_makes_in_float32_under_autocast_is_made_so_where_it_changes_something_in_place_too():
    def step(cell, projected, state):
        with torch.autocast("cpu", enabled=False):
            h = torch.tanh(projected.float() + state.float() @ cell.weight)
        h = h.clone()
        h[:, 0] = 0
        return h, h

    torch.manual_seed(0)
    cell = cell_of(step, weight=nn.Parameter(torch.randn(4, 4) / 2))
    gradients = []
    for engine in ("fused", "loop"):
        inputs = INPUTS.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            outputs, _ = Recurrent(cell, engine=engine)(inputs)
        gradients.append((outputs, *torch.autograd.grad(outputs.sum(), [inputs, cell.weight])))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["weights", "constant", "input", "state"])
def test_an_output_and_state_that_no_operator_of_the_step_makes_are_recorded(kind):
    def step(cell, projected, state):
        made = {
            "weights": lambda: cell.weight.diagonal().expand(projected.shape[0], -1),
            "constant": lambda: torch.ones(projected.shape),
            "input": lambda: projected,
            "state": lambda: state,
        }[kind]()
        return made, made

    cell = cell_of(step, weight=nn.Parameter(torch.randn(4, 4)))
    assert_runs_as_the_loop(cell)
    if kind == "weights":
        gradients = [
            torch.autograd.grad(Recurrent(cell, engine=engine)(INPUTS)[0].square().sum(), cell.weight)[0]
            for engine in ("fused", "loop")
        ]
        torch.testing.assert_close(*gradients)


def test_a_record_leaves_no_view_of_its_inputs_behind_that_waits_for_the_garbage_collector():
    def step(cell, projected, state):
        h = hidden(projected, state @ cell.weight)
        return h, h

    layer = Recurrent(cell_of(step, weight=nn.Parameter(torch.randn(4, 4))), engine="fused")
    gc.collect()
    gc.disable()
    try:
        inputs = torch.randn(3, 6, 4)
        alive = weakref.ref(inputs.untyped_storage())
        before = {id(one) for one in gc.get_objects()}
        with torch.no_grad():
            outputs, after = layer(inputs)
        made = [one for one in gc.get_objects() if type(one) is torch.Tensor and id(one) not in before]
        given = inputs.untyped_storage()._cdata
        assert not any(one.untyped_storage()._cdata == given for one in made)
        del inputs, outputs, after, made
        assert alive() is None
    finally:
        gc.enable()


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


def test_a_sparse_tensor_of_the_cell_is_a_part_of_the_step():
    def step(self, projected, state):
        h = hidden(projected, state)
        return torch.sparse.mm(self.mixing, h.t()).t(), h

    mixing = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0], [0.0] * 4, [3.0, 0.0, 0.0, 0.0]])
    cell = cell_of(step, mixing=mixing.to_sparse())
    gradients = []
    for engine in ("fused", "loop"):
        inputs = INPUTS.clone().requires_grad_()
        outputs, _ = Recurrent(cell, engine=engine)(inputs)
        gradients.append(torch.autograd.grad(outputs.square().sum(), inputs)[0])
    torch.testing.assert_close(*gradients)
    assert_runs_as_the_loop(cell)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="nn.LSTM on CPU is not a kernel of oneDNN here")
def test_torchs_own_layer_in_a_step_is_refused_where_there_is_a_gradient():
    def step(self, projected, state):
        h = self.inner(hidden(projected, state).unsqueeze(0))[0][0]
        return h, h

    layer = Recurrent(cell_of(step, inner=nn.LSTM(4, 4)), engine="fused")
    with pytest.raises(ValueError, match=r"this step cannot be recorded: nn.LSTM in it keeps .* engine='loop' runs"):
        layer(INPUTS.clone().requires_grad_())
    with torch.no_grad():
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
