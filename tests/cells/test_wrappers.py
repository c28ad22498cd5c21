"""Each wrapper does to its cell what its paper says: leaks, skips, clocks, deep transitions, learned states."""

import math

import oracles
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import rnn_blocks
from rnn_blocks import (
    CellWrapper,
    Clockwork,
    DeepInput,
    DeepOutput,
    DeepTransition,
    ElmanCell,
    GRUCell,
    Leaky,
    LearnedState,
    LSTMCell,
    Mogrifier,
    Recurrent,
    RecurrentDropout,
    SkipThroughTime,
    Zoneout,
)
from rnn_blocks.engine import detach_state, hidden_of

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def test_time_constants_are_spaced_evenly_on_a_logarithmic_scale():
    for learned in (False, True):
        cell = Leaky(LSTMCell(3, 5), time_constant=(2, 32), learned=learned)
        assert_close(cell.time_constants, torch.tensor([2.0, 4, 8, 16, 32]), **CLOSE)
        assert_close(Leaky(LSTMCell(3, 2), time_constant=7, learned=learned).time_constants, torch.tensor([7.0, 7]))


def test_learned_time_constants_stay_above_one():
    cell = Leaky(ElmanCell(1, 4), time_constant=(1.1, 50), learned=True)
    optimizer = torch.optim.SGD(cell.parameters(), lr=5.0)
    for _ in range(20):
        outputs, _ = Recurrent(cell)(torch.ones(1, 5, 1))
        optimizer.zero_grad()
        outputs[:, -1].pow(2).sum().neg().backward()  # the faster, the larger
        optimizer.step()
    assert (cell.time_constants >= 1).all()
    assert cell.rate_logits.grad.abs().sum() > 0


def test_a_long_time_constant_keeps_what_was_longer():
    def left(time_constant):
        cell = Leaky(ElmanCell(1, 8), time_constant=time_constant)
        start = torch.ones(1, 8)
        outputs, _ = Recurrent(cell)(torch.zeros(1, 10, 1), start)
        return outputs[0, -1].mean()

    torch.manual_seed(0)
    assert left(100.0) > 0.8
    assert left(1.0).abs() < 0.5


def test_the_gradient_of_an_input_d_steps_back_is_larger_through_the_skip():
    delay = 8

    def gradient(strength):
        torch.manual_seed(0)
        cell = SkipThroughTime(ElmanCell(4, 16), delay=delay, strength=strength).double()
        inputs = (torch.randn(1, delay + 1, 4, dtype=torch.float64) * 0.1).requires_grad_()
        outputs, _ = Recurrent(cell)(inputs)
        outputs[:, -1].sum().backward()
        return inputs.grad[0, 0].norm()

    assert gradient(0.5) > 10 * gradient(0.0)


def test_before_the_sequence_h_was_what_it_starts_from():
    inner = LearnedState(GRUCell(3, 4))
    nn.init.ones_(inner.starts[0])
    _, history = SkipThroughTime(inner, delay=4).initial_state(2, torch.zeros(1))
    assert len(history) == 3
    assert all(torch.equal(h, torch.ones(2, 4)) for h in history)


def test_a_group_updates_at_its_period_and_at_the_first_step():
    cell = Clockwork(LSTMCell(3, 6), [1, 2, 5])
    state, changed = cell.initial_state(1, torch.zeros(1)), []
    for _ in range(11):
        (h, c), _ = state
        _, state = cell(torch.randn(1, 3), state)
        moved = (state[0][0] != h).view(3, 2), (state[0][1] != c).view(3, 2)
        assert torch.equal(*moved)
        assert torch.equal(moved[0].all(1), moved[0].any(1))
        changed.append(moved[0].all(1).tolist())
    assert changed == [[t % period == 0 for period in (1, 2, 5)] for t in range(11)]


def test_the_clock_counts_far_in_half_precision():
    cell = Clockwork(GRUCell(1, 2), [1, 1000]).bfloat16()
    outputs, (_, count) = Recurrent(cell)(torch.randn(1, 2002, 1, dtype=torch.bfloat16))
    slow = outputs[0, :, 1]
    assert count.item() == 2002
    assert [t for t in range(1, 2002) if slow[t] != slow[t - 1]] in ([1000, 2000], [1000], [2000])


def test_a_clock_is_what_the_wrappers_of_a_cell_may_keep_beside_it():
    cell = Clockwork(SkipThroughTime(GRUCell(3, 4), delay=3), [2])
    state, hs = cell.initial_state(1, torch.zeros(1)), []
    for _ in range(5):
        _, state = cell(torch.randn(1, 3), state)
        hs.append(hidden_of(state))
    (_, history), _ = state
    assert torch.equal(torch.cat(history), torch.cat([hs[3], hs[2]]))  # of steps, whether or not units moved


def test_the_layers_of_a_transition_start_orthogonal():
    for layer in DeepTransition(LSTMCell(3, 6), layers=2).transition.layers:
        assert_close(layer.weight @ layer.weight.T, torch.eye(6), rtol=0, atol=1e-5)
        assert not layer.bias.any()


def test_the_networks_of_the_paper_have_the_sizes_asked_for():
    transition = DeepTransition(ElmanCell(3, 4), layers=3, width=7)
    assert [tuple(layer.weight.shape) for layer in transition.transition.layers] == [(7, 4), (7, 7), (4, 7)]
    both = DeepOutput(DeepInput(transition, layers=2, input_size=5, width=6), layers=1, output_size=9)
    assert (both.input_size, both.hidden_size) == (5, 9)
    outputs, h = Recurrent(both)(torch.randn(2, 7, 5), lengths=torch.tensor([7, 2]))
    assert (outputs.shape, h.shape) == ((2, 7, 9), (2, 4))
    assert not outputs[1, 2:].any()


def test_a_mogrifier_starts_near_the_inner_cell_and_scales_within_two():
    inner = LSTMCell(3, 4)
    cell = Mogrifier(inner, rounds=2)
    for scaling in cell.scalings:
        nn.init.zeros_(scaling.weight)
    x, h, c = torch.randn(5, 3), torch.randn(5, 4), torch.randn(5, 4)
    assert_close(cell(x, (h, c))[0], inner(x, (h, c))[0])
    nn.init.constant_(cell.scalings[0].bias, 50.0)
    nn.init.constant_(cell.scalings[1].bias, -50.0)
    assert_close(cell(x, (h, c))[0], inner(2 * x, (0 * h, c))[0])


def test_a_low_rank_mogrifier_has_the_parameters_of_the_paper():
    def count(**options):
        return sum(part.numel() for part in Mogrifier(LSTMCell(30, 50), **options).scalings.parameters())

    biases = 3 * 30 + 2 * 50
    assert count(rounds=5) == 5 * 30 * 50 + biases
    assert count(rounds=5, rank=7) == 5 * 7 * (30 + 50) + biases


def test_the_shortcut_carries_gradients_past_layers_that_are_shut():
    def gradient(shortcut):
        cell = DeepTransition(ElmanCell(1, 4), layers=1, shortcut=shortcut)
        nn.init.constant_(cell.transition.layers[0].bias, 50.0)
        inputs = torch.zeros(1, 3, 1, requires_grad=True)
        Recurrent(cell)(inputs)[0][:, -1].sum().backward()
        return inputs.grad[0, 0].abs().item()

    assert gradient(False) == 0
    assert gradient(True) > 0


@pytest.mark.parametrize("engine", ["auto", "fused", "loop"])
def test_a_learned_state_gets_gradients_from_the_start_and_from_resets(engine):
    cell = LearnedState(LSTMCell(3, 4)).double()
    with torch.no_grad():
        for start in cell.starts:
            start.normal_()
    layer = Recurrent(cell, engine=engine)
    inputs = torch.randn(2, 4, 3, dtype=torch.float64)

    def gradients(state, resets):
        outputs, after = layer(inputs, state, resets=resets)
        return oracles.gradients_of(oracles.weighted_sum(outputs, after), list(cell.starts))

    given = detach_state(cell.initial_state(2, inputs))
    resets = torch.zeros(2, 4, dtype=torch.bool)
    resets[1, 2] = True
    assert all(gradient.all() for gradient in gradients(None, None))
    assert all(gradient.all() for gradient in gradients(given, resets))
    assert not any(gradient.any() for gradient in gradients(given, None))


def test_a_learned_state_keeps_the_native_kernel():
    cell = LearnedState(LSTMCell(3, 4))
    assert cell.native_on == LSTMCell.native_on
    with torch.no_grad():
        cell.starts[1].fill_(2.0)
    inputs = torch.randn(2, 5, 3)
    expected, _ = Recurrent(cell, engine="loop")(inputs)
    assert_close(Recurrent(cell, engine="native")(inputs)[0], expected, **CLOSE)
    with pytest.raises(ValueError, match="Leaky has no native kernel"):
        Recurrent(Leaky(cell, time_constant=2.0), engine="native")(inputs)


def test_only_what_starts_at_zero_is_learned():
    assert len(LearnedState(oracles.LeakySum(3, 4)).starts) == 1  # the count starts at one
    assert len(LearnedState(Clockwork(LSTMCell(3, 4), [1, 2])).starts) == 2  # the clock stays a clock
    assert len(LearnedState(RecurrentDropout(GRUCell(3, 4), p=0.5)).starts) == 1  # noise stays noise
    with pytest.raises(ValueError, match="initial state of LearnedState is all zeros: nothing to learn"):
        LearnedState(LearnedState(GRUCell(3, 4)))


def test_a_wrapper_of_ones_own_is_one_method():
    class Halved(CellWrapper):
        fusable = True

        def advance(self, projected, state, hidden):
            return super().advance(projected, state, hidden / 2)

    cell = Leaky(Halved(SkipThroughTime(GRUCell(3, 4), delay=2)), time_constant=3.0).double()
    inputs = torch.randn(2, 6, 3, dtype=torch.float64)
    expected = Recurrent(cell, engine="loop")(inputs)[0]
    assert cell.fusable
    assert_close(Recurrent(cell, engine="fused")(inputs)[0], expected)
    assert not torch.equal(expected, Recurrent(Leaky(cell.cell.cell, time_constant=3.0).double())(inputs)[0])


def test_wrappers_of_a_users_cell_leave_the_choice_of_engine_to_it():
    assert not Leaky(oracles.LeakySum(3, 4), time_constant=2.0).fusable
    assert Zoneout(Leaky(GRUCell(3, 4), time_constant=2.0), p=0.1).fusable


@pytest.mark.parametrize("around", [lambda cell: cell, lambda cell: Leaky(cell, time_constant=2.0)])
@pytest.mark.parametrize("base", [GRUCell, LSTMCell, CellWrapper])
def test_a_step_of_ones_own_is_not_recorded_unless_it_says_so(base, around):
    class Counted(base):
        calls = 0

        def advance(self, projected, state, hidden):
            self.calls += 1
            if hidden.norm() > 1:  # which cannot be recorded
                hidden = hidden / hidden.norm()
            return super().advance(projected, state, hidden)

    class Renamed(Counted):
        """Changes nothing more."""

    class Said(Counted):
        fusable = True

    class ChangedAgain(Said):
        def step(self, projected, state):
            return super().step(projected, state)

    for kind in (Counted, Renamed, *([] if base is CellWrapper else [ChangedAgain])):  # a wrapper's step is final
        cell = kind(GRUCell(3, 4)) if base is CellWrapper else kind(3, 4)
        Recurrent(around(cell))(torch.randn(2, 5, 3))[0].sum().backward()
        assert cell.calls == 5
    cell = Said(GRUCell(3, 4)) if base is CellWrapper else Said(3, 4)
    resets = torch.zeros(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"(?s)cannot be recorded: .*; engine='loop' runs every step"):
        Recurrent(around(cell))(torch.randn(2, 5, 3), resets=resets)
    if base is CellWrapper:
        assert not Said(oracles.LeakySum(3, 4)).fusable


def test_a_wrapped_cell_shows_its_settings():
    cell = Zoneout(Leaky(SkipThroughTime(GRUCell(3, 4), delay=2), time_constant=(1, 9)), p=(0.1, 0.2))
    text = repr(cell)
    for part in ("p=(0.1, 0.2)", "time_constant=(1.0, 9.0), learned=False", "delay=2", "GRUCell(3, 4)"):
        assert part in text
    assert "periods=[1, 2]" in repr(Clockwork(GRUCell(3, 4), [1, 2]))


def gru():
    return GRUCell(3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Leaky(gru(), time_constant=0.5), "time_constant must be at least 1 step.* got 0.5"),
        (lambda: Leaky(gru(), time_constant=(5, 2)), r"time_constant must be .*got \(5, 2\)"),
        (lambda: Leaky(gru(), time_constant=math.inf), "time_constant must be .*got inf"),
        (lambda: Leaky(gru(), time_constant=math.nan), "time_constant must be .*got nan"),
        (lambda: Leaky(gru(), time_constant=(1, 9), learned=True), r"must start above 1.* got \(1, 9\)"),
        (lambda: SkipThroughTime(gru(), delay=1), "delay must be at least 2 steps .*got 1"),
        (lambda: Clockwork(gru(), []), r"periods must be .* got \[\]"),
        (lambda: Clockwork(gru(), [1, 0]), "period 1 must be at least 1 step, got 0"),
        (lambda: Clockwork(gru(), [1, 2, 4]), r"4 units of the cell do not form 3 groups of equal size.*\[1, 2, 4\]"),
        (lambda: DeepTransition(gru(), layers=0), "layers must be at least 1, got 0"),
        (lambda: DeepTransition(gru(), layers=2, width=0), "width must be at least 1, got 0"),
        (lambda: DeepInput(gru(), layers=1, input_size=0), "input_size must be at least 1, got 0"),
        (lambda: DeepOutput(gru(), layers=1, output_size=-1), "output_size must be at least 1, got -1"),
        (lambda: DeepTransition(gru(), layers=1, nonlinearity="gelu"), "must be 'tanh' or 'relu', got 'gelu'"),
        (lambda: Mogrifier(gru(), rounds=-1), "rounds must be at least 0, got -1"),
        (lambda: Mogrifier(gru(), rank=0), "rank must be at least 1, or None .*got 0"),
        (lambda: Leaky(rnn_blocks.LSTM(3, 4), time_constant=2), "Leaky needs a cell to wrap, got LSTM"),
        (lambda: LearnedState(nn.Linear(3, 4)), "LearnedState needs a cell to wrap, got Linear"),
    ],
)
def test_bad_arguments_are_refused_with_what_they_are(make, message):
    with pytest.raises(ValueError, match=message):
        make()
