"""What users do to modules works on ours: weights parametrised, pruned, normed; hooks; torch.func; copies; FSDP2.

Each on every cell of the zoo by the engine that it takes by default and by those that record steps, against a loop that
calls the cell's own methods and knows of no engine.
"""

import copy
import pickle
from functools import partial

import pytest
import torch
import zoo
import zoo_layers
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.testing import assert_close
from two_ranks import run_two_ranks
from users import CLOSE, by_hand, engines, every_cell, every_layer, gradients, matrices, total

import rnn_blocks
from rnn_blocks import GRU, Bidirectional, GRUCell, Recurrent, WeightDrop
from rnn_blocks.engine.fused import _programs


def agrees_with_the_hand(make, run_hooks=lambda cell: None):
    """Whether a cell, made alike for each engine, has the outputs, states and gradients of the loop by hand."""
    expected = make()
    inputs = torch.randn(5, 3, expected.input_size, dtype=torch.float64)
    results = []
    for engine in [None, *engines(expected)]:
        cell = make()
        cell.load_state_dict(expected.state_dict())
        own, state = inputs.clone().requires_grad_(), cell.initial_state(3, inputs)
        if engine is None:
            run_hooks(cell)
            result = by_hand(cell, own, state)
        else:
            result = Recurrent(cell, engine=engine, batch_first=False)(own, state)
        total(*result).backward()
        results.append((*result, own.grad, gradients(cell)))
    for result in results[1:]:
        assert_close(result, results[0], **CLOSE)
    return results[0]


@every_cell
def test_parametrised_weights_are_those_of_the_loop_and_computed_once_a_sequence(name):
    calls = []

    class Counted(nn.Module):
        def forward(self, weight):
            calls.append(1)
            return weight.tanh() * 1.5

    def make():
        torch.manual_seed(0)
        cell = zoo.CELLS[name](3, 4).double().eval()
        for module, weight in matrices(cell):
            parametrize.register_parametrization(module, weight, Counted(), unsafe=True)
        return cell

    agrees_with_the_hand(make)
    cell = make()
    for engine in engines(cell):
        layer = Recurrent(cell, engine=engine)
        layer(torch.randn(3, 5, cell.input_size, dtype=torch.float64))
        calls.clear()
        layer(torch.randn(3, 5, cell.input_size, dtype=torch.float64))
        assert len(calls) == len(matrices_parametrised(cell)), engine


def matrices_parametrised(cell):
    return [
        name for module in cell.modules() if parametrize.is_parametrized(module) for name in module.parametrizations
    ]


@every_cell
def test_pruned_weights_train_and_what_is_pruned_stays_zero(name):
    def make():
        torch.manual_seed(0)
        cell = zoo.CELLS[name](3, 4).double().eval()
        for module, weight in matrices(cell):
            prune.l1_unstructured(module, weight, amount=0.4)
        return cell

    def run_hooks(cell):
        for module in cell.modules():
            for hook in module._forward_pre_hooks.values():
                hook(module, ())

    *_, found = agrees_with_the_hand(make, run_hooks)
    assert all(gradient is not None for name, gradient in found.items() if name.endswith("_orig"))
    cells = make(), make()
    inputs = torch.randn(5, 3, cells[0].input_size, dtype=torch.float64)
    for cell in cells:
        optimizer = torch.optim.SGD(cell.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            if cell is cells[0]:
                result = Recurrent(cell, batch_first=False)(inputs)
            else:
                run_hooks(cell)
                result = by_hand(cell, inputs, cell.initial_state(3, inputs))
            total(*result).backward()
            optimizer.step()
    assert_close(cells[0].state_dict(), cells[1].state_dict(), rtol=1e-6, atol=1e-8)
    Recurrent(cells[0], batch_first=False)(inputs)
    for module, weight in ((m, n.removesuffix("_orig")) for m, n in matrices(cells[0])):
        masked = getattr(module, f"{weight}_mask") == 0
        assert masked.any()
        assert not getattr(module, weight)[masked].any()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "Elman", "IndRNN", "LayerNormLSTM", "SRU"])
@pytest.mark.parametrize(
    "reparametrise",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        weight_norm,
        spectral_norm,
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "old weight_norm", "old spectral_norm"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_torchs_own_reparametrisations_train_as_by_the_loop(kind, reparametrise):
    inputs = torch.randn(3, 5, 4, dtype=torch.float64)
    trained = []
    for engine in ("auto", "loop"):
        torch.manual_seed(0)
        layer = getattr(rnn_blocks, kind)(4, 4, engine=engine).double()
        cell = layer.layers[0].cell
        reparametrise(cell, next(name for _, name in matrices(cell)))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            total(*layer(inputs)).backward()
            assert all(parameter.grad is not None for parameter in layer.parameters())
            optimizer.step()
        trained.append(layer.state_dict())
    assert_close(*trained, **CLOSE)


@every_cell
def test_hooks_of_a_cell_run_once_a_sequence_and_may_replace_what_goes_in(name):
    cell = zoo.CELLS[name](3, 4).double().eval()
    inputs = torch.randn(3, 5, cell.input_size, dtype=torch.float64)
    for engine in engines(cell):
        layer, calls = Recurrent(cell, engine=engine), []
        expected, _ = layer(2 * inputs)

        def double(module, args, calls=calls):
            calls.append(module)
            return 2 * args[0], args[1]

        handle = cell.register_forward_pre_hook(double)
        outputs, _ = layer(inputs)
        assert calls == [cell]
        assert_close(outputs, expected, **CLOSE)
        handle.remove()
        assert layer(inputs)[0] is not None
        assert calls == [cell]


@every_cell
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch itself, in forward mode
def test_function_transforms_work_on_the_default_engine(name):
    cell = zoo.CELLS[name](3, 4).double().eval()
    layer, loop = Recurrent(cell), Recurrent(cell, engine="loop")
    inputs = torch.randn(2, 3, cell.input_size, dtype=torch.float64)

    def one(sequence, layer=layer):
        return layer(sequence[None])[0][0]

    assert_close(torch.func.vmap(one)(inputs), layer(inputs)[0], **CLOSE)
    expected = torch.autograd.functional.jacobian(partial(one, layer=loop), inputs[0])
    assert_close(torch.func.jacrev(one)(inputs[0]), expected, **CLOSE)
    assert_close(torch.func.jacfwd(one)(inputs[0]), expected, **CLOSE)

    def loss(weights):
        return total(*torch.func.functional_call(layer, weights, (inputs,)))

    weights = dict(layer.named_parameters())
    total(*layer(inputs)).backward()
    found = torch.func.grad(loss)({name: weight.detach() for name, weight in weights.items()})
    assert_close(found, {k: torch.zeros_like(w) if w.grad is None else w.grad for k, w in weights.items()}, **CLOSE)
    assert_close(torch.func.functional_call(layer, weights, (inputs,))[0], layer(inputs)[0], **CLOSE)


@every_layer
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_function_transforms_work_on_layers_of_layers(name):
    torch.manual_seed(0)
    layer = zoo_layers.LAYERS[name]().double().eval()
    inputs = torch.randn(2, 3, 3, dtype=torch.float64)

    def one(sequence):
        return layer(sequence[None])[0][0]

    assert_close(torch.func.vmap(one, randomness="same")(inputs), layer(inputs)[0], **CLOSE)
    expected = torch.autograd.functional.jacobian(one, inputs[0])
    assert_close(torch.func.jacrev(one)(inputs[0]), expected, **CLOSE)
    assert_close(torch.func.jacfwd(one, randomness="same")(inputs[0]), expected, **CLOSE)


@every_cell
def test_a_cell_that_has_run_is_copied_and_pickled(name):
    cell = zoo.CELLS[name](3, 4).eval()
    inputs = torch.randn(2, 5, cell.input_size)
    expected, _ = Recurrent(cell)(inputs)
    expected.sum().backward()
    for other in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert_close(Recurrent(other)(inputs)[0], expected, rtol=0, atol=0)


def test_weight_drop_still_hands_its_weights_to_a_layer_whose_hooks_run():
    layer, called = WeightDrop(Bidirectional(GRU(3, 4)), 0.5), []
    layer.layer.register_forward_hook(lambda *_: called.append(1))
    first, _ = layer(torch.ones(2, 5, 3))
    second, _ = layer(torch.ones(2, 5, 3))
    assert called == [1, 1]
    assert not torch.equal(first, second)


@every_layer
def test_a_layer_that_has_run_is_copied_and_pickled(name):
    layer = zoo_layers.LAYERS[name]().eval()
    inputs = torch.randn(2, 5, 3)
    expected, _ = layer(inputs)
    for other in (
        copy.deepcopy(layer),
        *([] if "<lambda>" in repr(vars(layer)) else [pickle.loads(pickle.dumps(layer))]),
    ):
        assert_close(other(inputs, None)[0].shape, expected.shape)
        assert {k: v.tolist() for k, v in other.state_dict().items()} == {
            k: v.tolist() for k, v in layer.state_dict().items()
        }


def test_recorded_steps_of_a_pruned_cell_are_recorded_once():
    layer = Recurrent(prune.l1_unstructured(GRUCell(3, 4), "weight_hh", amount=0.5), engine="fused")
    for _ in range(3):
        layer(torch.randn(2, 5, 3))[0].sum().backward()
    assert len(_programs[layer.cell]) == 1


SHARDED = """
import warnings
import torch
import torch.distributed as dist
from rnn_blocks import GRU, LRU, LSTM, Bidirectional, LayerNormLSTM, Stack, WeightDrop
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

warnings.simplefilter("ignore")
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))

def make():
    torch.manual_seed(0)
    layers = [GRU(4, 8), Bidirectional(LSTM(8, 4)), LayerNormLSTM(8, 6), WeightDrop(LSTM(6, 6), 0.0), LRU(6, 6)]
    return Stack(layers, skip="residual")

def run(stack):
    torch.manual_seed(1)
    outputs, _ = stack(torch.randn(4, 5, 4), lengths=[5, 0, 3, 4])
    outputs.square().sum().backward()
    return outputs, [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in stack.parameters()]

expected, stack = run(make()), make()
for layer in stack.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(stack, mesh=mesh)
assert_close(run(stack), expected, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.processes
def test_fsdp2_shards_a_stack_layer_by_layer():
    run_two_ranks(SHARDED)
