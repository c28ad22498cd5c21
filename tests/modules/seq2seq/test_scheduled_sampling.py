"""The share of true inputs over time, and what the decoder is fed in the place of the rest."""

import math

import pytest
import torch
from pairs import EXACT, TARGET_VOCAB, descend, draw_batch, make_model
from streams import Watch, fit
from torch.testing import assert_close

from rnn_blocks import ScheduledSampling
from rnn_blocks.engine import map_state

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Share:
    """A schedule that stays."""

    def __init__(self, share):
        self.share = share

    def true_share(self, step):
        return self.share


@pytest.mark.parametrize(
    ("decay", "by_paper"),
    [
        ("linear", lambda i, k: 1 - i / k),
        ("exponential", lambda i, k: math.exp(-1 / k) ** i),
        ("inverse-sigmoid", lambda i, k: k / (k + math.exp(i / k))),
    ],
)
def test_shares_are_the_papers(decay, by_paper):
    sampling = ScheduledSampling(decay, k=50, floor=0.2)
    shares = [sampling.true_share(step) for step in range(0, 600, 7)]
    assert shares == pytest.approx([max(0.2, by_paper(step, 50)) for step in range(0, 600, 7)])
    assert shares == sorted(shares, reverse=True)
    assert all(0.2 <= share <= 1 for share in shares)
    assert sampling.true_share(10**9) == 0.2


def test_a_schedule_is_shown_as_it_was_made():
    assert repr(ScheduledSampling("linear", k=10, floor=0.5)) == "ScheduledSampling('linear', k=10, floor=0.5)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": "cosine"}, "decay must be one of 'linear', 'exponential', 'inverse-sigmoid', got 'cosine'"),
        ({"k": 0}, "k must be above 0, got 0"),
        ({"k": math.inf}, "k must be above 0, a finite number, got inf"),
        ({"floor": 1.5}, "floor must be at least 0 and at most 1, got 1.5"),
    ],
)
def test_bad_schedules_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        ScheduledSampling(**options)


def mixed(model, share, batch, seed=0):
    """The inputs of a training step."""
    model.scheduled_sampling = Share(share)
    watched, run = [], model.decoder.forward
    model.decoder.forward = lambda inputs, *rest, **options: (watched.append(inputs), run(inputs, *rest, **options))[1]
    torch.manual_seed(seed)
    fit(model, [batch])
    del model.decoder.forward
    return watched[0]


@pytest.mark.parametrize(
    "options", [{}, {"input_feeding": False}, {"attention": None, "input_feeding": False}], ids=str
)
def test_where_all_is_true_it_is_teacher_forcing_bit_for_bit(options):
    batch = draw_batch([3, 5, 1])
    plain, model = make_model(**options), make_model(**options)
    fit(plain, [batch])
    assert torch.equal(mixed(model, 1.0, batch), batch.target_inputs)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def confident(options=None):
    """Its draws are always the same: those of the largest logit."""
    model = make_model(**(options or {}))
    with torch.no_grad():
        model.decoder.output.weight *= 1000
    return model


@pytest.mark.parametrize("options", [{}, {"input_feeding": False}, {"coverage": True}], ids=str)
def test_where_nothing_is_true_inputs_are_what_the_model_wrote_before_them(options):
    model, batch = confident(options), draw_batch([3, 5, 1])
    inputs = [batch.target_inputs[:, 0]]
    for _ in range(5):
        logits = model(batch.source, batch.source_lengths, torch.stack(inputs, 1))
        inputs.append(logits[:, -1].argmax(-1))
    assert torch.equal(mixed(model, 0.0, batch), torch.stack(inputs, 1))


def test_draws_come_as_often_as_the_model_says():
    model, count = make_model(), 1500
    batch = draw_batch([1])
    batch = batch._replace(
        **{name: getattr(batch, name).expand(count, *getattr(batch, name).shape[1:]) for name in batch._fields[:4]}
    )
    expected = model(batch.source[:1], batch.source_lengths[:1], batch.target_inputs[:1])[0, 0].softmax(-1)
    drawn = mixed(model, 0.0, batch)[:, 1].bincount(minlength=TARGET_VOCAB) / count
    assert_close(drawn.double(), expected.detach(), rtol=0, atol=0.06)


def test_the_share_of_true_inputs_is_as_asked_and_a_seed_repeats_the_draws():
    batch = draw_batch([12] * 40)
    drawn = [mixed(confident(), 0.7, batch, seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    same = (drawn[0] == batch.target_inputs)[:, 1:].float().mean().item()
    assert 0.7 - 0.07 < same < 0.7 + 0.3 * 0.4 + 0.07
    assert torch.equal(drawn[0][:, 0], batch.target_inputs[:, 0])


def test_the_step_taken_is_that_of_the_mixed_inputs():
    """No gradient passes a draw: the loss is as if its inputs had been given."""
    batch, model, by_hand = draw_batch([3, 5, 1]), make_model(), make_model()
    inputs = mixed(model, 0.4, batch)
    assert not torch.equal(inputs, batch.target_inputs)
    descend(by_hand, [batch._replace(target_inputs=inputs)])
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert_close(ours, theirs, **EXACT)


def test_gradients_reach_all_weights_also_in_half_precision():
    """What autocast keeps of a weight that it cast while drawing must not stand in for it in training."""
    model = make_model().float()
    before = map_state(lambda tensor: tensor.detach().clone(), tuple(model.parameters()))
    model.scheduled_sampling = Share(0.5)
    fit(model, [draw_batch([3, 5, 1])], precision="bf16-mixed")
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        assert not torch.equal(parameter, old), name


def test_the_share_is_logged():
    model, watch = make_model(scheduled_sampling=ScheduledSampling("linear", k=10)), Watch()
    fit(model, [draw_batch([3, 2])] * 3, None, watch)
    assert [row["train/true_inputs"] for row in watch.logged] == pytest.approx([1.0, 0.9, 0.8])
