"""The encoder: any layer over sources of any lengths, from either end, whatever the padding holds, and exported."""

import importlib.util
import warnings

import oracles
import pytest
import torch
import zoo
import zoo_layers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM, Elman, Encoder, MinGRU, Stack
from rnn_blocks.engine import dropout, map_state, state_tensors

VOCAB = 11
EXACT = {"rtol": 1e-12, "atol": 1e-12, "check_stride": False}
LAYERS = {
    "gru": lambda **options: GRU(3, 4, **options),
    "bidirectional gru": lambda **options: GRU(3, 4, bidirectional=True, **options),
    "deep bidirectional lstm": lambda **options: LSTM(3, 4, num_layers=2, bidirectional=True, **options),
    "own": lambda **options: zoo_layers.both_ways(**options),
    "mixed": lambda **options: Stack([Elman(3, 5, **options), MinGRU(5, 4, bidirectional=True, **options)]),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name, *, batch_first=True, **options):
    return Encoder(LAYERS[name](batch_first=batch_first), VOCAB, **options).double()


def ids(*shape):
    return torch.randint(VOCAB, shape)


def parts(encoded):
    return [encoded.outputs, encoded.lengths, *state_tensors(encoded.state)]


def one_by_one(encoder, source, lengths):
    """Each source alone, without padding, read from the end where the encoder does so."""
    outputs, states = [], []
    for row, length in zip(source, lengths.tolist(), strict=True):
        if not length:
            outputs.append(torch.zeros(source.shape[1], encoder.output_size, dtype=torch.float64))
            states.append(encoder.layer.initial_state(1, outputs[0]))
            continue
        tokens = row[:length].flip(0) if encoder.reverse else row[:length]
        vectors = encoder.embedding.weight[tokens].unsqueeze(0 if encoder.layer.batch_first else 1)
        output, state = encoder.layer(vectors)
        output = output.squeeze(0 if encoder.layer.batch_first else 1)
        output = output.flip(0) if encoder.reverse else output
        outputs.append(torch.nn.functional.pad(output, (0, 0, 0, source.shape[1] - length)))
        states.append(state)
    return [torch.stack(outputs), lengths, *state_tensors(map_state(lambda *rows: torch.cat(rows), *states))]


@settings(max_examples=5)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.booleans(), st.booleans())
@every_layer
def test_a_ragged_batch_is_its_sources_one_by_one(name, lengths, reverse, batch_first):
    encoder = make(name, reverse=reverse, batch_first=batch_first)
    source, lengths = ids(len(lengths), 6), torch.tensor(lengths)
    with torch.no_grad():
        assert_close(parts(encoder(source, lengths)), one_by_one(encoder, source, lengths), **EXACT)


@every_layer
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_changes_neither_outputs_nor_gradients(name, reverse, device):
    encoder = make(name, reverse=reverse).to(device)
    source, lengths = ids(3, 6).to(device), torch.tensor([6, 0, 2], device=device)
    past = torch.arange(6, device=device) >= lengths[:, None]
    found = []
    for padding in (0, VOCAB - 1):
        encoded = encoder(source.masked_fill(past, padding), lengths)
        assert not encoded.outputs[past].any()
        total = oracles.weighted_sum(encoded.outputs, encoded.state)
        found.append((parts(encoded), oracles.gradients_of(total, list(encoder.parameters()))))
    assert_close(found[0], found[1], rtol=0, atol=0)


@every_layer
def test_without_lengths_all_tokens_count(name):
    encoder, source = make(name), ids(3, 5)
    expected = encoder(source, torch.full((3,), 5))
    assert_close(parts(encoder(source)), parts(expected), **EXACT)


def test_reversing_brings_the_first_word_last():
    ahead, back = make("gru"), make("gru", reverse=True)
    back.load_state_dict(ahead.state_dict())
    source = ids(2, 5)
    expected = ahead(source.flip(1))
    encoded = back(source)
    assert_close(encoded.state, expected.state, **EXACT)
    assert_close(encoded.outputs, expected.outputs.flip(1), **EXACT)


def test_dropout_falls_on_vectors_and_outputs_in_training_alone():
    encoder = make("gru", dropout=0.5)
    source, lengths = ids(4, 6), torch.tensor([6, 3, 1, 0])
    torch.manual_seed(3)
    found = encoder(source, lengths)
    torch.manual_seed(3)
    vectors = dropout(encoder.embedding(source), 0.5)
    outputs, state = encoder.layer(vectors, lengths=lengths)
    assert_close(found.outputs, dropout(outputs, 0.5), **EXACT)
    assert_close(found.state, state, **EXACT)
    encoder.eval()
    assert_close(parts(encoder(source, lengths)), one_by_one(encoder, source, lengths), **EXACT)


# Exported, for any batch and any length


def open_shapes():
    batch, source = (torch.export.Dim(name, min=1, max=512) for name in ("batch", "source"))
    return {0: batch, 1: source}, {0: batch}


EXPORTED = {
    **LAYERS,
    # but dilated ones: how many rounds a length makes must be known
    **{f"zoo {name}": make_layer for name, make_layer in zoo_layers.LAYERS.items() if "dilated" not in name},
}
SOME = ("mixed",)
BATCHES = (([1], 1), ([4, 0, 9, 3], 9), ([2, 2], 2))


@pytest.mark.processes
@torch.no_grad()
@pytest.mark.parametrize("name", zoo.rest_is_slow(EXPORTED, SOME))
def test_an_exported_encoder_takes_any_batch_and_any_length(name):
    encoder = Encoder(EXPORTED[name](), VOCAB, reverse=name != "mixed").double().eval()
    example = (ids(3, 5), torch.tensor([5, 2, 0]))
    program = torch.export.export(encoder, example, dynamic_shapes=open_shapes()).module()
    for lengths, longest in BATCHES:
        source, lengths = ids(len(lengths), longest), torch.tensor(lengths)
        torch.manual_seed(2)
        found = program(source, lengths)
        torch.manual_seed(2)
        assert_close(parts(found), parts(encoder(source, lengths)), **EXACT)


MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


@pytest.mark.processes
@pytest.mark.skipif(bool(MISSING), reason=f"needs the packages {', '.join(MISSING)}")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
@pytest.mark.parametrize("name", zoo.rest_is_slow(LAYERS, ["bidirectional gru"]))
def test_onnx_runtime_takes_any_batch_and_any_length(name):
    import onnxruntime

    encoder = make(name).float().eval()
    example = (ids(3, 5), torch.tensor([5, 2, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: its deprecations, and names of axes that it drops
        program = torch.onnx.export(encoder, example, dynamo=True, verbose=False, dynamic_shapes=open_shapes())
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), settings)
    names = [argument.name for argument in session.get_inputs()]
    for lengths, longest in BATCHES:
        source, lengths = ids(len(lengths), longest), torch.tensor(lengths)
        found = session.run(None, {names[0]: source.numpy(), names[1]: lengths.numpy()})
        expected = parts(encoder(source, lengths))
        assert_close([torch.from_numpy(part) for part in found], expected, rtol=1e-5, atol=1e-5, check_stride=False)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("gru")(torch.tensor([[1, VOCAB]])), "source has the id 11, but the vocabulary has 11 tokens"),
        (
            lambda: make("gru")(torch.tensor([[1, -1]])),
            "source has the id -1, but .* 11 tokens, 0 to 10",
        ),
        (lambda: make("gru")(ids(5)), r"source must be ids \(batch, source\), got torch.int64 of shape \(5,\)"),
        (lambda: make("gru")(torch.rand(2, 3)), "source must be ids .* got torch.float32"),
        (lambda: make("gru")(ids(2, 0)), "at least one step"),
        (lambda: make("gru")(ids(2, 3), torch.tensor([3])), r"lengths must be 2 integers, one a sequence, .* \(1,\)"),
        (lambda: make("gru")(ids(2, 3), torch.tensor([3, 4])), r"between 0 and the 3 steps given, got \[3, 4\]"),
        (lambda: make("gru", reverse=True)(ids(2, 3), torch.tensor([3, 4])), r"between 0 and the 3 steps given, got"),
        (lambda: make("gru", dropout=1.0), "dropout must be at least 0 and below 1, got 1.0"),
        (lambda: Encoder(GRU(3, 4), 0), "vocab_size must be at least 1, got 0"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
