"""Translation without this library: the encoder and a step of the decoder, by torch.export and in ONNX Runtime."""

import importlib.util
import warnings

import pytest
import torch
from pairs import BOS, EOS, SOURCE_VOCAB, TARGET_VOCAB, make_model
from torch import nn
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM
from rnn_blocks.engine import like_state, map_state, state_tensors

OPTIONS = {
    "additive, fed": {"bridge": "last-state"},
    "multi-head, covering, mean": {
        "attention": "multi-head", "coverage": True, "bridge": "mean", "decoder": LSTM(3 + 4 + 12, 4, num_layers=2),
    },
    "general, at once": {"attention": "general", "input_feeding": False},
    "fixed vector": {"attention": None, "input_feeding": False, "bridge": "projected", "decoder": GRU(3 + 12, 5)},
}  # fmt: skip
SLOW = [name for name in OPTIONS if name != "additive, fed"]
every_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in OPTIONS]
)
CLOSE = {"rtol": 1e-9, "atol": 1e-9, "check_stride": False}
BATCHES = ([5, 3], [1], [2, 7, 4])


class Encode(nn.Module):
    """The encoder, the bridge and what attention projects, as a module's call."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, source, lengths):
        return self.model.encode(source, lengths)


class Step(nn.Module):
    """A step of every hypothesis as a module's call."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, state, memory):
        return tuple(self.model.decoder.step(tokens, state, memory))


def draw_source(lengths):
    return torch.randint(4, SOURCE_VOCAB, (len(lengths), max(lengths))), torch.tensor(lengths)


def one_hypothesis(state):
    return map_state(lambda tensor: tensor.unsqueeze(1), state)


def sizes():
    return {name: torch.export.Dim(name, min=1, max=256) for name in ("batch", "source", "beam")}


def encode_shapes():
    dims = sizes()
    return {0: dims["batch"], 1: dims["source"]}, {0: dims["batch"]}


def step_shapes(model, state, memory):
    """Batch, beam and source are left open, wherever they are."""
    dims = sizes()
    fed, layer, coverage = (
        map_state(lambda tensor: {0: dims["batch"], 1: dims["beam"]}, part) if part != () else () for part in state
    )
    if isinstance(coverage, dict):
        coverage[2] = dims["source"]
    attended, context = memory
    if attended:
        keys, values, _ = attended
        attended = tuple({0: dims["batch"], tensor.dim() - 2: dims["source"]} for tensor in (keys, values))
        attended = (*attended, {0: dims["batch"], 1: dims["source"]})
    context = {0: dims["batch"]} if isinstance(context, torch.Tensor) else ()
    return {0: dims["batch"], 1: dims["beam"]}, (fed, layer, coverage), (attended, context)


def tensors(nest):
    return state_tensors(tuple(part for part in nest if part is not None))


def spread(state, beam):
    """As many hypotheses, all different."""
    return map_state(lambda tensor: torch.rand(len(tensor), beam, *tensor.shape[1:]).to(tensor), state)


def examples(model):
    source, lengths = draw_source([4, 2, 3])
    state, memory = model.encode(source, lengths)
    return (source, lengths), (torch.randint(TARGET_VOCAB, (3, 2)), spread(state, 2), memory)


@pytest.mark.processes
@torch.no_grad()
@every_model
def test_exported_parts_take_any_batch_any_source_and_any_beam(name):
    model = make_model(**OPTIONS[name]).eval()
    of_encoder, of_step = examples(model)
    encode = torch.export.export(Encode(model), of_encoder, dynamic_shapes=encode_shapes()).module()
    shapes = step_shapes(model, *of_step[1:])
    step = torch.export.export(Step(model), of_step, dynamic_shapes=shapes).module()
    for beam, batch in enumerate(BATCHES, 1):
        source, lengths = draw_source(batch)
        state, memory = expected = model.encode(source, lengths)
        assert_close(tensors(encode(source, lengths)), tensors(expected), **CLOSE)
        given = (torch.randint(TARGET_VOCAB, (len(batch), beam)), spread(state, beam), memory)
        assert_close(tensors(step(*given)), tensors(model.decoder.step(*given)), **CLOSE)


def greedy(encode, step, source, lengths, longest):
    """Greedy search with nothing but the two parts."""
    state, memory = encode(source, lengths)
    state, tokens = one_hypothesis(state), torch.full((len(source), 1), BOS)
    written = []
    for _ in range(longest):
        logits, state, _ = step(tokens, state, memory)
        logits[..., [0, BOS]] = -torch.inf
        tokens = logits.argmax(-1)
        written.append(tokens)
    rows = torch.cat(written, 1).tolist()
    return [row[: row.index(EOS)] if EOS in row else row for row in rows]


@torch.no_grad()
def test_greedy_search_with_the_exported_parts_is_the_models_own():
    model = make_model(coverage=True).eval()
    of_encoder, of_step = examples(model)
    encode = torch.export.export(Encode(model), of_encoder, dynamic_shapes=encode_shapes()).module()
    step = torch.export.export(Step(model), of_step, dynamic_shapes=step_shapes(model, *of_step[1:])).module()
    source, lengths = draw_source([5, 1, 3, 2])
    expected = [best.tokens for best, *_ in model.translate(source, lengths, beam_size=1, max_length=8)]
    assert greedy(encode, step, source, lengths, 8) == expected


MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


def to_onnx(module, arguments, shapes):
    """A function of as many tensors as the arguments hold, run by ONNX Runtime."""
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: its deprecations, and names of axes that it drops
        program = torch.export.export(module, arguments, dynamic_shapes=shapes)
        program = torch.onnx.export(program, dynamo=True, verbose=False)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), settings)
    given = [argument.name for argument in session.get_inputs()]

    def run(*nest):
        values = [tensor.numpy() for tensor in state_tensors(nest)]
        return [torch.from_numpy(found) for found in session.run(None, dict(zip(given, values, strict=True)))]

    return run


@pytest.mark.skipif(bool(MISSING), reason=f"needs the packages {', '.join(MISSING)}")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_onnx_runtime_translates_as_the_model_does(name):
    model = make_model(**OPTIONS[name]).float().eval()
    of_encoder, of_step = examples(model)
    run_encoder = to_onnx(Encode(model), of_encoder, encode_shapes())
    run_step = to_onnx(Step(model), of_step, step_shapes(model, *of_step[1:]))
    close = {"rtol": 1e-4, "atol": 1e-5, "check_stride": False}

    def encode(source, lengths):
        expected = model.encode(source, lengths)
        found = run_encoder(source, lengths)
        assert_close(found, state_tensors(expected), **close)
        return like_state(expected, found)

    def step(tokens, state, memory):
        expected = model.decoder.step(tokens, state, memory)
        logits, *rest = run_step(tokens, state, memory)
        assert_close([logits, *rest], tensors(expected), **close)
        after = len(state_tensors(state))
        return logits, like_state(state, rest[:after]), None

    for batch in BATCHES:
        source, lengths = draw_source(batch)
        expected = [best.tokens for best, *_ in model.translate(source, lengths, beam_size=1, max_length=6)]
        assert greedy(encode, step, source, lengths, 6) == expected
