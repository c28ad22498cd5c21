"""Weights before a normalisation are told from others by their gradients, and their norms do not bound steps."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import weight_norm

from rnn_blocks.callbacks import Auto, GradientClipper
from rnn_blocks.callbacks.measuring.scale_invariance import ScaleInvariance
from rnn_blocks.callbacks.measuring.step import StepGradients


class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 6, 3, bias=False)
        self.norm = {"batch": nn.BatchNorm2d(6), "group": nn.GroupNorm(2, 6), "none": nn.Identity()}[norm]
        self.recurrence = nn.LSTM(36, 8, batch_first=True)
        self.output = weight_norm(nn.Linear(8, 4)) if norm == "none" else nn.Linear(8, 4)

    def forward(self, inputs):
        hidden = self.norm(self.conv(inputs)).flatten(2).relu()
        return self.output(self.recurrence(hidden)[0][:, -1])


def data(size=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 8, 8, generator=generator), torch.randint(4, (size,), generator=generator)


def backward(model, optimizer, size=64):
    optimizer.zero_grad()
    inputs, targets = data(size)
    loss = cross_entropy(model(inputs), targets)
    loss.backward()
    return loss


def norm_without(model, names):
    kept = [weight.grad for name, weight in model.named_parameters() if name not in names and weight.grad is not None]
    return math.sqrt(sum(gradient.abs().double().square().sum().item() for gradient in kept))


def groups_of(optimizer):
    return [group["params"] for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("norm", "invariant"),
    [
        ("batch", {"conv.weight"}),
        ("group", {"conv.weight"}),
        ("none", {"output.parametrizations.weight.original1"}),  # the direction; its length is original0
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_weights_before_a_normalisation_are_told_from_all_others(norm, invariant, autocast):
    model, scale = Net(norm), ScaleInvariance()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for step in range(12):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            backward(model, optimizer)
        sensitive = scale.sensitive_norm(StepGradients(optimizer), groups_of(optimizer)).item()
        if step < 2:
            assert sensitive == pytest.approx(norm_without(model, set()), rel=1e-5)  # too early to tell
        optimizer.step()
    assert sensitive == pytest.approx(norm_without(model, invariant), rel=1e-5)
    assert sensitive < 0.999 * norm_without(model, set())


def test_a_weight_that_was_zero_or_frozen_at_first_is_told_once_it_moves():
    model, scale = Net("batch"), ScaleInvariance()
    nn.init.zeros_(model.norm.weight)  # so that the convolution's gradient is zero
    model.recurrence.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(12):
        if step == 4:
            model.recurrence.requires_grad_(True)
        backward(model, optimizer)
        sensitive = scale.sensitive_norm(StepGradients(optimizer), groups_of(optimizer)).item()
        optimizer.step()
    assert sensitive == pytest.approx(norm_without(model, {"conv.weight"}), rel=1e-5)


def test_one_that_comes_to_depend_on_its_scale_counts_again():
    model, scale = Net("batch"), ScaleInvariance()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(101):
        backward(model, optimizer, size=8)
        sensitive = scale.sensitive_norm(StepGradients(optimizer), groups_of(optimizer)).item()
        model.norm.eval()  # from the second step on it is a mere factor
    assert sensitive == pytest.approx(norm_without(model, set()), rel=1e-5)


@pytest.mark.parametrize("invariant", [False, True])
def test_complex_weights_are_told_by_the_part_of_the_gradient_that_changes_their_length(invariant):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.full((4, 4), 1 + 1j) + 0.1 * torch.randn(4, 4))
    optimizer, scale, wanted = torch.optim.SGD([weight], lr=0.01), ScaleInvariance(), torch.randn(4, 4) + 1j
    for _ in range(5):
        optimizer.zero_grad()
        used = weight / weight.abs().square().sum().sqrt() if invariant else weight
        (used * wanted).abs().square().sum().backward()
        sensitive = scale.sensitive_norm(StepGradients(optimizer), [[weight]]).item()
    assert sensitive == pytest.approx(0.0 if invariant else norm_without(nn.ParameterList([weight]), ()), rel=1e-5)


def test_groups_may_come_later_and_a_loaded_one_goes_on_as_if_nothing_had_been():
    model = Net("batch")
    parts = [[*model.conv.parameters(), *model.norm.parameters()], list(model.recurrence.parameters())]
    optimizer = torch.optim.SGD([{"params": part} for part in parts], lr=0.3)
    scales = [ScaleInvariance()]
    for step in range(10):
        if step == 2:
            scales.append(ScaleInvariance())
            scales[1].load_state_dict(scales[0].state_dict())
        if step == 5:
            optimizer.add_param_group({"params": list(model.output.parameters())})
        backward(model, optimizer)
        found = [scale.sensitive_norm(StepGradients(optimizer), groups_of(optimizer)).item() for scale in scales]
        optimizer.step()
    assert found[0] == found[1] == pytest.approx(norm_without(model, {"conv.weight"}), rel=1e-5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_steps_are_bounded_by_the_gradients_of_weights_whose_scale_matters(norm):
    model = Net(norm)
    model.output.requires_grad_(False)
    model.recurrence.requires_grad_(False)
    optimizer = torch.optim.SGD(model.conv.parameters(), lr=1000.0)
    clipper = GradientClipper(optimizer, Auto(deviations=100.0))
    coefficients = []
    for _ in range(6):
        loss = backward(model, optimizer)
        before = norm_without(model, set())
        clipper.clip(loss)
        coefficients.append(norm_without(model, set()) / before)
    assert all(coefficient < 0.9 for coefficient in coefficients[:2])
    if norm == "batch":
        assert coefficients[3:] == pytest.approx([1.0] * 3, rel=1e-5)
    else:
        assert all(coefficient < 0.9 for coefficient in coefficients)


def test_a_checkpoint_of_before_begins_to_look():
    model = Net("batch")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clipper = GradientClipper(optimizer)
    clipper.clip(backward(model, optimizer))
    state = clipper.state_dict()
    assert state["record"].pop("scale")["tried"] == [1] * len(list(model.parameters()))
    clipper.load_state_dict(state)
    clipper.clip(backward(model, optimizer))
    assert clipper.state_dict()["record"]["scale"]["steps"] == 1
