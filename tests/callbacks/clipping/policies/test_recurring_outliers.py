"""What keeps coming back is no outlier: batches of a rarer kind with larger gradients are not clipped for long."""

import math

import pytest
import torch
from torch import nn

from rnn_blocks.callbacks import Auto, GradientClipper, Step
from rnn_blocks.callbacks.measuring.numbers import in_numbers


def outliers(norms, *, scale=1.0, rows=None):
    """At which steps `Auto` clips, of norms with a bit of noise; of ``rows`` the first, where they are tensors."""
    policy = Auto()
    noise = torch.Generator().manual_seed(0)
    like = torch.ones(() if rows is None else (rows,), dtype=torch.float64)
    make = in_numbers if rows is None else torch.Tensor.clone
    history, found = {name: make(value) for name, value in policy.initial_history(like).items()}, []
    for step, norm in enumerate(norms):
        norm = make(like * norm * scale * math.exp(0.2 * torch.randn((), generator=noise).item()))
        given = Step(norm, learning_rate=None, initial_weight_norm=make(like))
        clipped = policy.clip(history, given).target < norm
        if clipped if rows is None else clipped.any():
            found.append(step)
        history = policy.observe(history, given)
    return found


@pytest.mark.parametrize("times", [10.0, 1000.0])
@pytest.mark.parametrize("every", [5, 10, 16, 50])
def test_norms_that_come_back_are_clipped_no_more_after_a_while(times, every):
    norms = [times if step % every == every - 1 else 1.0 for step in range(4000)]
    found = outliers(norms)
    assert found
    assert len([step for step in found if step >= 2000]) <= 0.015 * 2000
    if every < 50:
        assert len([step for step in found if step >= 2000]) < 0.2 * (2000 / every)


def test_a_spike_now_and_then_is_always_clipped():
    spikes = [step for step in range(300, 6000) if step % 300 == 0]
    assert outliers([100.0 if step in spikes else 1.0 for step in range(6000)]) == spikes


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_norms_means_nothing_and_tensors_do_as_numbers(scale):
    norms = [20.0 if step % 7 == 6 else 1.0 for step in range(600)]
    assert outliers(norms) == outliers(norms, scale=scale) == outliers(norms, rows=3)


def test_a_history_of_before_goes_on_without_a_stretch():
    policy, weights = Auto(), torch.tensor(1.0)
    step = Step(torch.tensor(1.0), learning_rate=None, initial_weight_norm=weights)
    history = policy.observe(policy.initial_history(weights), step)
    older = {name: value for name, value in history.items() if name != "stretch"}
    assert policy.clip(older, step) == policy.clip(history, step)
    assert policy.observe(older, step)["stretch"] == 0


def test_a_norm_that_is_not_finite_stretches_nothing():
    policy, weights = Auto(), torch.tensor(1.0)
    history = policy.initial_history(weights)
    for norm in [1.0] * 20 + [math.inf, math.nan]:
        history = policy.observe(history, Step(torch.tensor(norm), learning_rate=None, initial_weight_norm=weights))
    assert history["stretch"] == 0


def trained(clips):
    """Every tenth batch is of another task; its loss at the end, on all of its inputs."""
    draw = torch.Generator().manual_seed(0)
    inputs, first, second = (torch.randn(*shape, generator=draw) for shape in ((1024, 8), (8, 1), (8, 1)))
    trunk = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    heads = nn.Linear(32, 1), nn.Linear(32, 1)
    targets = (inputs @ first).tanh(), 3 * torch.sin(inputs @ second / 2)
    optimizer = torch.optim.Adam([*trunk.parameters(), *heads[0].parameters(), *heads[1].parameters()], lr=5e-3)
    clipper = GradientClipper(optimizer)
    for step in range(1200):
        task, rows = step % 10 == 9, torch.randint(1024, (32,), generator=draw)
        loss = nn.functional.mse_loss(heads[task](trunk(inputs[rows])), targets[task][rows])
        optimizer.zero_grad()
        loss.backward()
        if clips:
            clipper.clip(loss)
        optimizer.step()
    return nn.functional.mse_loss(heads[1](trunk(inputs)), targets[1]).item()


def test_a_rarer_task_is_learnt_as_without_clipping():
    assert trained(clips=True) < 1.1 * trained(clips=False)
