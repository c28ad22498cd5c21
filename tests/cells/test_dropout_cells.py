import oracles
import pytest
import torch
import zoo_wrappers
from torch.testing import assert_close

from rnn_blocks import (
    Cell,
    Clockwork,
    DeepInput,
    GRUCell,
    Leaky,
    LSTMCell,
    Mogrifier,
    Recurrent,
    RecurrentDropout,
    SkipThroughTime,
    Zoneout,
)
from rnn_blocks.engine import hidden_of, state_tensors

EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("engine", ["auto", "fused", "loop"])
@pytest.mark.parametrize("make", [GRUCell, LSTMCell, oracles.LeakySum])
def test_zoneout_in_training_is_its_equations(make, engine):
    cell = Zoneout(make(3, 4), p=(0.3, 0.5)).double()
    inputs = torch.randn(2, 6, 3, dtype=torch.float64)
    start = oracles.random_state(cell.initial_state(2, inputs))
    torch.manual_seed(4)
    outputs, after = Recurrent(cell, engine=engine)(inputs, start)
    torch.manual_seed(4)
    _, masks = cell.project(inputs.transpose(0, 1))
    assert len(masks) == (2 if make is LSTMCell else 1)
    for n in range(2):
        state = oracles.rows(start, n)
        for t in range(6):
            kept = [mask[t, n] for mask in masks]
            output, state = zoo_wrappers.zoneout(cell, inputs[n, t], state, hidden_of(state), kept)
            assert_close(outputs[n, t], output, **EXACT)
        assert_close(state_tensors(oracles.rows(after, n)), state_tensors(state), **EXACT)


@pytest.mark.parametrize("engine", ["auto", "fused", "loop"])
@pytest.mark.parametrize("make", [GRUCell, LSTMCell, oracles.LeakySum])
def test_recurrent_dropout_in_training_is_its_equations(make, engine):
    cell = RecurrentDropout(make(3, 4), p=0.4).double()
    inputs = torch.randn(2, 6, 3, dtype=torch.float64)
    start = cell.initial_state(2, inputs)
    outputs, after = Recurrent(cell, engine=engine)(inputs, start)
    expected, (final,) = oracles.run_by_hand([cell], inputs, [start])
    assert_close(outputs, expected, **EXACT)
    assert_close(state_tensors(after), state_tensors(final), **EXACT)


def test_units_keep_their_values_as_often_as_asked_for():
    cell = Zoneout(LSTMCell(1, 400), p=(0.1, 0.6))
    state = cell.initial_state(1, torch.zeros(1))
    kept = torch.zeros(2)
    for _ in range(50):
        before = state
        _, state = cell(torch.randn(1, 1), state)
        kept += torch.stack([a.isclose(b).float().mean() for a, b in zip(before, state, strict=True)])
    assert_close(kept / 50, torch.tensor([0.1, 0.6]), rtol=0, atol=0.02)  # some ten standard errors of 20,000 draws


def test_zoneout_expects_in_evaluation_what_it_averages_in_training():
    cell = Zoneout(LSTMCell(2, 3), p=(0.2, 0.7)).double()
    x, start = torch.randn(1, 2, dtype=torch.float64), torch.randn(2, 1, 3, dtype=torch.float64)
    many = cell(x.expand(40000, 2), tuple(start.expand(2, 40000, 3)))[1]
    cell.eval()
    _, expected = cell(x, tuple(start))
    assert_close([tensor.mean(0, keepdim=True) for tensor in many], list(expected), rtol=0, atol=0.02)


def test_zoneout_hands_gradients_back_unchanged_where_a_unit_kept_its_value():
    cell = Zoneout(GRUCell(2, 50), p=0.5)
    start = torch.randn(1, 50, requires_grad=True)
    _, after = cell(torch.randn(1, 2), start)
    kept = after == start
    gradient = torch.autograd.grad(after[kept].sum(), start)[0]
    assert torch.equal(gradient, kept.float())


def test_the_other_tensors_of_a_unit_keep_their_values_together():
    class Twice(LSTMCell):
        def advance(self, projected, state, hidden):
            h, c, _ = state
            h, (_, c) = super().advance(projected, (h, c), hidden)
            return h, (h, c, 2 * c)

        def initial_state(self, batch_size, like):
            h, c = super().initial_state(batch_size, like)
            return h, c, 2 * c

    _, (_, c, twice) = Recurrent(Zoneout(Twice(2, 50), p=0.5))(torch.randn(1, 9, 2))
    assert torch.equal(twice, 2 * c)


def mask_seen(cell, steps, state=None, inputs=None):
    """What part of each unit the recurrent connections read, at each step."""
    seen = []
    advance = cell.cell.advance

    def record(projected, state, hidden):
        seen.append(hidden / hidden_of(state))
        return advance(projected, state, hidden)

    cell.cell.advance = record
    try:
        inputs = torch.randn(3, steps, 2) if inputs is None else inputs
        state = Recurrent(cell, engine="loop")(inputs, state)[1]
    finally:
        del cell.cell.advance
    return torch.stack(seen), state


def test_the_mask_is_the_same_at_all_steps_and_across_chunks_and_differs_between_sequences():
    cell = RecurrentDropout(GRUCell(2, 40), p=0.5)
    start = (torch.randn(3, 40), cell.initial_state(3, torch.zeros(1))[1])
    first, state = mask_seen(cell, 4, start)
    second, _ = mask_seen(cell, 3, state)
    masks = torch.cat([first, second])
    assert_close(masks, masks[:1].expand_as(masks))
    assert_close(masks.unique().sort()[0].round(decimals=4).unique(), torch.tensor([0.0, 2.0]))
    assert not torch.equal(masks[0, 0], masks[0, 1])
    assert not torch.equal(masks[0, 1], masks[0, 2])


def test_each_call_may_draw_a_mask_of_its_own():
    cell = RecurrentDropout(GRUCell(2, 40), p=0.5, each_call=True)
    start = (torch.randn(3, 40), cell.initial_state(3, torch.zeros(1))[1])
    first, state = mask_seen(cell, 4, start)
    second, _ = mask_seen(cell, 3, state)
    assert torch.equal(state[1] >= 0.5, first[0] != 0)  # the state has the noise that was drawn
    for masks in (first, second):
        assert_close(masks, masks[:1].expand_as(masks))
        assert_close(masks.unique().sort()[0].round(decimals=4).unique(), torch.tensor([0.0, 2.0]))
    assert not torch.equal(first[0].round(), second[0].round())
    assert_close(mask_seen(cell.eval(), 3, state)[0], torch.ones(3, 3, 40))


class Keeping(Cell):
    """Gives what its recurrent connections read, and remembers ones."""

    fusable = True

    def advance(self, projected, state, hidden):
        return hidden + 0 * projected.sum(), state

    def step(self, projected, state):
        return self.advance(projected, state, state)

    def initial_state(self, batch_size, like):
        return like.new_ones(batch_size, self.hidden_size)


AROUND = {
    "mogrifier": Mogrifier,
    "skip": lambda cell: SkipThroughTime(cell, delay=2),
    "clockwork": lambda cell: Clockwork(cell, [1]),
    "zoneout": lambda cell: Zoneout(cell, p=0.5),
    "leaky": lambda cell: Leaky(cell, time_constant=2.0),
    "deep-input": lambda cell: DeepInput(cell, layers=1),
    "mogrifier-skip": lambda cell: Mogrifier(SkipThroughTime(cell, delay=2)),
}


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("wrap", AROUND.values(), ids=AROUND)
def test_each_call_draws_one_mask_whatever_is_around(wrap, engine):
    inner = RecurrentDropout(Keeping(2, 40), p=0.5, each_call=True)
    layer, state, seen = Recurrent(wrap(inner), engine=engine), None, []
    for _ in range(2):
        outputs, state = layer(torch.randn(3, 5, 2), state)
        seen.append(outputs != 0)
        assert torch.equal(seen[-1], seen[-1][:, :1].expand(3, 5, 40))
        assert 0.3 < seen[-1].float().mean() < 0.7
    assert not torch.equal(*seen)


def test_a_step_by_itself_is_a_call():
    layer = Recurrent(RecurrentDropout(Keeping(2, 40), p=0.5, each_call=True))
    first, state = layer.step(torch.randn(3, 2))
    second, _ = layer.step(torch.randn(3, 2), state)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("each_call", [False, True])
def test_a_sequence_that_starts_afresh_gets_another_mask(each_call):
    cell = RecurrentDropout(GRUCell(2, 40), p=0.5, each_call=each_call)
    resets = torch.zeros(3, 6, dtype=torch.bool)
    resets[1, 4] = True
    _, noise = start = cell.initial_state(3, torch.zeros(1))
    _, (_, after) = Recurrent(cell)(torch.randn(3, 6, 2), start, resets=resets)
    assert torch.equal(after[[0, 2]], noise[[0, 2]]) != each_call
    assert not torch.equal(after[1], noise[1])
    assert not torch.equal(after[1], noise[0])


def test_every_sequence_starts_with_noise_of_its_own_in_either_mode():
    cell = RecurrentDropout(GRUCell(2, 4), p=0.5)
    for training in (True, False):
        _, noise = cell.train(training).initial_state(1000, torch.zeros(1, dtype=torch.float64))
        assert noise.dtype == torch.float64
        assert len(noise.unique(dim=0)) == 1000
        assert 0 <= noise.min() < 0.01 < 0.99 < noise.max() < 1


@pytest.mark.parametrize(
    "make",
    [
        lambda cell: Zoneout(cell, p=0.5),
        lambda cell: RecurrentDropout(cell, p=0.5),
        lambda cell: RecurrentDropout(cell, p=0.5, each_call=True),
    ],
)
def test_evaluation_has_no_randomness_and_training_has(make):
    cell = make(Leaky(LSTMCell(2, 30), time_constant=2.0))
    layer, inputs = Recurrent(cell), torch.randn(3, 6, 2)
    for _ in range(2):  # in turns, since a step is recorded for each mode
        layer.train()
        assert not torch.equal(layer(inputs)[0], layer(inputs)[0])
        layer.eval()
        assert torch.equal(layer(inputs)[0], layer(inputs)[0])


def test_each_call_is_told_of():
    assert repr(RecurrentDropout(GRUCell(2, 3), 0.5, each_call=True)).startswith(
        "RecurrentDropout(\n  p=0.5, each_call=True\n"
    )
    assert repr(RecurrentDropout(GRUCell(2, 3), 0.5)).startswith("RecurrentDropout(\n  p=0.5\n")


def test_evaluation_reads_everything_whatever_the_noise():
    inner, inputs = GRUCell(2, 5), torch.randn(3, 6, 2)
    expected, _ = Recurrent(inner, engine="loop")(inputs)
    cell = RecurrentDropout(inner, p=0.5).eval()
    assert torch.equal(Recurrent(cell, engine="loop")(inputs)[0], expected)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_probability_outside_of_zero_to_one_is_refused(p):
    with pytest.raises(ValueError, match=f"p must be at least 0 and below 1, got {p}"):
        RecurrentDropout(GRUCell(2, 3), p)
    with pytest.raises(ValueError, match=f"p must be at least 0 and below 1, or two such numbers, got {p}"):
        Zoneout(GRUCell(2, 3), p)
    with pytest.raises(ValueError, match="two such numbers, got"):
        Zoneout(LSTMCell(2, 3), (0.1, p))
