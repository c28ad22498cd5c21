"""Gradients at hidden states, found by replay, against loops written by hand and against the training's own graph."""

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

import rnn_blocks
from rnn_blocks import (
    GRU,
    LRU,
    LSTM,
    Bidirectional,
    DilatedRecurrent,
    Elman,
    ElmanCell,
    GRUCell,
    LSTMCell,
    Recurrent,
    RecurrentDropout,
    SkipThroughTime,
    Stack,
    VariationalDropout,
    WeightDrop,
    Zoneout,
)
from rnn_blocks.callbacks.gradient_flow.recorder import FlowRecorder, recurrences
from rnn_blocks.engine import hidden_of

LENGTHS = [4, 6, 1]


def flows(model, run, source="all", states=None):
    """Curve and replay error of each recurrence of `model` for the loss that `run(model)` gives."""
    found, refused = recurrences(model)
    assert not refused
    recorder = FlowRecorder(found, states or {}, source)
    recorder.attach()
    try:
        run(model).backward()
        recorder.collect(1.0)
        return recorder.read()
    finally:
        recorder.detach()


def curve(gradients):
    """From one gradient ``(length, hidden)`` for each sequence to norms by distance, over a whole batch of such."""
    norms = []
    for distance in range(max(map(len, gradients))):
        squares = [g[len(g) - 1 - distance].abs().square().sum() for g in gradients if len(g) > distance]
        norms.append((sum(squares) * len(gradients) / len(squares)).sqrt().item())
    return norms


def by_hand(module, sequences, loss, hx=None, masks=None):
    """Torch's equations for one sequence at a time, each hidden state in the graph; a curve for each direction."""
    directions = 2 if module.bidirectional else 1
    kept, total = {}, 0.0
    for b, inputs in enumerate(sequences):
        finals = []
        for layer in range(module.num_layers):
            outputs = []
            for direction in range(directions):
                suffix = f"l{layer}" + ("_reverse" if direction else "")
                weights = [getattr(module, f"{kind}_{suffix}") for kind in ("weight_ih", "weight_hh")]
                if module.bias:
                    weights += [getattr(module, f"{kind}_{suffix}") for kind in ("bias_ih", "bias_hh")]
                row = layer * directions + direction
                state = [inputs.new_zeros(1, module.hidden_size)] * 2 if hx is None else [s[row, b][None] for s in hx]
                hidden = []
                for x in inputs.flip(0) if direction else inputs:
                    if module.mode == "LSTM":
                        state = list(torch.lstm_cell(x[None], state, *weights))
                    else:
                        cell = {"GRU": torch.gru_cell, "RNN_TANH": torch.rnn_tanh_cell}
                        state = [cell.get(module.mode, torch.rnn_relu_cell)(x[None], state[0], *weights)]
                    hidden.append(state[0])
                finals.append(state[0])
                kept.setdefault(suffix, []).append(hidden)
                outputs.append(torch.cat(hidden[::-1] if direction else hidden))
            inputs = torch.cat(outputs, dim=-1)
            if masks is not None and layer < module.num_layers - 1:
                inputs = inputs * masks[layer][b][: len(inputs)]
        total = total + loss(inputs, torch.cat(finals))
    found = {}
    for name, sequences_hidden in kept.items():
        gradients = [torch.autograd.grad(total, hidden, retain_graph=True) for hidden in sequences_hidden]
        found[name] = curve([torch.cat(g) for g in gradients])
    return found


def loss_of_a_sequence(outputs, finals):
    weights = torch.linspace(-1, 2, outputs.shape[-1], dtype=outputs.dtype)
    return (outputs.sin() @ weights)[-1] + 0.1 * (outputs.square() @ weights).sum() + finals.cos().sum()


def assert_flows(found, expected, name="net"):
    assert set(found) == ({name} if len(expected) == 1 else {f"{name}.{suffix}" for suffix in expected})
    for suffix, norms in expected.items():
        measured, error = found[name if len(expected) == 1 else f"{name}.{suffix}"]
        assert error < 1e-12
        assert_close(measured, norms, rtol=1e-8, atol=1e-12)


def test_a_hook_on_the_fused_output_sees_only_the_direct_gradients():
    """Trap 11: with a loss on the last step alone it gives 0, 0, 0, 0, 0, 4; the states' true gradients are not 0."""
    model, inputs = nn.ModuleDict({"net": nn.LSTM(3, 4, batch_first=True)}), torch.randn(4, 6, 3)
    hooked = []

    def run(model):
        outputs, _ = model["net"](inputs)
        outputs.register_hook(lambda gradient: hooked.append(gradient.norm(dim=(0, 2)).tolist()))
        return outputs[:, -1].sum()

    [(norms, _)] = flows(model, run).values()
    assert_close(hooked, [[0.0, 0.0, 0.0, 0.0, 0.0, 4.0]])
    expected = by_hand(model["net"], inputs, lambda outputs, _: outputs[-1].sum())["l0"]
    assert_close(norms, expected, rtol=1e-5, atol=0)
    assert norms[0] == 4.0
    assert min(norms) > 0.01


KINDS = {
    "lstm": lambda **options: nn.LSTM(3, 5, **options),
    "gru": lambda **options: nn.GRU(3, 5, **options),
    "tanh": lambda **options: nn.RNN(3, 5, **options),
    "relu": lambda **options: nn.RNN(3, 5, nonlinearity="relu", **options),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["batch first", "time first", "unbatched", "packed", "packed, sorted"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_torchs_layers_equal_a_loop_by_hand(kind, form, given):
    module = KINDS[kind](num_layers=2, bidirectional=True, bias=kind != "tanh", batch_first=form == "batch first")
    module, inputs = module.double(), torch.randn(3, 6, 3, dtype=torch.float64)
    if form == "unbatched":
        inputs = inputs[:1]
    lengths = [6, 4, 1] if form == "packed, sorted" else LENGTHS if form == "packed" else [6] * len(inputs)
    hx = [torch.randn(4, len(inputs), 5, dtype=torch.float64) for _ in range(2 if kind == "lstm" else 1)]
    state = tuple(s[:, 0] for s in hx) if form == "unbatched" else tuple(hx)
    state = None if not given else state if kind == "lstm" else state[0]

    def run(model):
        x = inputs if form == "batch first" else inputs[0] if form == "unbatched" else inputs.transpose(0, 1)
        if form.startswith("packed"):
            x = pack_padded_sequence(x, lengths, enforce_sorted=form == "packed, sorted")
        outputs, final = model["net"](x, state)
        final = final[0] if isinstance(final, tuple) else final
        if form == "unbatched":
            return loss_of_a_sequence(outputs, final)
        if form.startswith("packed"):
            outputs, _ = pad_packed_sequence(outputs)
        rows = outputs if form == "batch first" else outputs.transpose(0, 1)
        return sum(loss_of_a_sequence(rows[b, :n], final[:, b]) for b, n in enumerate(lengths))

    expected = by_hand(
        module, [x[:n] for x, n in zip(inputs, lengths, strict=True)], loss_of_a_sequence, hx if given else None
    )
    assert_flows(flows(nn.ModuleDict({"net": module}), run), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["batch first", "time first", "packed"])
def test_dropout_between_torchs_layers_is_that_of_the_training(kind, form):
    module = KINDS[kind](num_layers=3, dropout=0.4, batch_first=form == "batch first").double()
    inputs = torch.randn(3, 6, 3, dtype=torch.float64)
    lengths = LENGTHS if form == "packed" else [6, 6, 6]

    def run(model):
        x = inputs if form == "batch first" else inputs.transpose(0, 1)
        x = pack_padded_sequence(x, lengths, enforce_sorted=False) if form == "packed" else x
        torch.manual_seed(3)
        outputs, _ = model["net"](x)
        outputs = pad_packed_sequence(outputs)[0] if form == "packed" else outputs
        rows = outputs if form == "batch first" else outputs.transpose(0, 1)
        return sum(rows[b, n - 1].sin().sum() for b, n in enumerate(lengths))

    found = flows(nn.ModuleDict({"net": module}), run)
    torch.manual_seed(3)
    masks = []
    for _ in range(2):  # drawn as the kernel draws them
        if form == "packed":
            packed = pack_padded_sequence(torch.ones(6, 3, 5, dtype=torch.float64), lengths, enforce_sorted=False)
            mask, _ = pad_packed_sequence(packed._replace(data=dropout(packed.data, 0.4)))
        else:
            mask = dropout(torch.ones(6, 3, 5, dtype=torch.float64), 0.4)
        masks.append(mask.transpose(0, 1))
    sequences = [x[:n] for x, n in zip(inputs, lengths, strict=True)]
    assert_flows(found, by_hand(module, sequences, lambda outputs, _: outputs[-1].sin().sum(), masks=masks))


def test_a_parametrised_layer_of_torchs_is_run_again_with_the_weights_of_the_step():
    module, inputs = nn.GRU(3, 5, batch_first=True).double(), torch.randn(3, 6, 3, dtype=torch.float64)
    nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    module(inputs)  # which computes weights, as the step before did
    with torch.no_grad():
        module.parametrizations["weight_hh_l0"].original0.mul_(3.0)
    found = flows(nn.ModuleDict({"net": module}), lambda model: model["net"](inputs)[0][:, -1].sin().sum())
    assert_flows(found, by_hand(module, inputs, lambda outputs, _: outputs[-1].sin().sum()))


def test_a_state_may_be_a_list_as_torch_takes_it():
    module, inputs = nn.LSTM(3, 5, batch_first=True).double(), torch.randn(3, 6, 3, dtype=torch.float64)
    hx = [*torch.randn(2, 1, 3, 5, dtype=torch.float64)]
    found = flows(nn.ModuleDict({"net": module}), lambda model: model["net"](inputs, hx)[0][:, -1].sin().sum())
    assert_flows(found, by_hand(module, inputs, lambda outputs, _: outputs[-1].sin().sum(), hx))


def test_other_masks_than_the_trainings_show_as_an_error():
    model = nn.ModuleDict({"net": nn.LSTM(3, 5, num_layers=2, dropout=0.4)})
    recorder = FlowRecorder(recurrences(model)[0], {}, "all")
    recorder.attach()
    model["net"](torch.randn(6, 3, 3))[0].sum().backward()
    [(_, call)] = recorder._calls
    call.surroundings.numbers = [torch.Generator().manual_seed(7).get_state()]
    recorder.collect(1.0)
    recorder.detach()
    assert all(error > 0.02 for _, error in recorder.read().values())


def true_flows(model, run):
    """The same from the training's own graph: layers on the loop, whose every hidden state is kept."""
    kept = {}
    for name, layer in recurrences(model)[0].items():

        def tapped(projected, state, step=layer.cell.step, name=name):
            output, after = step(projected, state)
            kept.setdefault(name, []).append(hidden_of(after))
            return output, after

        vars(layer.cell)["step"] = tapped
    total = run(model)
    for layer in recurrences(model)[0].values():
        del vars(layer.cell)["step"]
    return {name: torch.autograd.grad(total, hidden, retain_graph=True) for name, hidden in kept.items()}


LAYERS = {
    "elman": lambda **o: Elman(3, 5, **o),
    "two lstms, dropout": lambda **o: LSTM(3, 5, num_layers=2, dropout=0.3, **o),
    "gru, both ways": lambda **o: GRU(3, 5, num_layers=2, bidirectional=True, **o),
    "complex": lambda **o: LRU(3, 5, **o),
    "zoneout": lambda **o: Recurrent(Zoneout(LSTMCell(3, 5), 0.3), **o),
    "recurrent dropout": lambda **o: Recurrent(RecurrentDropout(GRUCell(3, 5), 0.3), **o),
    "skip": lambda **o: Recurrent(SkipThroughTime(ElmanCell(3, 5), delay=3), **o),
    "output apart from h": lambda **o: Recurrent(rnn_blocks.DeepOutput(ElmanCell(3, 5), 4), **o),
    "weight drop": lambda **o: WeightDrop(LSTM(3, 5, **o), 0.4),
    "nested": lambda **o: Stack(
        [VariationalDropout(3, 0.2), Bidirectional(Recurrent(ElmanCell(3, 4), **o)), LSTM(8, 5, **o)]
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_our_layers_equal_the_graph_of_the_plain_loop(name, lengths):
    inputs = torch.randn(3, 6, 3, dtype=torch.float64)
    counts = None if lengths is None else torch.tensor(lengths)
    try:
        layer = LAYERS[name](engine="loop").double()
    except TypeError:
        pytest.skip("has no engine")

    def run(model):
        torch.manual_seed(5)
        outputs, state = model["net"](inputs, lengths=counts)
        return outputs.sin().square().sum() + hidden_of(state).abs().sum()

    model = nn.ModuleDict({"net": layer})
    truth = true_flows(model, run)
    found = flows(model, run)
    assert set(found) == set(truth)
    for part, gradients in truth.items():
        stacked = torch.stack(gradients)  # (time, batch, hidden), in the layer's own order
        expected = curve([stacked[:n, b] for b, n in enumerate(lengths or [6] * 3)])
        measured, error = found[part]
        assert error < 1e-12
        assert_close(measured, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("make", [Elman, LSTM, GRU, LRU, rnn_blocks.MinGRU])
def test_every_engine_gives_the_same(make):
    layer = make(3, 5).double()
    inputs, weight = torch.randn(3, 6, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    state = (torch.randn_like(layer.initial_state(3, inputs)[0], dtype=torch.float64) if make is Elman else None,)

    def run(model):
        outputs, after = model["net"](inputs, state if make is Elman else None)
        return (outputs[:, -1] @ weight).sum() + hidden_of(after).abs().sum()

    results = {}
    for engine in ("loop", "native", "fused", "scan", "auto"):
        layer.layers[0].engine = engine
        try:
            [results[engine]] = flows(nn.ModuleDict({"net": layer}), run).values()
        except ValueError:
            continue
    assert len(results) >= 3
    for norms, error in results.values():
        assert error < 1e-12
        assert_close(norms, results["loop"][0], rtol=1e-8, atol=1e-12)


def test_nothing_comes_back_across_a_reset():
    model, inputs = nn.ModuleDict({"net": Elman(3, 5)}), torch.randn(2, 6, 3)
    resets = torch.zeros(2, 6, dtype=torch.bool)
    resets[:, 3] = True
    [(norms, error)] = flows(model, lambda model: model["net"](inputs, resets=resets)[0][:, -1].sum()).values()
    assert error < 1e-6
    assert [norm > 0 for norm in norms] == [True, True, True, False, False, False]


@pytest.mark.parametrize("steps", [6, 7])
def test_in_a_dilated_layer_gradients_come_back_by_phase(steps):
    """Only steps a multiple of the dilation before the last have a part in it."""
    cell, inputs = GRUCell(3, 5).double(), torch.randn(2, steps, 3, dtype=torch.float64)
    model = nn.ModuleDict({"net": DilatedRecurrent(cell, 2)})
    [(norms, error)] = flows(model, lambda model: model["net"](inputs)[0][:, -1].sum()).values()
    phase = nn.ModuleDict({"net": Recurrent(cell)})
    last = inputs[:, (steps - 1) % 2 :: 2]
    [(expected, _)] = flows(phase, lambda model: model["net"](last)[0][:, -1].sum()).values()
    assert error < 1e-12
    assert_close(norms[::2], expected, rtol=1e-10, atol=0)
    assert norms[1::2] == [0.0] * (steps // 2)


@pytest.mark.parametrize("kind", ["torch", "ours"])
def test_source_last_leaves_out_what_earlier_steps_give_themselves(kind):
    module = nn.GRU(3, 5, batch_first=True).double()
    model = nn.ModuleDict({"net": module if kind == "torch" else GRU.from_torch(module)})
    inputs = torch.randn(3, 6, 3, dtype=torch.float64)
    every, last = (
        lambda model, steps=steps: model["net"](inputs)[0][:, steps].sin().sum() for steps in ([*range(6)], [5])
    )
    [(found, _)] = flows(model, every, source="last").values()
    [(expected, _)] = flows(model, last).values()
    [(other, _)] = flows(model, every).values()
    assert_close(found, expected, rtol=1e-10, atol=0)
    assert other[3] > 2 * expected[3]


def test_a_chaotic_recurrence_is_followed_along_the_trainings_own_trajectory():
    """Rounding differs between a kernel and a loop: 150 steps later such a network would be elsewhere."""
    torch.manual_seed(1)
    module = nn.RNN(8, 64, batch_first=True)
    with torch.no_grad():
        module.weight_hh_l0.mul_(6)
    inputs = torch.randn(2, 200, 8)
    [(norms, error)] = flows(nn.ModuleDict({"net": module}), lambda m: m["net"](inputs)[0][:, -1].sum()).values()
    assert error < 1e-4
    # the kernel's own states, linearised: products of Jacobians in float64
    h = module(inputs)[0].detach().double()
    gradient, expected = torch.ones(2, 64, dtype=torch.float64), []
    for t in reversed(range(200)):
        expected.append(gradient.norm().item())
        gradient = (gradient * (1 - h[:, t].square())) @ module.weight_hh_l0.detach().double()
    assert expected[-1] > 1e3 * expected[0]
    assert_close(norms, expected, rtol=2e-2, atol=0)


def test_calls_of_one_layer_in_a_step_count_as_one_batch():
    model, inputs = nn.ModuleDict({"net": nn.GRU(3, 5, batch_first=True)}).double(), torch.randn(4, 6, 3).double()
    [(whole, _)] = flows(model, lambda model: model["net"](inputs)[0][:, -1].sum()).values()
    [(parts, _)] = flows(
        model, lambda m: m["net"](inputs[:1])[0][:, -1].sum() + m["net"](inputs[1:])[0][:, -1].sum()
    ).values()
    assert_close(parts, whole, rtol=1e-10, atol=0)


@pytest.mark.parametrize("make", [nn.GRU, GRU], ids=["torch", "ours"])
def test_under_autocast_states_are_those_of_autocast(make):
    module, inputs = make(3, 5, num_layers=2), torch.randn(6, 6, 3)

    def run(model):
        with torch.autocast("cpu", torch.bfloat16):
            return model["net"](inputs)[0][-1].float().sum()

    plain = flows(nn.ModuleDict({"net": module}), lambda model: model["net"](inputs)[0][-1].sum())
    for name, (norms, error) in flows(nn.ModuleDict({"net": module}), run).items():
        assert error < 2e-2
        assert_close(norms, plain[name][0], rtol=0.1, atol=1e-3)


def test_random_numbers_and_gradients_of_parameters_stay_as_they_are(device):
    model = nn.ModuleDict({"a": nn.GRU(3, 4), "b": Recurrent(Zoneout(GRUCell(4, 4), 0.5), batch_first=False)}).to(
        device
    )
    inputs = torch.randn(6, 2, 3, device=device)

    def train():
        torch.manual_seed(3)
        model.zero_grad()
        model["b"](model["a"](inputs)[0])[0].sin().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain, numbers = train(), torch.rand(3, device=device)
    recorder = FlowRecorder(recurrences(model)[0], {}, "all")
    recorder.attach()
    found = train()
    recorder.collect(1.0)
    recorder.detach()
    assert torch.equal(torch.rand(3, device=device), numbers)
    assert all(map(torch.equal, found, plain))
    assert all(map(torch.equal, [p.grad for p in model.parameters()], plain))
    assert all("run" not in vars(module) and not module._forward_hooks for module in model.modules())
