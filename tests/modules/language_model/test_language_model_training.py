"""Truncated BPTT under Lightning against the loop by hand, and what is logged of it."""

import copy
import math
from functools import partial

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from streams import VOCABULARY, Watch, as_loader, fit, make_stream, make_trainer, plain_loss, sgd, train_by_hand
from torch.testing import assert_close

import rnn_blocks
from rnn_blocks import GRU, LSTM, LanguageModel, TextBatch, map_state
from rnn_blocks.cells.slstm import EMPTY
from rnn_blocks.engine import state_tensors

# Lightning's advice on trainings without validation.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def make_model(**options):
    layer = options.pop("layer", None) or LSTM(6, 6, num_layers=2)
    return LanguageModel(layer, VOCABULARY, **{"optimizer": sgd()} | options)


def assert_same_parameters(model, expected, tolerance=1e-6):
    names = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        assert_close(parameter, names[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize(
    "layer", [LSTM(6, 6, num_layers=2), GRU(6, 5), LSTM(6, 6, engine="loop")], ids=["lstm", "gru", "loop"]
)
@pytest.mark.parametrize("options", [{}, {"tie_weights": True}, {"sum_over_time": True}], ids=str)
def test_training_is_truncated_bptt(layer, options):
    if options.get("tie_weights") and layer.output_size != layer.input_size:
        options = {}
    model = make_model(layer=copy.deepcopy(layer), **options)
    by_hand = copy.deepcopy(model)
    batches = make_stream(3, [5, 5, 2, 5]) + make_stream(3, [5, 4], seed=8)  # a second stream, which starts afresh
    fit(model, batches)
    lr = 0.5
    state = train_by_hand(by_hand, batches, lr, steps_as_factor=options.get("sum_over_time", False))
    assert_same_parameters(model, by_hand)
    assert_close(state_tensors(model._carried["train"]), state_tensors(state), rtol=1e-6, atol=1e-6)
    assert not any(tensor.requires_grad for tensor in state_tensors(model._carried["train"]))


def test_the_state_carried_matters_to_these_streams():
    model, forgetful = (make_model(layer=LSTM(6, 6)) for _ in range(2))
    forgetful.load_state_dict(model.state_dict())
    batches = make_stream(3, [5, 5, 5])
    fit(model, batches)
    fit(forgetful, [batch._replace(fresh=True) for batch in batches])
    assert not torch.allclose(model.embedding.weight, forgetful.embedding.weight, rtol=1e-4, atol=1e-5)


def test_time_first_layers_train_the_same():
    model = make_model()
    other = make_model(layer=LSTM(6, 6, num_layers=2, batch_first=False))
    other.load_state_dict(model.state_dict())
    batches = make_stream(3, [5, 4, 5])
    fit(model, batches)
    fit(other, batches)
    assert_same_parameters(model, other, 1e-7)


def test_plain_pairs_are_batches_of_their_own():
    model, other = make_model(), make_model()
    other.load_state_dict(model.state_dict())
    batches = make_stream(3, [5, 5])
    fit(model, [(batch.inputs, batch.targets) for batch in batches])
    train_by_hand(other, [batch._replace(fresh=True) for batch in batches])
    assert_same_parameters(model, other)


def test_validations_state_is_apart_from_trainings():
    batches, val = make_stream(3, [5, 5, 5, 5]), make_stream(2, [4, 4, 3], seed=9)
    alone, validated = make_model(), make_model()
    validated.load_state_dict(alone.state_dict())
    fit(alone, batches)
    watch = Watch()
    fit(validated, batches, val, watch, val_check_interval=2)
    assert_same_parameters(validated, alone, 0)
    assert len(watch.validations) == 2
    state, nats = None, 0.0
    with torch.no_grad():
        for batch in val:
            loss, state = plain_loss(validated, batch, state)
            nats += float(loss) * batch.targets.numel()
    assert watch.validations[-1]["val/loss"] == pytest.approx(nats / (2 * 11), rel=1e-5)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_perplexity_is_of_the_token_weighted_mean_over_ragged_batches(stage):
    model = make_model()
    batches = make_stream(4, [5, 5, 1], bytes_per_token=2.5)
    batches[1].targets[:3, 1:] = -100  # positions without a target do not count
    batches[2].targets[:] = -100  # a batch without any
    trainer = make_trainer()
    (metrics,) = getattr(trainer, stage)(model, as_loader(batches), verbose=False)
    logits, _ = model.eval()(torch.cat([batch.inputs for batch in batches], dim=1))
    targets = torch.cat([batch.targets for batch in batches], dim=1)
    nats = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="sum").item()
    counted = int((targets != -100).sum())
    name = "val" if stage == "validate" else "test"
    assert counted == 28
    assert metrics[f"{name}/loss"] == pytest.approx(nats / counted, rel=1e-5)
    assert metrics[f"{name}/perplexity"] == pytest.approx(math.exp(nats / counted), rel=1e-5)
    assert metrics[f"{name}/bits_per_byte"] == pytest.approx(nats / math.log(2) / (2.5 * 44), rel=1e-5)


def test_without_bytes_no_bits_per_byte_are_logged():
    (metrics,) = make_trainer().test(make_model(), as_loader(make_stream(2, [4])), verbose=False)
    assert set(metrics) == {"test/loss", "test/perplexity"}


@pytest.mark.parametrize("wrong", [False, True])
def test_confident_logits_do_not_overflow(wrong):
    """Logits of ±60: a loss of 0 or of 120 nats, whose exponential is finite in float64 alone."""
    model = make_model(layer=LSTM(6, 6))
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.fill_(-60.0)[4 if not wrong else 5] = 60.0
    batches = [TextBatch(torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), 4))]
    (metrics,) = make_trainer().test(model, as_loader(batches), verbose=False)
    assert metrics["test/loss"] == pytest.approx(120.0 if wrong else 0.0, abs=1e-5)
    if not wrong:
        assert metrics["test/perplexity"] == pytest.approx(1.0)
    fit(model, batches)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("every", "accumulate"), [(1, 1), (3, 1), (1, 2), (2, 2)])
def test_the_loss_logged_is_the_mean_over_all_tokens_since_the_last_log(every, accumulate):
    model = make_model(optimizer=sgd(0.0))  # its parameters stay, so that each batch's loss is known
    batches = make_stream(3, [5, 2, 5, 1, 5, 4, 3, 5, 5, 2, 1, 1], bytes_per_token=3.0)
    watch = Watch()
    fit(model, batches, None, watch, log_every_n_steps=every, accumulate_grad_batches=accumulate)
    state, losses = None, []
    with torch.no_grad():
        for batch in batches:
            loss, state = plain_loss(model, batch, state)
            losses.append((float(loss), batch.targets.numel()))
    window = every * accumulate
    for last in range(window, len(batches) + 1, window):
        nats = sum(loss * count for loss, count in losses[last - window : last])
        count = sum(count for _, count in losses[last - window : last])
        logged = watch.logged[last - 1]
        assert logged["train/loss"] == pytest.approx(nats / count, rel=1e-5)
        assert logged["train/perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)
        assert logged["train/bits_per_byte"] == pytest.approx(nats / math.log(2) / (3 * count), rel=1e-5)
        assert logged["throughput/tokens_per_second"] > 0


def test_the_clock_of_the_throughput_stands_while_validating(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rnn_blocks.modules.token_module.time.perf_counter", lambda: now[0])

    class Slow(LanguageModel):
        def training_step(self, *args):
            now[0] += 2.0
            return super().training_step(*args)

        def validation_step(self, *args):
            now[0] += 1000.0
            super().validation_step(*args)

    model, watch = Slow(LSTM(6, 6), VOCABULARY), Watch()
    fit(model, make_stream(3, [4, 4, 4, 4]), make_stream(2, [4, 4]), watch, val_check_interval=1)
    assert [row["throughput/tokens_per_second"] for row in watch.logged] == [6.0] * 4


def test_what_is_logged_is_the_mean_also_where_the_sum_over_time_is_differentiated():
    plain, summed = make_model(optimizer=sgd(0.0)), make_model(optimizer=sgd(0.0), sum_over_time=True)
    summed.load_state_dict(plain.state_dict())
    batch = make_stream(3, [5])
    logged = []
    for model in (plain, summed):
        watch = Watch()
        fit(model, batch, None, watch)
        logged.append(watch.logged[0]["train/loss"])
    assert logged[0] == logged[1]


def test_tied_weights_are_one_parameter_trained_once():
    model = make_model(tie_weights=True)
    assert model.output.weight is model.embedding.weight
    assert sum(parameter is model.embedding.weight for parameter in model.parameters()) == 1
    (optimizer,) = [model.configure_optimizers()]
    assert sum(parameter is model.embedding.weight for parameter in optimizer.param_groups[0]["params"]) == 1
    fit(model, make_stream(3, [5, 5]))
    assert model.output.weight.data_ptr() == model.embedding.weight.data_ptr()
    untied = make_model()
    assert untied.output.weight is not untied.embedding.weight


def test_dropout_falls_after_the_embedding_and_before_the_output_in_training_alone():
    seen = []

    class Ones(rnn_blocks.Layer):
        def initial_state(self, batch_size, like):
            return like.new_zeros(batch_size, 1)

        def run(self, inputs, state, lengths, resets):
            seen.append(inputs.detach().clone())
            return torch.ones_like(inputs), state

    model = LanguageModel(Ones(400, 400), VOCABULARY, dropout=0.25)
    torch.nn.init.ones_(model.embedding.weight)
    inputs = torch.zeros(2, 3, dtype=torch.int64)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.weight[0] = 1.0
        logits, _ = model(inputs)
        assert_close(seen[-1].unique(), torch.tensor([0.0, 4 / 3]))
        assert 0.2 < (seen[-1] == 0).float().mean() < 0.3
        kept = logits[..., 0] * 0.75 / 400
        assert len(kept.unique()) > 1
        assert ((kept > 0.65) & (kept < 0.85)).all()
        logits, _ = model.eval()(inputs)
    assert (seen[-1] == 1).all()
    assert (logits[..., 0] == 400).all()


def test_the_schedule_steps_each_step_or_each_epoch():
    halve = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    for interval, expected in [("step", [1.0, 0.5, 0.25, 0.125]), ("epoch", [1.0, 1.0, 0.5, 0.5])]:
        watch = Watch()
        model = make_model(optimizer=sgd(1.0), lr_scheduler=halve, lr_interval=interval)
        fit(model, make_stream(2, [4, 4]), None, watch, max_epochs=2)
        assert watch.rates == expected


def test_reduce_on_plateau_watches_its_monitor():
    plateau = partial(ReduceLROnPlateau, monitor="val/loss", factor=0.1, patience=0)
    model = make_model(optimizer=sgd(0.0), lr_scheduler=plateau)  # with a rate of 0 the loss stands still
    config = model.configure_optimizers()["lr_scheduler"]
    assert config["monitor"] == "val/loss"
    model = make_model(optimizer=lambda p: torch.optim.SGD([{"params": [*p], "lr": 1e-12}]), lr_scheduler=plateau)
    watch = Watch()
    fit(model, make_stream(2, [4]), make_stream(2, [4]), watch, max_epochs=3)
    assert watch.rates == pytest.approx([1e-12, 1e-12, 1e-13])


def test_without_a_schedule_there_is_the_optimizer_alone():
    optimizer = LanguageModel(LSTM(6, 6), VOCABULARY).configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_a_loss_that_is_not_finite_does_not_hand_on_its_state():
    model = make_model(optimizer=sgd(0.0))
    batches = make_stream(3, [4, 4])
    fit(model, batches[:1])
    with torch.no_grad():
        model.embedding.weight[batches[1].inputs[0, -1]] = math.nan
    model._loss(batches[1], "train")
    assert all((tensor == 0).all() for tensor in state_tensors(model._carried["train"]))


def test_after_a_loss_that_is_not_finite_the_layer_starts_as_it_says():
    """Zeros would be noise that drops every unit, and no learned state."""
    cell = rnn_blocks.RecurrentDropout(rnn_blocks.LearnedState(rnn_blocks.SLSTMCell(6, 6)), p=0.5)
    layer = rnn_blocks.Stack([rnn_blocks.VariationalDropout(6, 0.5), rnn_blocks.Recurrent(cell)])
    model = make_model(layer=layer)
    with torch.no_grad():
        cell.cell.starts[0].fill_(0.5)
        model.embedding.weight.fill_(math.nan)
    (batch,) = make_stream(3, [4])
    assert model._loss(batch, "train").isnan()
    locked, (((h, _, m), noise)) = model._carried["train"]
    assert not h.requires_grad
    assert (h == 0.5).all()
    assert torch.equal(m, torch.full_like(m, EMPTY))
    assert all(len(drawn.unique()) == drawn.numel() for drawn in (locked, noise))


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_clock_goes_on_in_whole_steps(precision):
    """Past 256, where numbers of bfloat16 lie two apart."""
    model = make_model(layer=rnn_blocks.Recurrent(rnn_blocks.Clockwork(rnn_blocks.GRUCell(6, 6), [1, 8])))
    fit(model, make_stream(2, [150, 150, 7]), precision=precision)
    _, count = model._carried["train"]
    assert count.dtype == torch.int64
    assert (count == 307).all()


def test_a_batch_without_targets_hands_on_its_state():
    model = make_model()
    first, second = make_stream(3, [4, 4])
    model._loss(first._replace(targets=torch.full_like(first.targets, -100)), "train")
    _, state = model(first.inputs)
    assert_close(state_tensors(model._carried["train"]), state_tensors(map_state(torch.Tensor.detach, state)))
    assert model._loss(second, "train").isfinite()


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("make", [LSTM, GRU, rnn_blocks.Elman])
def test_bfloat16_mixed_training_stays_near_float32(make, engine):
    layer = make(6, 6, num_layers=2, engine=engine)
    model, exact = make_model(layer=layer), make_model(layer=copy.deepcopy(layer))
    exact.load_state_dict(model.state_dict())
    batches, val = make_stream(3, [5] * 6), make_stream(2, [5, 5], seed=9)
    watches = Watch(), Watch()
    fit(model, batches, val, watches[0], precision="bf16-mixed")
    fit(exact, batches, val, watches[1])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for mixed, full in zip(watches[0].logged, watches[1].logged, strict=True):
        assert mixed["train/loss"] == pytest.approx(full["train/loss"], rel=0.02)
    assert watches[0].validations[0]["val/loss"] == pytest.approx(watches[1].validations[0]["val/loss"], rel=0.02)
    assert_same_parameters(model, exact, 0.05)
