"""Layers through torch.compile, torch.export and ONNX: one graph, the same numbers."""

import importlib.util
import warnings
from functools import partial

import oracles
import pytest
import torch
import zoo
import zoo_layers
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from rnn_blocks import GRU, LRU, LSTM, GRUCell, LayerNormLSTM, LSTMCell, MinGRU, Recurrent, Stack, WeightDrop
from rnn_blocks.engine import state_tensors

CLOSE = {"rtol": 1e-10, "atol": 1e-10, "check_stride": False}
LAYERS = {
    **{name: lambda make=make: Recurrent(make(3, 4)) for name, make in zoo.CELLS.items()},
    **zoo_layers.LAYERS,
}
SOME = (
    *("own", "lru", "clockwork-gru", "dropout-zoneout-deep-output-lstm"),
    "variational dropout, weight drop in evaluation",
    "dilated both ways",
)
RECORDED = [LRU, GRU, LayerNormLSTM]  # by a scan, and by recorded steps
OPTIONS = {"lengths": torch.tensor([2, 1]), "resets": torch.tensor([[False, True], [False, False]])}


@pytest.fixture(autouse=True)
def _forgets_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def example(layer, batch=2, time=2):
    """Inputs and a state, of the layer's dtype."""
    inputs = torch.randn(batch, time, 3, dtype=next(layer.parameters()).dtype)
    return inputs, oracles.random_state(layer.initial_state(batch, inputs))


def tensors_of(result):
    outputs, state = result
    return [outputs, *state_tensors(state)]


def outcome(layer, run, arguments, options):
    """Outputs, states and all gradients, with the same noise each time."""
    torch.manual_seed(1)
    outputs, after = run(*arguments, **options)
    gradients = oracles.gradients_of(oracles.weighted_sum(outputs, after), list(layer.parameters()))
    return [*tensors_of((outputs, after)), *gradients]


# Compiled


@pytest.mark.processes
@pytest.mark.parametrize("name", zoo.rest_is_slow(LAYERS, SOME))
def test_a_layer_compiles_as_one_graph_with_its_gradients(name):
    layer = LAYERS[name]().double()
    arguments = example(layer)
    expected = outcome(layer, layer, arguments, OPTIONS)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_close(outcome(layer, compiled, arguments, OPTIONS), expected, **CLOSE)


@pytest.mark.processes
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["whole", "lengths and resets"])
@pytest.mark.parametrize(
    "make",
    [
        *(lambda engine=engine: LSTM(3, 4, engine=engine) for engine in ("native", "fused", "loop")),
        lambda: MinGRU(3, 4, engine="scan"),
    ],
    ids=["native", "fused", "loop", "scan"],
)
def test_whichever_engine_is_asked_for_a_layer_compiles_as_one_graph(make, options):
    layer = make().double()
    arguments = example(layer)
    if getattr(layer.layers[0], "engine", None) == "native":
        options = {key: value for key, value in options.items() if key != "resets"}
    expected = outcome(layer, layer, arguments, options)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_close(outcome(layer, compiled, arguments, options), expected, **CLOSE)


@pytest.mark.processes
def test_a_compiled_layer_takes_sequences_of_other_shapes_and_either_mode():
    layer = Stack([GRU(3, 4), MinGRU(4, 4)], dropout=0.5).double()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for batch, time, training in [(2, 2, True), (2, 3, True), (5, 2, True), (2, 2, False)]:
        layer.train(training)
        arguments = example(layer, batch, time)
        assert_close(outcome(layer, compiled, arguments, {}), outcome(layer, layer, arguments, {}), **CLOSE)


def test_a_layer_with_dropped_weights_compiles_as_one_graph():
    layer = WeightDrop(LSTM(3, 4, num_layers=2), 0.5).double()
    arguments = example(layer)
    expected = outcome(layer, layer, arguments, {})
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_close(outcome(layer, compiled, arguments, {}), expected, **CLOSE)
    assert not torch.equal(compiled(*arguments)[0], compiled(*arguments)[0])
    assert_close(outcome(layer.eval(), compiled, arguments, {}), outcome(layer, layer, arguments, {}), **CLOSE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_default_backend_compiles_a_layer():
    layer = Stack([Recurrent(LSTMCell(3, 4), engine="loop"), Recurrent(GRUCell(4, 4), engine="loop")])
    inputs, state = example(layer, time=5)
    expected = outcome(layer, layer, (inputs, state), {})
    assert_close(outcome(layer, torch.compile(layer), (inputs, state), {}), expected, rtol=1e-4, atol=1e-5)


# Exported


class Step(nn.Module):
    """A layer's single step as a module's call, which is what exporters take."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs, state):
        return self.layer.step(inputs, state)


def any_batch(state, size):
    return {0: size} if isinstance(state, torch.Tensor) else tuple(any_batch(part, size) for part in state)


def with_any_batch(inputs, state):
    size = torch.export.Dim("batch", min=1, max=1024)
    return {"inputs": {0: size}, "state": any_batch(state, size)}


@pytest.mark.processes
@pytest.mark.parametrize("name", zoo.rest_is_slow(LAYERS, SOME))
def test_an_exported_layer_runs_as_the_layer(name):
    layer = LAYERS[name]().double().eval()
    arguments = example(layer)
    program = torch.export.export(layer, arguments, OPTIONS).module()
    others = example(layer)
    assert_close(tensors_of(program(*others, **OPTIONS)), tensors_of(layer(*others, **OPTIONS)), **CLOSE)


CAUSAL = [name for name, make in LAYERS.items() if make().causal]


@pytest.mark.parametrize("name", zoo.rest_is_slow(CAUSAL, (*SOME[:-1], "dilated")))
def test_an_exported_step_takes_any_batch(name):
    layer = LAYERS[name]().double().eval()
    inputs, state = example(layer)
    program = torch.export.export(
        Step(layer), (inputs[:, 0], state), dynamic_shapes=with_any_batch(inputs, state)
    ).module()
    for batch in (1, 5):
        inputs, state = example(layer, batch)
        found = program(inputs[:, 0], state)
        assert_close(tensors_of(found), tensors_of(layer.step(inputs[:, 0], state)), **CLOSE)


def test_an_exported_stack_takes_any_batch():
    layer = Stack([LSTM(3, 4, num_layers=2), GRU(4, 4), MinGRU(4, 2)]).double().eval()
    inputs, state = example(layer)
    program = torch.export.export(layer, (inputs, state), dynamic_shapes=with_any_batch(inputs, state)).module()
    for batch in (1, 5):
        arguments = example(layer, batch)
        assert_close(tensors_of(program(*arguments)), tensors_of(layer(*arguments)), **CLOSE)


# In ONNX

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"needs the packages {', '.join(MISSING)}")
WITHOUT_NUMBERS_FOR_IT = ("lru", "LRU", "LRU dilated both ways")  # ONNX has no arithmetic of complex numbers


def to_onnx(module, inputs, state, **options):
    """A function of a module's arguments that runs it in ONNX Runtime."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: its deprecations, and names of axes that it drops
        program = torch.onnx.export(module.eval(), (inputs, state), dynamo=True, verbose=False, **options)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), settings)
    names = [argument.name for argument in session.get_inputs()]

    def run(inputs, state):
        values = [tensor.numpy() for tensor in (inputs, *state_tensors(state))]
        return [torch.from_numpy(found) for found in session.run(None, dict(zip(names, values, strict=True)))]

    return run


@pytest.mark.parametrize("reparametrise", [parametrizations.weight_norm, partial(prune.l1_unstructured, amount=0.5)])
def test_computed_weights_are_a_part_of_the_one_graph(reparametrise):
    layer, inputs = GRU(3, 4), torch.randn(2, 3, 3)
    reparametrise(layer.layers[0].cell, "weight_hh")
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_close(compiled(inputs), layer(inputs))


@pytest.mark.parametrize("make", RECORDED)
@pytest.mark.filterwarnings("ignore:.torch.jit.trace.*deprecated", "ignore::torch.jit.TracerWarning")
def test_other_recorders_see_each_operator(make):
    layer, inputs, others = make(3, 4), torch.randn(2, 3, 3), torch.randn(2, 3, 3)

    def gradient(inputs):
        inputs = inputs.detach().requires_grad_()
        return torch.autograd.grad(layer(inputs)[0].square().sum(), inputs)[0]

    for function in (gradient, lambda inputs: layer(inputs)[0]):
        assert_close(make_fx(function)(inputs)(others), function(others))
    assert_close(torch.jit.trace(layer, inputs, check_trace=False)(others)[0], layer(others)[0])
    with FlopCounterMode(display=False) as first:
        layer(inputs)[0].sum().backward()
    with FlopCounterMode(display=False) as second:
        layer(inputs)[0].sum().backward()
    assert first.get_total_flops() == second.get_total_flops() > 0


@pytest.mark.parametrize("make", RECORDED)
def test_tensors_without_numbers_give_such_tensors(make):
    layer = make(3, 4, num_layers=2, dropout=0.5).to("meta")
    outputs, _ = layer(torch.randn(2, 5, 3, device="meta"))
    outputs.sum().backward()
    assert outputs.device.type == "meta"
    with FakeTensorMode():
        layer, inputs = make(3, 4), torch.randn(2, 5, 3)
        assert layer(inputs)[0].shape == (2, 5, 4)
    if make is not LRU:  # whose state, made here, would have numbers
        outputs, _ = layer(inputs)
        outputs.sum().backward()
        assert outputs.shape == (2, 5, 4)


@needs_onnx
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    zoo.rest_is_slow([name for name in LAYERS if name not in WITHOUT_NUMBERS_FOR_IT], ("own",)),
)
def test_onnx_runtime_runs_whole_sequences(name):
    layer = LAYERS[name]().eval()
    run = to_onnx(layer, *example(layer, time=3))
    inputs, state = example(layer, time=3)
    with torch.no_grad():
        expected = tensors_of(layer(inputs, state))
    assert_close(run(inputs, state), expected, rtol=1e-5, atol=1e-5, check_stride=False)


@needs_onnx
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name", zoo.rest_is_slow([name for name in CAUSAL if name not in WITHOUT_NUMBERS_FOR_IT], ("gru",))
)
def test_onnx_runtime_decodes_step_by_step_with_any_batch(name):
    layer = LAYERS[name]().eval()
    inputs, state = example(layer)
    run = to_onnx(Step(layer), inputs[:, 0], state, dynamic_shapes=with_any_batch(inputs, state))
    inputs, state = example(layer, batch=5, time=3)
    with torch.no_grad():
        for x in inputs.unbind(1):
            output, after = layer.step(x, state)
            found = run(x, state)
            assert_close(found, tensors_of((output, after)), rtol=1e-5, atol=1e-5, check_stride=False)
            state = after
