"""ClozeModel: its loss, what it can see, and what it fills in."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import as_loader, make_trainer, sgd
from torch import Tensor
from torch.nn.functional import cross_entropy

from rnn_blocks import GRU, LSTM, Bidirectional, ClozeBatch, ClozeModel, Elman, Layer, Stack

VOCABULARY, MASK = 20, 19
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
EXACT = {"rtol": 1e-9, "atol": 1e-9}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


LOOP = {"engine": "loop"}  # nothing is recorded: there are many shapes of few steps


def both_ways(skip: str | None = None) -> Stack:
    """Two layers that each read from both ends."""
    return Stack([Bidirectional(LSTM(6, 3, **LOOP)), Bidirectional(GRU(6, 3, **LOOP))], skip=skip)


LAYERS = {
    "stack of two": both_ways,
    "residual stack": lambda: both_ways("residual"),
    "ready-made, time first": lambda: LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=False, **LOOP),
}


def make_model(layer: Layer | None = None, **options: object) -> ClozeModel:
    torch.manual_seed(0)
    layer = layer or both_ways()
    return ClozeModel(layer, VOCABULARY, MASK, **{"optimizer": sgd(), "init_range": 0.5} | options).double()


def blanked(rows: Sequence[Sequence[int]], blanks: Sequence[Sequence[int]], padding: int = 0, more: int = 0):
    """A batch of sentences, each with its blanks; as long as the longest and ``more``."""
    longest = max(map(len, rows)) + more
    inputs = torch.full((len(rows), longest), padding)
    targets = torch.full((len(rows), longest), -100)
    for row, (ids, steps) in enumerate(zip(rows, blanks, strict=True)):
        inputs[row, : len(ids)] = torch.tensor(ids)
        for step in steps:
            inputs[row, step], targets[row, step] = MASK, ids[step]
    return ClozeBatch(inputs, targets, torch.tensor([len(ids) for ids in rows]))


SENTENCES, BLANKS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3], [8]], [[0, 4], [1], [0]]


def loss_of(model: ClozeModel, batch: ClozeBatch) -> Tensor:
    features, targets = model._blanks(batch)
    return cross_entropy(model.output(features), targets)


def plain_loss(model: ClozeModel, batch: ClozeBatch) -> Tensor:
    """Sentence by sentence, by torch's own functions, of all positions' logits."""
    losses = []
    for inputs, targets, length in zip(batch.inputs, batch.targets, batch.lengths, strict=True):
        embedded = model.embedding.weight[inputs[:length]][None]
        if not model.layer.batch_first:
            embedded = embedded.transpose(0, 1)
        hidden, _ = model.layer(embedded)
        logits = model.projection(hidden.reshape(int(length), -1)) @ model.output.weight.t() + model.output.bias
        chosen = targets[:length] != -100
        losses += cross_entropy(logits[chosen], targets[:length][chosen], reduction="none").unbind()
    return torch.stack(losses).mean()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("tie_weights", [False, True])
def test_the_loss_is_the_mean_cross_entropy_of_the_blanks_and_so_are_its_gradients(name: str, tie_weights: bool):
    model = make_model(LAYERS[name](), tie_weights=tie_weights)
    batch = blanked(SENTENCES, BLANKS)
    trainer = make_trainer(max_steps=1)
    expected = plain_loss(model, batch)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    expected = expected.detach()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer.fit(model, as_loader([batch]))
    torch.testing.assert_close(float(trainer.callback_metrics["train/loss"]), float(expected), rtol=1e-6, atol=0)
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.5 * gradient, **EXACT)


def test_validation_and_test_log_perplexity_and_accuracy_over_all_blanks_however_they_are_batched():
    model = make_model()
    together = [blanked(SENTENCES, BLANKS)]
    apart = [blanked([ids], [steps]) for ids, steps in zip(SENTENCES, BLANKS, strict=True)]
    trainer = make_trainer()
    expected = plain_loss(model, together[0]).detach()
    best = model.fill(together[0].inputs, lengths=together[0].lengths, top_k=1).tokens[:, 0]
    right = (best == together[0].targets[together[0].targets != -100]).double().mean()
    for batches in (together, apart):
        (val,) = trainer.validate(model, as_loader(batches), verbose=False)
        (test,) = trainer.test(model, as_loader(batches), verbose=False)
        for name, value in (("loss", expected), ("perplexity", expected.exp()), ("accuracy", right)):
            for split, logged in (("val", val), ("test", test)):
                assert logged[f"{split}/{name}"] == pytest.approx(float(value), rel=1e-6)


@given(
    rows=st.lists(st.lists(st.integers(0, MASK - 1), min_size=1, max_size=8), min_size=1, max_size=4),
    padding=st.integers(0, VOCABULARY - 1),
    more=st.integers(0, 3),
    data=st.data(),
)
@settings(max_examples=12, deadline=None)
def test_the_loss_is_the_same_whatever_the_padding(rows, padding, more, data):
    blanks = [data.draw(st.sets(st.integers(0, len(ids) - 1), min_size=1)) for ids in rows]
    model = make_model()
    loss = loss_of(model, blanked(rows, blanks, padding=padding, more=more))
    torch.testing.assert_close(loss, plain_loss(model, blanked(rows, blanks)), **EXACT)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("blanks", [[2], [0, 6], [2, 3, 5]], ids=str)
def test_a_blank_sees_every_token_but_those_of_the_blanks_and_never_itself(name: str, blanks: list[int], device: str):
    """By gradient: with respect to what stood at each place before it was blanked out, zero exactly or not at all."""
    model = make_model(LAYERS[name]()).to(device)
    sentence = list(range(3, 10))  # each token once, so that its row of the embedding is that place's alone
    batch = ClozeBatch(*(part.to(device) for part in blanked([sentence, [1, 2]], [blanks, [1]], padding=12)))
    features, _ = model._blanks(batch)
    logits = model.output(features)
    for place, blank in enumerate(blanks):
        for logit in (logits[place].sum(), logits[place, sentence[blank]]):
            (gradient,) = torch.autograd.grad(logit, model.embedding.weight, retain_graph=True)
            seen = {token for token in range(MASK) if gradient[token].count_nonzero()}
            assert seen == {token for step, token in enumerate(sentence) if step not in blanks}
            assert gradient[MASK].count_nonzero(), "the place itself is read, as a blank"


def test_the_proof_by_gradient_would_find_a_leak():
    """Fed the sentence as it is, the same stack hands each token to itself."""
    model = make_model()
    sentence = torch.arange(3, 10)[None]
    (gradient,) = torch.autograd.grad(model(sentence)[0, 2].sum(), model.embedding.weight)
    assert gradient[sentence[0, 2]].count_nonzero()


def test_what_is_to_be_predicted_is_hidden_also_where_a_batch_left_it_in_the_input():
    model = make_model()
    batch = blanked(SENTENCES, BLANKS)
    forgot = ClozeBatch(torch.where(batch.targets == -100, batch.inputs, batch.targets), *batch[1:])
    assert not torch.equal(forgot.inputs, batch.inputs)
    torch.testing.assert_close(loss_of(model, forgot), loss_of(model, batch), rtol=0, atol=0)


def test_a_causal_layer_predicts_a_blank_from_what_stands_before_it():
    model = make_model(Stack([LSTM(6, 6, **LOOP), GRU(6, 6, **LOOP)]))
    sentence = list(range(3, 10))
    features, _ = model._blanks(blanked([sentence], [[3]]))
    (gradient,) = torch.autograd.grad(model.output(features).sum(), model.embedding.weight)
    assert {token for token in range(MASK) if gradient[token].count_nonzero()} == set(sentence[:3])


@pytest.mark.parametrize("name", LAYERS)
def test_candidates_are_the_most_probable_of_each_blank_given_the_others_blank(name: str):
    model = make_model(LAYERS[name](), dropout=0.5)
    batch = blanked(SENTENCES, BLANKS, padding=MASK)
    filled = model.fill(batch.inputs, lengths=batch.lengths, top_k=4)
    assert model.training
    assert filled.places.tolist() == [[0, 0], [0, 4], [1, 1], [2, 0]], "padding is no blank"
    with model.evaluating(), torch.no_grad():
        logits = model(batch.inputs, batch.lengths)[filled.places[:, 0], filled.places[:, 1], :MASK]
    probabilities, tokens = logits.softmax(1).sort(descending=True)
    torch.testing.assert_close(filled.probabilities, probabilities[:, :4], **EXACT)
    assert torch.equal(filled.tokens, tokens[:, :4])
    every = model.fill(batch.inputs, lengths=batch.lengths, top_k=1000)
    assert every.tokens.shape == (4, MASK)
    assert MASK not in every.tokens
    torch.testing.assert_close(every.probabilities.sum(1), torch.ones(4).double(), **EXACT)
    (predicted,) = make_trainer().predict(model, as_loader([batch]))
    torch.testing.assert_close(predicted.probabilities[:, :4], filled.probabilities, **EXACT)


def test_a_tied_layer_of_another_width_is_projected_back():
    model = make_model(Bidirectional(LSTM(6, 5)), tie_weights=True)
    assert model.output.weight is model.embedding.weight
    assert model.projection.weight.shape == (6, 10)
    assert not list(make_model(both_ways(), tie_weights=True).projection.parameters())
    assert not list(make_model(Bidirectional(LSTM(6, 5))).projection.parameters())


def test_a_model_learns_what_only_the_right_side_tells():
    """Sequences `x y` with x = y: only a layer that reads from the end can know x."""
    tokens = torch.arange(8)
    batch = ClozeBatch(
        torch.stack([torch.full_like(tokens, MASK), tokens], 1),
        torch.stack([tokens, torch.full_like(tokens, -100)], 1),
    )
    losses = {}
    for name, layer in (("both", Bidirectional(Elman(6, 16, **LOOP))), ("left", Elman(6, 32, **LOOP))):
        torch.manual_seed(1)
        model = ClozeModel(layer, VOCABULARY, MASK)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
        losses[name] = float(loss.detach())
    assert losses["both"] < 0.1
    assert losses["left"] > 2.0  # log 8 = 2.08 is the best that can be done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_id": 20}, r"mask_id must be an id of the vocabulary, from 0 to 19, got 20"),
        ({"mask_id": -1}, r"mask_id must be .* got -1"),
        ({"vocab_size": 1, "mask_id": 0}, r"vocab_size must be at least 2, a token and the mask, got 1"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1.0"),
        ({"init_range": 0.0}, r"init_range must be above 0, got 0.0"),
        ({"lr_interval": "month"}, r"lr_interval must be 'epoch' or 'step', got 'month'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ClozeModel(GRU(3, 3), **({"vocab_size": VOCABULARY, "mask_id": MASK} | options))


def test_ids_without_a_blank_and_ids_outside_of_the_vocabulary_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match=r"no blank to fill in: none of the ids is the mask's, 19"):
        model.fill(torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match=r"no blank to fill in"):
        model.fill(torch.tensor([[1, MASK]]), lengths=torch.tensor([1]))
    with pytest.raises(ValueError, match=r"hold token 20, the vocabulary has 20"):
        model.fill(torch.tensor([[20, MASK]]))
    with pytest.raises(ValueError, match=r"top_k must be at least 1, got 0"):
        model.fill(torch.tensor([[MASK]]), top_k=0)
    with pytest.raises(ValueError, match=r"a batch of 1 sequences has no blank: its targets are all -100"):
        model.training_step(ClozeBatch(torch.tensor([[1, 2]]), torch.tensor([[-100, -100]])), 0)
