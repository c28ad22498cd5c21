"""Pascanu's Ω against a loop written by hand in float64 and against finite differences."""

import pytest
import torch
from torch.testing import assert_close

from rnn_blocks import GRU, Bidirectional, DilatedRecurrent, Elman, ElmanCell, Recurrent, WeightDrop
from rnn_blocks import vanishing_gradient_penalty as penalty_of


def setting(nonlinearity="tanh", **options):
    torch.manual_seed(0)
    layer = Elman(3, 5, nonlinearity=nonlinearity, **options).double()
    return layer, torch.randn(4, 6, 3, dtype=torch.float64)


def loss_of(outputs):
    return outputs.sin()[:, -1].square().sum() + 0.1 * outputs.square().sum()


def omega_by_hand(layer, inputs, lengths=None, resets=None, weight=None):
    """Eq. 9, sequence by sequence and pair by pair; `weight` stands for U where it is differentiated."""
    cell = layer.layers[0].cell
    f = torch.tanh if cell.nonlinearity == "tanh" else torch.relu
    total, U = 0.0, cell.weight_hh.detach()
    weight = U if weight is None else weight
    lengths = lengths or [inputs.shape[1]] * len(inputs)
    rows, pre_activations = [], []
    for n, length in enumerate(lengths):
        h, xs, hs = torch.zeros(5, dtype=torch.float64), [], []
        for t in range(length):
            if resets is not None and resets[n][t]:
                h = torch.zeros_like(h)
            x = cell.weight_ih.detach() @ inputs[n, t] + U @ h + cell.bias.detach()
            xs.append(x.requires_grad_())
            h = f(xs[-1])
            hs.append(h)
        pre_activations.append(xs)
        rows.append(torch.stack(hs + [torch.zeros(5, dtype=torch.float64)] * (inputs.shape[1] - length)))
    loss = loss_of(torch.stack(rows))
    for n, xs in enumerate(pre_activations):
        gradients = torch.autograd.grad(loss, xs, retain_graph=True, allow_unused=True)
        for k in range(len(xs) - 1):
            later = gradients[k + 1]
            if later is None or not later.any() or (resets is not None and resets[n][k + 1]):
                continue
            x = xs[k].detach()
            slope = 1 - torch.tanh(x) ** 2 if f is torch.tanh else (x > 0).double()
            jacobian = weight @ torch.diag(slope)
            total = total + ((later @ jacobian).norm() / later.norm() - 1) ** 2
    return total / len(inputs)


@pytest.mark.parametrize("engine", ["auto", "native", "fused", "loop"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_penalty_is_that_of_the_equation_on_every_engine(engine, nonlinearity):
    layer, inputs = setting(nonlinearity, engine=engine)
    outputs, _ = layer(inputs)
    assert_close(penalty_of(layer, outputs, loss_of(outputs)), omega_by_hand(layer, inputs), rtol=1e-10, atol=0)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("with_resets", [True, False])
def test_padding_and_pairs_across_a_reset_do_not_count(batch_first, with_resets):
    layer, inputs = setting(batch_first=batch_first)
    lengths = [6, 3, 1, 2]
    resets = torch.zeros(4, 6, dtype=torch.bool)
    resets[0, 3] = resets[1, 1] = with_resets
    ordered = [x if batch_first else x.transpose(0, 1) for x in (inputs, resets)]
    marks = {"lengths": torch.tensor(lengths), "resets": ordered[1] if with_resets else None}
    outputs, _ = layer(ordered[0], **marks)
    rows = outputs if batch_first else outputs.transpose(0, 1)
    loss = loss_of(rows) + rows[1, 4].sum()  # from padding, which leads nowhere
    found = penalty_of(layer, outputs, loss, **marks)
    assert_close(found, omega_by_hand(layer, inputs, lengths, resets.tolist()), rtol=1e-10, atol=0)


def test_its_gradient_is_that_of_finite_differences_and_reaches_the_recurrent_weights_alone():
    layer, inputs = setting()
    outputs, _ = layer(inputs)
    parameters = dict(layer.named_parameters())
    penalty = penalty_of(layer, outputs, loss_of(outputs))
    found = dict(zip(parameters, torch.autograd.grad(penalty, parameters.values(), allow_unused=True), strict=True))
    weight = parameters["layers.0.cell.weight_hh"].detach()
    expected = torch.empty_like(weight)
    for place in range(weight.numel()):
        nudge = torch.zeros_like(weight).view(-1)
        nudge[place] = 1e-6
        ends = [omega_by_hand(layer, inputs, weight=weight + sign * nudge.view(5, 5)) for sign in (1, -1)]
        expected.view(-1)[place] = (ends[0] - ends[1]) / 2e-6
    assert_close(found.pop("layers.0.cell.weight_hh"), expected, rtol=1e-5, atol=1e-8)
    assert set(found.values()) == {None}


def test_the_losss_own_gradients_are_as_they_are_without_it():
    layer, inputs = setting()
    loss_of(layer(inputs)[0]).backward()
    plain = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    outputs, _ = layer(inputs)
    loss = loss_of(outputs)
    penalty_of(layer, outputs, loss)
    assert all(p.grad is None for p in layer.parameters())
    loss.backward()
    assert_close([p.grad for p in layer.parameters()], plain, rtol=0, atol=0)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_minimising_it_brings_the_ratio_of_norms_from_either_side_towards_one(factor):
    layer, inputs = setting()
    cell = layer.layers[0].cell
    with torch.no_grad():
        cell.weight_hh.mul_(factor)

    def norm_ratio():
        hidden, step = [], cell.step
        vars(cell)["step"] = lambda *given: (result := step(*given), hidden.append(result[0]))[0]
        layer.layers[0].engine = "loop"
        loss = layer(inputs)[0][:, -1].sin().sum()
        del vars(cell)["step"]
        norms = [g.norm() for g in torch.autograd.grad(loss, hidden)]
        return float(norms[0] / norms[-1]) ** (1 / 5)

    before = norm_ratio()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    penalties = []
    for _ in range(100):
        outputs, _ = layer(inputs)
        penalty = penalty_of(layer, outputs, outputs[:, -1].sin().sum())
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    after = norm_ratio()
    assert penalties[-1] < 0.1 * penalties[0]
    assert abs(after - 1) < 0.5 * abs(before - 1)


def test_gradients_that_have_almost_vanished_count_as_others_do():
    """Their squares are below what float32 can hold; they are what the penalty is for."""
    layer, inputs = setting()
    layer, inputs = layer.float(), inputs.float()
    outputs, _ = layer(inputs)
    loss = loss_of(outputs)
    assert_close(penalty_of(layer, outputs, loss * 1e-30), penalty_of(layer, outputs, loss), rtol=1e-4, atol=0)


def test_a_sequence_that_no_gradient_reaches_gives_no_penalty_and_no_nan():
    layer, inputs = setting()
    outputs, _ = layer(inputs)
    penalty = penalty_of(layer, outputs, outputs[0].sum() * 0.0)
    penalty.backward()
    assert penalty == 0
    assert not layer.layers[0].cell.weight_hh.grad.any()


def test_under_autocast_it_is_taken_in_float32(device):
    layer, inputs = setting()
    layer, inputs = layer.float().to(device), inputs.float().to(device)
    with torch.autocast(device.type, torch.bfloat16):
        outputs, _ = layer(inputs)
        penalty = penalty_of(layer, outputs, loss_of(outputs.float()))
    plain, _ = layer(inputs)
    assert penalty.dtype == torch.float32
    assert_close(penalty, penalty_of(layer, plain, loss_of(plain)), rtol=0.05, atol=0)


class Halved(ElmanCell):
    def advance(self, projected, state, hidden):
        return super().advance(projected, state, hidden / 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Elman(3, 5, num_layers=2),
        lambda: Elman(3, 5, bidirectional=True),
        lambda: Elman(3, 5, skip="residual"),
        lambda: GRU(3, 5),
        lambda: DilatedRecurrent(ElmanCell(3, 5), 2),
        lambda: WeightDrop(Elman(3, 5), 0.5),
        lambda: Bidirectional(Elman(3, 5)),
        lambda: Recurrent(
            type("Half", (ElmanCell,), {"step": lambda self, x, h: ElmanCell.step(self, x, h / 2)})(3, 5)
        ),
    ],
)
def test_layers_whose_states_the_outputs_are_not_are_refused(make):
    with pytest.raises(ValueError, match="layer must be an Elman of one layer in one direction"):
        penalty_of(make(), torch.zeros(1, 2, 5), torch.zeros(()))


def test_a_recurrent_around_the_cell_is_taken_and_bad_arguments_are_told():
    layer, inputs = Recurrent(ElmanCell(3, 5)), torch.randn(2, 4, 3)
    outputs, state = layer(inputs)
    assert penalty_of(layer, outputs, outputs.sum()) > 0
    with pytest.raises(ValueError, match="three-dimensional with 5 features, got a tensor of shape"):
        penalty_of(layer, outputs[..., :2], outputs.sum())
    with pytest.raises(ValueError, match="loss must come from outputs"):
        penalty_of(layer, outputs, state.sum().detach())
    with pytest.raises(ValueError, match="loss must come from outputs"):
        penalty_of(layer, outputs, layer.cell.bias.sum())
