"""Bridges from any encoder to any decoder: the state has the decoder's nest, and holds what the papers say."""

import copy

import oracles
import pytest
import torch
import zoo
import zoo_layers
from torch.testing import assert_close

from rnn_blocks import (
    GRU,
    LRU,
    LSTM,
    Bidirectional,
    Bridge,
    Clockwork,
    Encoder,
    GRUCell,
    LastStateBridge,
    LSTMCell,
    MeanBridge,
    ProjectedBridge,
    Recurrent,
    RecurrentDropout,
    SkipThroughTime,
    Stack,
    VariationalDropout,
    WeightDrop,
    make_bridge,
)
from rnn_blocks.engine import describe_state, map_state, state_tensors

EXACT = {"rtol": 1e-12, "atol": 1e-12, "check_stride": False}
KINDS = ("last-state", "mean", "projected")
LENGTHS = torch.tensor([5, 0, 2])
ENCODERS = {
    "gru": lambda: GRU(3, 4),
    "bidirectional lstm": lambda: LSTM(3, 4, num_layers=2, bidirectional=True),
    "complex": lambda: LRU(3, 4),
    "dropped": lambda: Stack([VariationalDropout(3, 0.3), WeightDrop(LSTM(3, 4), 0.5), VariationalDropout(4, 0.3)]),
}
DECODERS = {
    "gru": lambda: GRU(3, 4),
    "deep lstm": lambda: LSTM(3, [5, 2, 3]),
    **{f"cell {name}": lambda make=make: Recurrent(make(3, 4)) for name, make in zoo.CELLS.items()},
    **{name: make for name, make in zoo_layers.LAYERS.items() if make().causal},
}
SOME = (
    "gru",
    "deep lstm",
    "cell own",
    "cell lru",
    "cell slstm-heads",
    "variational dropout, weight drop in evaluation",
)


def encode(layer, source=5, batch=3, lengths=LENGTHS):
    encoder = Encoder(layer, 9).double().eval()
    return encoder(torch.randint(9, (batch, source)), lengths)


def bridged(kind, encoder_layer, decoder_layer):
    return make_bridge(kind, encoder_layer, decoder_layer).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ENCODERS)
@pytest.mark.parametrize("name", zoo.rest_is_slow(DECODERS, SOME))
def test_any_decoder_starts_from_any_encoder_and_gradients_reach_it(kind, source, name):
    encoder_layer, decoder = ENCODERS[source]().double(), DECODERS[name]().double()
    bridge = bridged(kind, encoder_layer, decoder)
    encoded = encode(encoder_layer)
    state, context = bridge(encoded)
    expected = decoder.initial_state(3, encoded.outputs)
    assert describe_state(state) == describe_state(expected)
    assert [tensor.dtype for tensor in state_tensors(state)] == [tensor.dtype for tensor in state_tensors(expected)]
    assert bridge.context_size == (0 if context is None else context.shape[1])
    outputs, _ = decoder(torch.randn(3, 4, 3).double(), state)
    weights = list(encoder_layer.parameters())
    assert any(gradient.any() for gradient in oracles.gradients_of(oracles.weighted_sum(outputs, ()), weights))


def by_hand(bridge, summary, sizes):
    """``tanh(W summary + b)``, one tensor of the decoder's state after the other."""
    numbers = torch.stack([torch.tanh(bridge.state_layer.weight @ row + bridge.state_layer.bias) for row in summary])
    return numbers.split(sizes, 1)


@pytest.mark.parametrize(
    ("make", "decoder", "units"),
    [
        (lambda: LSTM(3, 4, num_layers=2), LSTM(7, 4, num_layers=2), lambda state: state),
        (lambda: Recurrent(RecurrentDropout(GRUCell(3, 4), 0.5)), Recurrent(GRUCell(5, 4)), lambda state: state[0]),
        (ENCODERS["dropped"], LSTM(5, 4), lambda state: state[1]),
        (lambda: LRU(3, 4), LRU(3, 4), lambda state: state),
    ],
    ids=["lstm", "noise aside", "a stack with dropout", "complex"],
)
def test_the_last_state_itself_goes_to_a_decoder_of_the_same_cells(make, decoder, units):
    layer = make().double()
    encoded = encode(layer)
    bridge = LastStateBridge(layer, decoder.double())
    assert not list(bridge.parameters())
    state, context = bridge(encoded)
    assert context is None
    assert_close(state_tensors(state), state_tensors(units(encoded.state)), rtol=0, atol=0)


def test_a_layer_of_the_same_shapes_and_other_cells_is_not_taken_for_the_same():
    for layer, decoder in (
        (Bidirectional(GRU(3, 4), GRU(3, 4)), Stack([GRU(3, 4), GRU(4, 4)])),  # forward and backward are no layers
        (GRU(3, 4, num_layers=2), Recurrent(LSTMCell(3, 4))),  # (h, h) and (h, c)
        (GRU(3, 4), GRU(3, 5)),
        (GRU(3, 4), GRU(3, 4, num_layers=2)),
        (LRU(3, 4), GRU(3, 4)),
    ):
        assert LastStateBridge(layer, decoder).state_layer is not None


def test_the_last_hidden_outputs_of_all_layers_and_directions_make_another_state():
    layer, decoder = LSTM(3, 4, num_layers=2, bidirectional=True).double(), LSTM(3, [5, 2]).double()
    encoded = encode(layer)
    bridge = bridged("last-state", layer, decoder)
    (((a, _), (b, _)), ((c, _), (d, _))) = encoded.state
    expected = by_hand(bridge, torch.cat([a, b, c, d], 1), [5, 5, 2, 2])
    ((h1, c1), (h2, c2)), context = bridge(encoded)
    assert context is None
    assert_close((h1, c1, h2, c2), expected, **EXACT)


def test_the_mean_is_over_each_length():
    layer, decoder = GRU(3, 4, bidirectional=True).double(), GRU(3, 5).double()
    encoded = encode(layer)
    bridge = bridged("mean", layer, decoder)
    means = [encoded.outputs[n, :length].mean(0) if length else torch.zeros(8) for n, length in enumerate(LENGTHS)]
    expected = torch.stack([mean.double() for mean in means])
    state, context = bridge(encoded)
    assert_close(context, expected, **EXACT)
    assert_close(state, by_hand(bridge, expected, [5]), **EXACT)


def test_the_projected_context_is_that_of_the_last_state():
    layer, decoder = GRU(3, 4).double(), LSTM(3, 5).double()
    encoded = encode(layer)
    bridge = bridged("projected", layer, decoder)
    V, b = bridge.context_layer.weight, bridge.context_layer.bias
    expected = torch.stack([torch.tanh(V @ h + b) for h in encoded.state[0]])
    (state,), context = bridge(encoded)
    assert_close(context, expected, **EXACT)
    assert_close(state, by_hand(bridge, expected, [5, 5]), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_what_wrappers_keep_starts_as_without_a_bridge(kind):
    cell = Clockwork(SkipThroughTime(LSTMCell(3, 4), delay=3), periods=[1, 2])
    layer, decoder = GRU(3, 6).double(), Stack([VariationalDropout(3, 0.5), Recurrent(cell)]).double()
    state, _ = bridged(kind, layer, decoder)(encode(layer))
    noise, ((((h, c), histories)), count) = state
    assert 0 < float(noise.min()) < float(noise.max()) < 1
    assert not count.any()
    assert not any(history.any() for history in histories)
    assert h.any()
    assert c.any()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_other_sources_change_nothing(kind):
    layer, decoder = GRU(3, 4, bidirectional=True).double(), LSTM(3, 5).double()
    encoder = Encoder(layer, 9).double()
    bridge = bridged(kind, layer, decoder)
    source = torch.randint(9, (3, 5))
    whole = state_tensors(bridge(encoder(source, LENGTHS))[0])
    alone = state_tensors(bridge(encoder(source[2:, :2], LENGTHS[2:]))[0])
    assert_close([tensor[2:] for tensor in whole], alone, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_are_no_parts_of_a_bridge_and_are_copied_with_it(kind):
    layer, decoder = LSTM(3, 4), GRU(3, 5)
    model = torch.nn.ModuleDict({"encoder": Encoder(layer, 9), "decoder": decoder})
    model["bridge"] = make_bridge(kind, layer, decoder)
    assert all(name.split(".")[0] in ("state_layer", "context_layer") for name in model["bridge"].state_dict())
    twin = copy.deepcopy(model).double()
    encoded = twin["encoder"](torch.randint(9, (2, 3)))
    state, _ = twin["bridge"](encoded)
    assert all(tensor.dtype == torch.float64 for tensor in state_tensors(state))


@torch.no_grad()
@pytest.mark.processes
@pytest.mark.parametrize("kind", zoo.rest_is_slow(KINDS, ["last-state"]))
def test_an_encoder_and_its_bridge_export_with_batch_and_length_left_open(kind):
    class Start(torch.nn.Module):
        def __init__(self):
            super().__init__()
            layer = GRU(3, 4, bidirectional=True)
            self.encoder, self.bridge = Encoder(layer, 9), make_bridge(kind, layer, LSTM(3, 5))

        def forward(self, source, lengths):
            return self.bridge(self.encoder(source, lengths))

    start = Start().double().eval()
    batch, length = (torch.export.Dim(name, min=1, max=512) for name in ("batch", "source"))
    example = (torch.randint(9, (3, 5)), LENGTHS)
    program = torch.export.export(start, example, dynamic_shapes=({0: batch, 1: length}, {0: batch})).module()
    source, lengths = torch.randint(9, (2, 7)), torch.tensor([7, 3])
    assert_close(program(source, lengths), start(source, lengths), **EXACT)


# Precisions and errors


@pytest.mark.parametrize("kind", KINDS)
def test_states_have_the_dtype_that_the_decoder_starts_with(kind, device):
    layer, decoder = GRU(3, 4).to(device), Stack([LRU(3, 4), LSTM(4, 5)]).to(device)
    encoder = Encoder(layer, 9).to(device)
    bridge = make_bridge(kind, layer, decoder).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        encoded = encoder(torch.randint(9, (2, 3), device=device))
        state, _ = bridge(encoded)
        expected = decoder.initial_state(2, encoded.outputs)
    assert [tensor.dtype for tensor in state_tensors(state)] == [tensor.dtype for tensor in state_tensors(expected)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_that_is_another_is_told_with_both_sides_shapes(kind):
    bridge = make_bridge(kind, GRU(3, 4), GRU(3, 5))
    for other in (GRU(3, 6), GRU(3, 4, num_layers=2), LSTM(3, 4)):
        encoded = encode(other)._replace(outputs=torch.zeros(3, 5, 4))
        encoded = encoded._replace(state=map_state(lambda tensor: tensor.float(), encoded.state))
        with pytest.raises(ValueError, match=r"with the state \(\(3, 4\)\) as its encoder, got \(.*\(3, ."):
            bridge(encoded)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LastStateBridge(GRU(3, 4), GRU(3, 4, bidirectional=True)), "must be causal, got a GRU"),
        (lambda: MeanBridge(GRU(3, 4), VariationalDropout(3, 0.5)), "the decoder's VariationalDropout has no state"),
        (
            lambda: ProjectedBridge(VariationalDropout(3, 0.5), GRU(3, 4)),
            "the encoder's .* has no state to bridge",
        ),
        (lambda: make_bridge("first", GRU(3, 4), GRU(3, 4)), "one of 'last-state', 'mean', 'projected', got 'first'"),
    ],
)
def test_layers_that_cannot_be_bridged_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_bridge_of_ones_own_says_its_context():
    bridge = Bridge(GRU(3, 4), GRU(3, 5), summary_size=4)
    with pytest.raises(NotImplementedError, match="Bridge needs a `context"):
        bridge(encode(GRU(3, 4)))
