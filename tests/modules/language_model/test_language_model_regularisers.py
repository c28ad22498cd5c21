"""Dropout at its places, and penalties on activations, against a loss written out by hand with the same noise."""

import math

import pytest
import torch
from streams import VOCABULARY, Watch, fit, make_stream, sgd
from torch.nn.functional import cross_entropy, embedding
from torch.testing import assert_close

from rnn_blocks import LSTM, LanguageModel
from rnn_blocks.engine import dropout_mask

# Lightning's advice on trainings without validation.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
BATCH, TIME, FEATURES = 3, 7, 6
ALL = {
    "embedding_dropout": 0.3,
    "input_dropout": 0.4,
    "dropout": 0.2,
    "locked_dropout": True,
    "activation_regularisation": 2.0,
    "temporal_activation_regularisation": 0.7,
}


def make_model(**options):
    torch.manual_seed(1)
    layer = options.pop("layer", None) or LSTM(FEATURES, FEATURES, num_layers=2)
    return LanguageModel(layer, VOCABULARY, **{"optimizer": sgd()} | options)


def loss_by_hand(model, batch, *, words, entering, leaving, alpha, beta):
    """The loss of one chunk; ``words`` is ``(vocabulary,)``, the masks are ``(batch, time or 1, features)``."""
    embedded = embedding(batch.inputs, model.embedding.weight) * words[batch.inputs][..., None] * entering
    outputs, _ = model.layer(embedded)
    hidden = outputs * leaving
    logits = hidden @ model.output.weight.t() + model.output.bias
    penalty = alpha * hidden.pow(2).mean() + beta * (outputs[:, 1:] - outputs[:, :-1]).pow(2).mean()
    return cross_entropy(logits.flatten(0, 1), batch.targets.flatten()) + penalty


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("left_out", [None, *ALL])
def test_the_training_loss_is_the_one_by_hand(left_out, batch_first):
    options = {name: value for name, value in ALL.items() if name != left_out}
    model = make_model(**options, layer=LSTM(FEATURES, FEATURES, num_layers=2, batch_first=batch_first))
    (batch,) = make_stream(BATCH, [TIME])
    torch.manual_seed(7)
    loss = model._loss(batch, "train")

    torch.manual_seed(7)
    p = options.get("embedding_dropout", 0.0)
    words = (torch.rand(VOCABULARY) >= p) / (1 - p) if p else torch.ones(VOCABULARY)
    shape = (BATCH, FEATURES) if options.get("locked_dropout") else (TIME, BATCH, FEATURES)
    masks = []
    for p in (options.get("input_dropout", options.get("dropout", 0.0)), options.get("dropout", 0.0)):
        mask = dropout_mask(shape, p, torch.zeros(1)) if p else torch.ones(shape)
        masks.append(mask[:, None] if mask.dim() == 2 else mask.transpose(0, 1))
    alpha = options.get("activation_regularisation", 0.0)
    beta = options.get("temporal_activation_regularisation", 0.0)
    # the oracle's layer takes time second
    by_hand = make_model()
    by_hand.load_state_dict(model.state_dict())
    expected = loss_by_hand(by_hand, batch, words=words, entering=masks[0], leaving=masks[1], alpha=alpha, beta=beta)
    assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert_close(gradients, torch.autograd.grad(expected, list(by_hand.parameters())), rtol=1e-4, atol=1e-6)


def test_a_locked_mask_is_one_for_a_lane_and_another_for_each_lane_and_chunk():
    model = make_model(layer=LSTM(40, 40), dropout=0.5, locked_dropout=True)
    (first, second) = (model._dropped(torch.ones(TIME, BATCH, 40), 0.5) for _ in range(2))
    for dropped in (first, second):
        assert (dropped == dropped[0]).all()
        assert set(dropped.unique().tolist()) == {0.0, 2.0}
        assert not torch.equal(dropped[0, 0], dropped[0, 1])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ALL)
def test_nothing_of_it_counts_in_evaluation(name):
    model, plain = make_model(**{name: ALL[name]}).eval(), make_model().eval()
    (batch,) = make_stream(BATCH, [TIME])
    assert torch.equal(model._loss(batch, "val"), plain._loss(batch, "val"))
    assert torch.equal(model(batch.inputs)[0], plain(batch.inputs)[0])


def test_the_penalties_are_differentiated_and_not_logged():
    plain, penalised = Watch(), Watch()
    models = make_model(), make_model(activation_regularisation=50.0, temporal_activation_regularisation=50.0)
    for model, watch in zip(models, (plain, penalised), strict=True):
        fit(model, make_stream(BATCH, [TIME]), None, watch)
    assert penalised.logged[0]["train/loss"] == plain.logged[0]["train/loss"]
    assert not torch.allclose(*(model.layer.layers[0].cell.weight_hh for model in models), atol=1e-4)


def test_the_sum_over_time_multiplies_loss_and_penalties_alike():
    (batch,) = make_stream(BATCH, [TIME])
    steps = []
    for lr, summed in ((0.7, False), (0.1, True)):
        model = make_model(**ALL, sum_over_time=summed, optimizer=sgd(lr))
        torch.manual_seed(3)
        fit(model, [batch])
        steps.append(list(model.parameters()))
    assert_close(*steps, rtol=1e-4, atol=1e-6)


def test_the_input_dropout_is_the_dropout_unless_said_otherwise():
    assert make_model(dropout=0.3).input_dropout == 0.3
    assert make_model(dropout=0.3, input_dropout=0.0).input_dropout == 0.0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("embedding_dropout", 1.0, "embedding_dropout must be at least 0 and below 1, got 1.0"),
        ("input_dropout", -0.1, "input_dropout must be at least 0 and below 1, got -0.1"),
        ("activation_regularisation", -1.0, "activation_regularisation must be at least 0, got -1.0"),
        ("temporal_activation_regularisation", math.inf, "must be at least 0, a finite number, got inf"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message):
        make_model(**{name: value})
