"""Layers called as torch's are: against torch's own with the same weights, and against the layer itself."""

import copy
import pickle
import re

import oracles
import pytest
import torch
import zoo_layers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.testing import assert_close

import rnn_blocks
from rnn_blocks import (
    GRU,
    LSTM,
    SLSTM,
    Bidirectional,
    Elman,
    GRUCell,
    LayerNormLSTM,
    LearnedState,
    LSTMCell,
    Recurrent,
    RecurrentDropout,
    RecurrentStack,
    SkipThroughTime,
    Stack,
    TorchLayout,
    VariationalDropout,
    WeightDrop,
    Zoneout,
)
from rnn_blocks.engine import state_tensors

EXACT = {"rtol": 1e-10, "atol": 1e-10, "check_stride": False}
MODULES = {
    "lstm": (LSTM, nn.LSTM, {}),
    "gru": (GRU, nn.GRU, {}),
    "elman-tanh": (Elman, nn.RNN, {}),
    "elman-relu": (Elman, nn.RNN, {"nonlinearity": "relu"}),
}
READY_MADE = {
    name: kind
    for name in rnn_blocks.__all__
    if isinstance(kind := getattr(rnn_blocks, name), type)
    and issubclass(kind, RecurrentStack)
    and kind is not RecurrentStack
}


def parts_of(hx):
    return [hx] if isinstance(hx, torch.Tensor) else list(hx)


def like_hx(hx, scale=0.7):
    """Random leaves in the place of a state's tensors."""
    drawn = [(torch.randn_like(part) * scale).requires_grad_() for part in parts_of(hx)]
    return drawn[0] if isinstance(hx, torch.Tensor) else tuple(drawn)


def weight_gradients(layer):
    """The gradients of each cell's weights, as torch names and stacks them."""
    found = {}
    for k, level in enumerate(layer.layers):
        both = (level.forward_layer, level.backward_layer) if isinstance(level, Bidirectional) else (level,)
        for recurrent, suffix in zip(both, (f"l{k}", f"l{k}_reverse"), strict=False):
            cell = recurrent.cell
            found |= {f"{name}_{suffix}": getattr(cell, name).grad for name in ("weight_ih", "weight_hh")}
            found[f"bias_ih_{suffix}"] = found[f"bias_hh_{suffix}"] = cell.bias.grad
            if isinstance(cell, GRUCell):  # the candidate's second bias is one of its own
                second = [cell.bias.grad[: 2 * cell.hidden_size], cell.bias_hn.grad]
                found[f"bias_hh_{suffix}"] = torch.cat(second)
    return found


# Against torch's own


@pytest.mark.parametrize("name", MODULES)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["padded", "packed", "packed from sorted", "one sequence"]),
    st.data(),
)
def test_outputs_states_and_gradients_are_those_of_torch(
    name, batch, time, depth, both_ways, batch_first, starts, form, data
):
    kind, theirs, options = MODULES[name]
    torch.manual_seed(data.draw(st.integers(0, 99)))
    module = theirs(3, 4, num_layers=depth, bidirectional=both_ways, batch_first=batch_first, **options).double()
    view = TorchLayout(kind.from_torch(module, engine="loop"))
    lengths = data.draw(st.lists(st.integers(1, time), min_size=batch, max_size=batch))
    if form == "packed from sorted":
        lengths.sort(reverse=True)
    sequences = torch.randn(batch, time, 3, dtype=torch.float64)
    laid = sequences if batch_first else sequences.transpose(0, 1)

    results = []
    hx = None
    for called in (module, view):
        x = (sequences[0] if form == "one sequence" else laid).clone().requires_grad_()
        input = x
        if form.startswith("packed"):
            sort = form == "packed"
            input = pack_padded_sequence(x, torch.tensor(lengths), batch_first=batch_first, enforce_sorted=not sort)
        if starts and hx is None:
            with torch.no_grad():
                shaped = module(input)[1]
            hx = like_hx(shaped)
        for part in parts_of(hx) if hx is not None else []:
            part.grad = None
        output, after = called(input, hx)
        first = output.data if isinstance(output, PackedSequence) else output
        oracles.weighted_sum(first, after).backward()
        before = [part.grad.clone() for part in parts_of(hx)] if hx is not None else []
        results.append((output, after, [x.grad, *before]))

    (expected, final, gradients), (output, after, found) = results
    assert type(output) is type(expected)
    if isinstance(output, PackedSequence):
        assert torch.equal(output.batch_sizes, expected.batch_sizes)
        for which in ("sorted_indices", "unsorted_indices"):
            indices, others = getattr(output, which), getattr(expected, which)
            assert (indices is None) == (others is None)
            assert indices is None or torch.equal(indices, others)
        output, expected = output.data, expected.data
    assert_close(output, expected, **EXACT)
    assert type(after) is type(final)
    assert_close(parts_of(after), parts_of(final), **EXACT)
    assert_close(found, gradients, **EXACT)
    assert_close(weight_gradients(view.layer), {n: p.grad for n, p in module.named_parameters()}, **EXACT)


def test_a_packed_list_of_sequences_comes_back_in_its_order():
    module = nn.GRU(3, 4, batch_first=True)
    view = TorchLayout(GRU.from_torch(module))
    sequences = [torch.randn(length, 3) for length in (2, 5, 1, 4)]
    packed = torch.nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    output, h = view(packed)
    padded, lengths = pad_packed_sequence(output, batch_first=True)
    assert lengths.tolist() == [2, 5, 1, 4]
    for n, sequence in enumerate(sequences):
        alone, last = module(sequence)
        assert_close(padded[n, : len(sequence)], alone)
        assert_close(h[:, n], last)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "dropout": 0.2, "bidirectional": True, "batch_first": True}])
def test_a_caller_reads_torchs_attributes(kind, options):
    module = kind(3, 4, **options)
    ours = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: Elman}[kind]
    view = TorchLayout(ours.from_torch(module))
    for name in (
        *("input_size", "hidden_size", "num_layers", "batch_first", "bidirectional"),
        *("bias", "dropout", "proj_size", "training"),
    ):
        assert getattr(view, name) == getattr(module, name), name
    assert view.flatten_parameters() is None


# Against the layer itself


def rows_of(layer, state):
    """The state of each cell, in torch's order, from the nest that the layer gives."""
    if isinstance(layer, WeightDrop):
        return rows_of(layer.layer, state)
    if isinstance(layer, Stack):
        return [row for part, own in zip(layer.layers, state, strict=True) for row in rows_of(part, own)]
    if isinstance(layer, Bidirectional):
        both = rows_of(layer.forward_layer, state[0]), rows_of(layer.backward_layer, state[1])
        return [row for level in zip(*both, strict=True) for row in level]
    return [state]


def laid_out(layer, state):
    """The layer's state as torch's, by hand."""
    parts = [torch.stack(part) for part in zip(*map(state_tensors, rows_of(layer, state)), strict=True)]
    return parts[0] if len(parts) == 1 else tuple(parts)


def agrees_with_its_layer(layer):
    layer = layer.double().eval()
    view = TorchLayout(layer)
    inputs = torch.randn(3, 5, layer.input_size, dtype=torch.float64, requires_grad=True)
    state = oracles.random_state(layer.initial_state(3, inputs))
    leaves = [inputs, *layer.parameters()]
    for lengths in (None, torch.tensor([2, 5, 1]), torch.tensor([5, 0, 3])):
        expected, final = layer(inputs, state, lengths=lengths)
        output, after = view(inputs, laid_out(layer, state), lengths=lengths)
        assert_close(output, expected, **EXACT)
        assert_close(after, laid_out(layer, final), **EXACT)
        wanted = oracles.gradients_of(oracles.weighted_sum(expected, laid_out(layer, final)), leaves)
        assert_close(oracles.gradients_of(oracles.weighted_sum(output, after), leaves), wanted, **EXACT)
        if lengths is not None and lengths.all():
            packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
            output, after = view(packed, laid_out(layer, state))
            assert_close(pad_packed_sequence(output, batch_first=True)[0], expected, **EXACT)
            assert_close(after, laid_out(layer, final), **EXACT)
    fresh, _ = layer(inputs)
    assert_close(view(inputs)[0], fresh, **EXACT)
    alone, after = view(inputs[0])
    assert_close(alone, fresh[0], **EXACT)
    assert_close(view(inputs[0], like_hx(after))[0].shape, fresh[0].shape)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one layer", "both ways"])
@pytest.mark.parametrize("name", READY_MADE)
def test_every_ready_made_layer_goes_through(name, options):
    layer = READY_MADE[name](3, 4, engine="loop", **options)
    if isinstance(layer, SLSTM):
        with pytest.raises(ValueError, match="the state of SLSTMCell is"):
            TorchLayout(layer)
    else:
        agrees_with_its_layer(layer)


OWN = "the state of LeakySum is ((1, 2), ((1, 1)))"
REFUSED = {
    **dict.fromkeys(("residual stack", "highway stack", "dense stack", "stack with its input skipped"), OWN),
    "bidirectional": "1 forward and 2 backward",
    "variational dropout, weight drop in evaluation": "got ForeseenDropout, whose state is not that of a cell",
    "dilated": "the state of DilatedRecurrent is ((1, 2, 4), (1, 2, 4))",
    "dilated both ways": "the state of DilatedRecurrent is (1, 2, 4)",
    "PeepholeLSTM": "one hidden_size, got [4, 2]",
    "SLSTM": "the state of SLSTMCell is ((1, 4), (1, 4), (1, 4)) for a batch of 1",
    "LeakyIntegrator": "one hidden_size, got [4, 2]",
    "LRU dilated both ways": "the state of DilatedRecurrent is",
    "bidirectional of bidirectional": "1 forward and 2 backward",
    "bidirectional stack": "1 forward and 2 backward",
}


@pytest.mark.parametrize("name", zoo_layers.LAYERS)
def test_every_layer_goes_through_or_is_refused_by_name(name):
    layer = zoo_layers.LAYERS[name]()
    if name in REFUSED:
        with pytest.raises(ValueError, match=re.escape(REFUSED[name])):
            TorchLayout(layer)
    else:
        agrees_with_its_layer(layer)


COMPOSED = {
    "one recurrent layer": lambda: Recurrent(LSTMCell(3, 4)),
    "weight drop": lambda: WeightDrop(LSTM(3, 4, num_layers=2), 0.5),
    "stack of stacks": lambda: Stack(
        [LayerNormLSTM(3, 4, num_layers=2, engine="loop"), LSTM(4, 4, engine="loop")], skip="residual"
    ),
    "two ways of several layers": lambda: Bidirectional(GRU(3, 4, num_layers=3, engine="loop")),
    "stack of two ways": lambda: Stack([Bidirectional(LSTM(3, 4, num_layers=2)), LSTM(8, 4, bidirectional=True)]),
    "wrapped cells": lambda: RecurrentStack(lambda i, h: LearnedState(Zoneout(GRUCell(i, h), 0.1)), 3, 4, num_layers=2),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_layers_put_together_go_through(name):
    agrees_with_its_layer(COMPOSED[name]())


def test_the_directions_of_a_layer_lie_side_by_side():
    layer = Bidirectional(GRU(3, 4, num_layers=2))
    _, ((first, second), (first_back, second_back)) = layer(inputs := torch.randn(2, 5, 3))
    assert_close(TorchLayout(layer)(inputs)[1], torch.stack([first, first_back, second, second_back]))


# In a model, as a module


class Model(nn.Module):
    """A model that no one here wrote."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), 1)

    def forward(self, sequences):
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        padded = pad_sequence(sequences, batch_first=self.rnn.batch_first)
        packed = pack_padded_sequence(padded, lengths, batch_first=self.rnn.batch_first, enforce_sorted=False)
        self.rnn.flatten_parameters()
        zeros = padded.new_zeros(self.rnn.num_layers, len(sequences), self.rnn.hidden_size)
        _, (h, _) = self.rnn(packed, hx=[zeros, zeros])  # a list is as good as a tuple, as it is for torch's
        return self.head(h[-1])


def test_a_layer_takes_the_place_of_torchs_in_a_model_and_learns():
    model = Model(nn.LSTM(3, 4, num_layers=2))
    sequences = [torch.randn(length, 3) for length in (3, 6, 1)]
    expected = model(sequences)
    model.rnn = TorchLayout(LSTM.from_torch(model.rnn))
    assert_close(model(sequences), expected)
    model.rnn = TorchLayout(LayerNormLSTM(3, 4, num_layers=2, batch_first=False))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(30):
        loss = (model(sequences) - torch.tensor([[1.0], [-1.0], [0.5]])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_copies_pickles_and_state_dicts_give_the_same_numbers():
    view = TorchLayout(LayerNormLSTM(3, 4, num_layers=2, bidirectional=True, engine="loop"))
    inputs = torch.randn(2, 5, 3)
    expected = view(inputs)
    assert set(view.state_dict()) == {f"layer.{name}" for name in view.layer.state_dict()}
    for other in (copy.deepcopy(view), pickle.loads(pickle.dumps(view))):
        assert_close(other(inputs), expected)
    other = TorchLayout(LayerNormLSTM(3, 4, num_layers=2, bidirectional=True))
    other.load_state_dict(view.state_dict())
    assert_close(other(inputs), expected)
    assert view.double()(inputs.double())[0].dtype == torch.float64


def test_hooks_on_the_view_fire_once_a_call():
    view, calls = TorchLayout(GRU(3, 4)), []
    view.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 5, 3)
    for input in (x, x[0], pack_padded_sequence(x, torch.tensor([5, 2]), batch_first=True)):
        view(input)
    assert len(calls) == 3


@pytest.mark.processes
def test_it_compiles_as_one_graph_and_exports():
    torch._dynamo.reset()
    view = TorchLayout(LSTM(3, 4, num_layers=2, bidirectional=True).double())
    inputs = torch.randn(2, 3, 3, dtype=torch.float64)
    hx = like_hx(view(inputs)[1])
    expected = view(inputs, hx)
    compiled = torch.compile(view, backend="aot_eager", fullgraph=True)
    assert_close(compiled(inputs, hx), expected, **EXACT)
    exported = torch.export.export(view.eval(), (inputs, hx))
    assert_close(exported.module()(inputs, hx), expected, **EXACT)
    torch._dynamo.reset()


# Refused


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Recurrent(RecurrentDropout(GRUCell(3, 4), 0.5)), "the state of RecurrentDropout is ((1, 4), (1, 4))"),
        (Recurrent(Zoneout(SkipThroughTime(GRUCell(3, 4), delay=2), 0.1)), "the state of SkipThroughTime is"),
        (VariationalDropout(3, 0.5), "got VariationalDropout, whose state is not that of a cell"),
        (Bidirectional(Bidirectional(GRU(3, 4))), "all both ways, got layers of [4] directions"),
        (Stack([GRU(3, 2, bidirectional=True), GRU(4, 2)]), "all both ways, got layers of [2, 1] directions"),
        (Stack([GRU(3, 4), LSTM(4, 4)]), "one tensor, or all are two, got GRUCell's of 1, LSTMCell's of 2"),
        (nn.LSTM(3, 4), "needs a layer of rnn_blocks, got LSTM"),
        (GRUCell(3, 4), "needs a layer of rnn_blocks, got GRUCell"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_laid_out_is_refused(layer, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TorchLayout(layer)


@pytest.mark.parametrize(
    ("kind", "shape", "hx", "message"),
    [
        (GRU, (2, 5, 3), (2, 3, 4), "(num_layers * directions, batch, hidden_size), here (2, 2, 4), got (2, 3, 4)"),
        (GRU, (5, 3), (2, 1, 4), "one tensor (num_layers * directions, hidden_size), here (2, 4), got (2, 1, 4)"),
        (GRU, (2, 5, 3), ((2, 2, 4), (2, 2, 4)), "hx must be one tensor"),
        (LSTM, (2, 5, 3), (2, 2, 4), "hx must be a pair (h, c) of tensors, each (num_layers"),
        (LSTM, (2, 5, 3), ((2, 2, 4), (1, 2, 4)), "here (2, 2, 4), got ((2, 2, 4), (1, 2, 4))"),
        (LSTM, (2, 5, 3), ((2, 2, 4),) * 3, "hx must be a pair (h, c)"),
        (LSTM, (2, 5, 7), None, "(time, input_size) or packed, with input_size 3, got a tensor of shape (2, 5, 7)"),
        (LSTM, (5, 7), None, "got a tensor of shape (1, 5, 7)"),
        (LSTM, (2, 5, 3, 1), None, "input must be (batch, time, input_size)"),
    ],
)
def test_wrong_shapes_are_refused_with_the_right_ones(kind, shape, hx, message):
    view = TorchLayout(kind(3, 4, num_layers=2))
    if hx is not None:
        hx = torch.zeros(hx) if isinstance(hx[0], int) else tuple(map(torch.zeros, hx))
    with pytest.raises(ValueError, match=re.escape(message)):
        view(torch.zeros(shape), hx)


def test_what_is_packed_wrong_and_lengths_where_there_are_some_are_refused():
    view, lengths = TorchLayout(GRU(3, 4)), torch.tensor([5, 2])
    packed = pack_padded_sequence(torch.zeros(2, 5, 7), lengths, batch_first=True)
    with pytest.raises(ValueError, match=r"with input_size 3, got data of shape \(7, 7\)"):
        view(packed)
    with pytest.raises(ValueError, match=r"lengths go with a padded batch, got \[5, 2\] with a packed sequence"):
        view(pack_padded_sequence(torch.zeros(2, 5, 3), lengths, batch_first=True), lengths=lengths)
    with pytest.raises(ValueError, match=r"got \[5\] with one sequence without a batch"):
        view(torch.zeros(5, 3), lengths=torch.tensor([5]))
    with pytest.raises(AttributeError):
        view.batch_first = False  # which would say what is not so
