"""The adaptive softmax against torch's module, and all that a language model does with it."""

import copy
import math

import pytest
import torch
from streams import VOCABULARY, as_loader, fit, make_stream, make_trainer, sgd
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from rnn_blocks import GRU, LSTM, LanguageModel

# Lightning's advice on trainings without validation.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make_model(seed=1, **options):
    torch.manual_seed(seed)
    options = {"cutoffs": [3, 6], "div_value": 2.0, "optimizer": sgd()} | options
    return LanguageModel(options.pop("layer", None) or LSTM(8, 8), VOCABULARY, **options)


@pytest.mark.parametrize("device", DEVICES)
def test_loss_and_log_probabilities_are_those_of_torchs_module(device):
    model = make_model().to(device)
    torchs = nn.AdaptiveLogSoftmaxWithLoss(8, VOCABULARY, [3, 6], div_value=2.0).to(device)
    torchs.load_state_dict(model.output.state_dict())
    (batch,) = make_stream(3, [9])
    inputs, targets = batch.inputs.to(device), batch.targets.t().flatten().to(device)
    hidden, _ = model.hidden(inputs)
    assert hidden.shape == (9, 3, 8)
    rows = hidden.flatten(0, 1)
    expected = torchs(rows, targets)
    assert_close(model.next_token_loss(rows, targets), expected.loss)
    logits, _ = model(inputs)
    assert_close(logits, torchs.log_prob(rows).view(9, 3, -1).transpose(0, 1))
    assert_close(model.log_probs(hidden), torchs.log_prob(rows).view(9, 3, -1))
    assert_close(logits.exp().sum(-1), torch.ones(3, 9, device=device))
    assert_close(cross_entropy(logits.transpose(0, 1).flatten(0, 1), targets), expected.loss)
    assert torch.equal(model.log_probs(hidden[0, 0]), model.log_probs(hidden)[0, 0])


def test_log_probs_of_a_full_softmax_are_normalised_too():
    model = make_model(cutoffs=None)
    hidden, _ = model.hidden(torch.tensor([[1, 2, 3]]))
    assert_close(model.log_probs(hidden), model.output(hidden).log_softmax(-1))
    targets = torch.tensor([4, -100, 5])
    assert_close(model.next_token_loss(hidden[:, 0], targets), cross_entropy(model.output(hidden[:, 0]), targets))


def test_training_is_truncated_bptt_on_that_loss():
    model = make_model()
    by_hand = copy.deepcopy(model)
    batches = make_stream(3, [5, 5, 2])
    fit(model, batches)
    state = None
    for batch in batches:
        outputs, state = by_hand.layer(by_hand.embedding(batch.inputs), state)
        state = tuple(tuple(tensor.detach() for tensor in layer) for layer in state)
        loss = by_hand.output(outputs.flatten(0, 1), batch.targets.flatten()).loss
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()), allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
                if gradient is not None:  # a group of words that no target is of
                    parameter -= 0.5 * gradient
    assert_close(list(model.parameters()), list(by_hand.parameters()), rtol=1e-5, atol=1e-6)


def test_chunks_give_what_the_whole_gives():
    model = make_model().eval()
    inputs = make_stream(3, [12])[0].inputs
    whole, _ = model(inputs)
    state, parts = None, []
    for chunk in inputs.split([5, 1, 6], dim=1):
        logits, state = model(chunk, state)
        parts.append(logits)
    assert_close(torch.cat(parts, dim=1), whole)


def test_validation_counts_the_tokens_that_have_a_target():
    model = make_model()
    batches = make_stream(4, [5, 5, 1], bytes_per_token=2.0)
    batches[1].targets[:3, 1:] = -100
    batches[2].targets[:] = -100  # a batch without any
    (metrics,) = make_trainer().test(model, as_loader(batches), verbose=False)
    logits, _ = model.eval()(torch.cat([batch.inputs for batch in batches], dim=1))
    targets = torch.cat([batch.targets for batch in batches], dim=1)
    loss = cross_entropy(logits.double().flatten(0, 1), targets.flatten()).item()
    assert metrics["test/loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["test/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_rows_without_any_target_give_nan():
    model = make_model()
    assert model.next_token_loss(torch.randn(2, 8), torch.full((2,), -100)).isnan()


def test_generation_takes_the_most_probable_words_step_by_step():
    model = make_model().eval()
    written = model.generate([1, 2], 6, temperature=0)
    for length in range(2, 8):
        logits, _ = model(written[:, :length])
        assert written[0, length] == logits[0, -1].argmax()
    assert torch.equal(model.generate([1, 2], 9, seed=4), model.generate([1, 2], 9, seed=4))


def test_bfloat16_autocast_stays_near_float32():
    model, exact = make_model(), make_model()
    batches = make_stream(3, [5] * 4)
    fit(model, batches, precision="bf16-mixed")
    fit(exact, batches)
    assert_close(list(model.parameters()), list(exact.parameters()), rtol=0.05, atol=0.05)
    logits, _ = model.bfloat16()(batches[0].inputs)
    assert logits.dtype == torch.bfloat16


def test_its_checkpoint_loads_with_its_cutoffs(tmp_path):
    model = make_model(layer=GRU(8, 8), init_range=0.05)
    assert all(0.03 < parameter.abs().max() <= 0.05 for parameter in model.output.parameters())
    trainer = fit(model, make_stream(3, [4, 4]))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "end.ckpt", layer=GRU(8, 8), weights_only=True)
    assert loaded.output.cutoffs == [3, 6, VOCABULARY]
    assert torch.equal(loaded.generate([1, 2], 9, seed=4), model.generate([1, 2], 9, seed=4))


@pytest.mark.parametrize("cutoffs", [[], [0, 3], [3, 3], [6, 3], [3, 11], [12]])
def test_cutoffs_that_do_not_ascend_within_the_vocabulary_are_refused(cutoffs):
    with pytest.raises(ValueError, match=r"cutoffs must ascend from at least 1 to at most 10, .* got \[") as told:
        make_model(cutoffs=cutoffs)
    assert str(cutoffs) in str(told.value)


def test_tied_weights_and_widths_that_vanish_are_refused():
    with pytest.raises(ValueError, match="tie_weights needs a full softmax: leave out the cutoffs, or do not tie"):
        make_model(tie_weights=True)
    for div_value in (3.0, 0.0, math.nan, "4"):
        with pytest.raises(ValueError, match=f"div_value must be above 0 and .* the 8, got {div_value!r}"):
            make_model(div_value=div_value)


@pytest.mark.filterwarnings("ignore:.*quant.*")
def test_a_quantised_output_layer_stands_in_the_place_of_the_linear_one():
    model = LanguageModel(LSTM(8, 8), vocab_size=11).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    tokens, targets = torch.randint(11, (2, 5)), torch.randint(11, (10,))
    logits, _ = model(tokens)
    found, _ = quantised(tokens)
    assert not isinstance(quantised.output, nn.Linear)
    assert_close(found, logits, rtol=0.05, atol=0.05 * float(logits.detach().abs().max()))
    hidden = model.hidden(tokens)[0].flatten(0, 1)
    assert_close(quantised.log_probs(hidden).exp().sum(-1), torch.ones(10))
    assert_close(quantised.next_token_loss(hidden, targets), model.next_token_loss(hidden, targets), rtol=0.05, atol=0)
    assert quantised.generate(tokens, 3).shape == (2, 8)
