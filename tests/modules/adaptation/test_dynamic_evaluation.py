"""Dynamic evaluation against torch's optimizer and the paper's rule, worked by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import VOCABULARY, make_stream, plain_loss
from torch import Tensor, nn

from rnn_blocks import (
    LSTM,
    DynamicEvaluation,
    LanguageModel,
    Layer,
    NeuralCache,
    State,
    TextBatch,
    detach_state,
    evaluate_adaptively,
    mean_squared_gradients,
)
from rnn_blocks.modules.adaptation.segments import segments


def make_model(**options: object) -> LanguageModel:
    return LanguageModel(LSTM(6, 6), VOCABULARY, **{"dropout": 0.5, **options}).double()


def losses_of_segments(model: LanguageModel, batches: list[TextBatch], step) -> Tensor:
    """The mean loss of segments that follow each other, each scored before `step` learns of it."""
    model.eval()
    state, nats, tokens = None, 0.0, 0
    for batch in batches:
        loss, state = plain_loss(model, batch, state)
        state = detach_state(state)
        nats, tokens = nats + loss.item() * batch.targets.numel(), tokens + batch.targets.numel()
        step(loss)
    return torch.tensor(nats / tokens, dtype=torch.float64)


def test_sgd_without_decay_is_torchs_own(device: torch.device) -> None:
    model, lr = make_model().to(device), 0.7
    batches = make_stream(2, [5, 5, 5, 2])
    losses = evaluate_adaptively(model, batches, dynamic=DynamicEvaluation("sgd", lr=lr, decay=0.0))

    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def step(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    on_device = [TextBatch(batch.inputs.to(device), batch.targets.to(device)) for batch in batches]
    expected = losses_of_segments(model, on_device, step)
    torch.testing.assert_close(losses["model"].compute()["loss"].cpu(), expected)


@pytest.mark.parametrize("method", ["sgd", "rms"])
def test_each_step_follows_the_papers_rule(method: str) -> None:
    model = make_model()
    batches = make_stream(2, [5, 5, 5])
    squares = mean_squared_gradients(model, make_stream(3, [4, 4], seed=5))
    options = DynamicEvaluation(method, lr=0.02, decay=0.3, epsilon=0.01)
    losses = evaluate_adaptively(model, batches, dynamic=options, mean_squares=squares)

    trained = [p.detach().clone() for p in model.parameters()]
    roots = [squares[name].sqrt() for name, _ in model.named_parameters()]
    mean = torch.cat([root.flatten() for root in roots]).mean()

    def step(loss: Tensor) -> None:
        for p, start, root, g in zip(
            model.parameters(), trained, roots, torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            if method == "sgd":
                moved = p - 0.02 * g + 0.3 * (start - p)
            else:
                moved = p - 0.02 * g / (root + 0.01) + (0.3 * root / mean).clamp(max=1) * (start - p)
            p.data = moved.detach()

    torch.testing.assert_close(losses["model"].compute()["loss"], losses_of_segments(model, batches, step))
    assert max((0.3 * root / mean).max() for root in roots) > 1  # so that the clamp was at work


def test_the_mean_squares_are_those_of_each_chunks_gradient_with_the_state_carried() -> None:
    model = make_model()
    batches = make_stream(2, [4, 4, 3])
    squares = mean_squared_gradients(model, batches)
    assert model.training
    model.eval()
    sums = [torch.zeros_like(p) for p in model.parameters()]
    state = None
    for batch in batches:
        loss, state = plain_loss(model, batch, state)
        state = detach_state(state)
        for total, g in zip(sums, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            total += g**2
    for (name, _), total in zip(model.named_parameters(), sums, strict=True):
        torch.testing.assert_close(squares[name], total / 3)


@pytest.mark.parametrize("cutoffs", [None, [4]])
@pytest.mark.parametrize("method", ["sgd", "rms"])
def test_at_a_rate_of_zero_the_loss_is_the_plain_one(method: str, cutoffs) -> None:
    model = make_model(cutoffs=cutoffs)
    batches = make_stream(2, [7, 7, 3], bytes_per_token=3.0)
    squares = mean_squared_gradients(model, batches)
    plain = evaluate_adaptively(model, batches)["model"].compute()
    still = evaluate_adaptively(model, batches, dynamic=DynamicEvaluation(method, lr=0.0), mean_squares=squares)
    torch.testing.assert_close(still["model"].compute(), plain)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("tied", [False, True])
def test_afterwards_the_model_is_the_trained_one_bit_for_bit(tied: bool, device: torch.device) -> None:
    model = LanguageModel(LSTM(6, 6), VOCABULARY, tie_weights=tied).to(device)
    model.layer.eval()  # frozen so by its user
    before, modes = weights_of(model), [module.training for module in model.modules()]
    evaluate_adaptively(model, make_stream(2, [5, 5]), dynamic=DynamicEvaluation("sgd", lr=0.3))
    torch.testing.assert_close(weights_of(model), before, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_a_text_that_breaks_off_leaves_the_trained_model() -> None:
    model = make_model()
    before = weights_of(model)
    seen = []

    def text():
        for batch in make_stream(2, [5, 5, 5]):
            seen.append({name: not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()})
            if len(seen) == 3:
                raise OSError("the disk is gone")
            yield batch

    with pytest.raises(OSError, match="the disk is gone"):
        evaluate_adaptively(model, text(), dynamic=DynamicEvaluation("sgd", lr=0.3, steps=2))
    assert seen[2]["output.weight"], "it had learnt"
    torch.testing.assert_close(weights_of(model), before, rtol=0, atol=0)


def test_a_rate_that_is_far_too_high_is_told_and_the_trained_model_kept() -> None:
    model = make_model(dropout=0.0)
    before = weights_of(model)
    with pytest.raises(FloatingPointError, match=r"diverged.*Lower its learning rate, which is 1e\+308"):
        evaluate_adaptively(model, make_stream(2, [505]), dynamic=DynamicEvaluation("sgd", lr=1e308))
    torch.testing.assert_close(weights_of(model), before, rtol=0, atol=0)


def test_weights_that_need_no_gradient_stay() -> None:
    model = make_model()
    model.embedding.requires_grad_(False)
    kept = model.embedding.weight.clone()
    squares = mean_squared_gradients(model, make_stream(2, [5]))
    assert "embedding.weight" not in squares
    with DynamicEvaluation("rms").adapting(model, squares) as adapted:
        adapted.descend(plain_loss(model.eval(), make_stream(2, [5])[0], None)[0])
        torch.testing.assert_close(model.embedding.weight, kept, rtol=0, atol=0)


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, 8), min_size=1, max_size=5), steps=st.integers(1, 6))
def test_however_the_text_is_cut_the_losses_are_the_same(cuts: list[int], steps: int) -> None:
    torch.manual_seed(1)
    model = LanguageModel(LSTM(4, 4), VOCABULARY).double()
    options = {"dynamic": DynamicEvaluation("sgd", steps=steps), "cache": NeuralCache(6, theta=2.0)}
    cut = evaluate_adaptively(model, make_stream(2, cuts, bytes_per_token=1.5), **options)
    whole = evaluate_adaptively(model, make_stream(2, [sum(cuts)], bytes_per_token=1.5), **options)
    for name, loss in cut.items():
        torch.testing.assert_close(loss.compute(), whole[name].compute())


@given(cuts=st.lists(st.integers(1, 8), min_size=1, max_size=5), steps=st.integers(1, 6))
def test_segments_hold_the_same_text_in_one_length(cuts: list[int], steps: int) -> None:
    batches = make_stream(2, cuts, bytes_per_token=1.5) + make_stream(1, cuts)
    cut = list(segments(batches, steps))
    texts = [cut[: next(i for i in range(1, len(cut)) if cut[i].fresh)]]
    texts.append(cut[len(texts[0]) :])
    for text, lanes in zip(texts, (2, 1), strict=True):
        whole = make_stream(lanes, [sum(cuts)])[0]
        assert [batch.fresh for batch in text] == [True] + [False] * (len(text) - 1)
        assert all(batch.inputs.shape[1] == steps for batch in text[:-1])
        for i in range(2):
            torch.testing.assert_close(torch.cat([batch[i] for batch in text], 1), whole[i])
        assert all(b.num_bytes == pytest.approx(1.5 * b.targets.numel() * (lanes == 2)) for b in text)


def test_cache_and_dynamic_evaluation_go_together() -> None:
    model = make_model()
    batches = make_stream(2, [5, 5, 5])
    dynamic = DynamicEvaluation("sgd", lr=0.5)
    cache = NeuralCache(7, theta=2.0, weight=0.2)
    both = evaluate_adaptively(model, batches, dynamic=dynamic, cache=cache)
    alone = evaluate_adaptively(model, batches, dynamic=dynamic)
    torch.testing.assert_close(both["model"].compute(), alone["model"].compute())

    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trained = [p.detach().clone() for p in model.parameters()]
    state = text = None
    nats = 0.0
    for batch in batches:
        hidden, state = model.hidden(batch.inputs, state)
        state = detach_state(state)
        log_probs = model.log_probs(hidden).gather(-1, batch.targets.t()[..., None]).squeeze(-1)
        mixed, text = cache.mix(hidden.detach(), batch.targets.t(), log_probs.detach(), text)
        nats -= mixed.sum()
        optimizer.zero_grad()
        (-log_probs.mean()).backward()
        with torch.no_grad():
            for p, start in zip(model.parameters(), trained, strict=True):
                p.add_(dynamic.decay * (start - p))
        optimizer.step()
    torch.testing.assert_close(both["cache"].compute()["loss"], nats / 30)


class TorchLayer(Layer):
    """A user's layer around a module of torch's, with its dropout."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.lstm = nn.LSTM(6, 6, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, inputs, state: State | None = None, *, lengths=None, resets=None):
        return self.lstm(inputs, state)


@pytest.mark.parametrize("training", [True, False])
def test_a_users_layer_of_torchs_modules_learns_without_its_dropout(training: bool, device: torch.device) -> None:
    model = LanguageModel(TorchLayer(), VOCABULARY).to(device).train(training)
    plain = evaluate_adaptively(model, make_stream(2, [9]))["model"].compute()
    still = evaluate_adaptively(model, make_stream(2, [9]), dynamic=DynamicEvaluation("sgd", lr=0.0))["model"].compute()
    torch.testing.assert_close(still, plain)
    assert model.layer.lstm.dropout == 0.5
    assert all(module.training == training for module in model.modules())


def test_it_learns_a_text_that_repeats_itself() -> None:
    model = LanguageModel(LSTM(8, 8), VOCABULARY)
    line = torch.tensor([[1, 2, 3, 4, 5, 6]]).repeat(1, 20)
    text = [TextBatch(line[:, :-1], line[:, 1:])]
    plain = evaluate_adaptively(model, text)["model"].compute()["perplexity"]
    squares = mean_squared_gradients(model, text)
    for dynamic in (DynamicEvaluation("sgd", lr=2), DynamicEvaluation("rms", lr=0.02)):
        learnt = evaluate_adaptively(model, text, dynamic=dynamic, mean_squares=squares)["model"].compute()
        assert learnt["perplexity"] < 0.7 * plain


@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.parametrize("method", ["sgd", "rms"])
def test_it_learns_within_inference_mode_of_text_that_was_made_there(method: str, with_cache: bool) -> None:
    model, dynamic = make_model(), DynamicEvaluation(method)
    cache = NeuralCache(7) if with_cache else None

    def losses() -> dict[str, Tensor]:
        batches = make_stream(2, [7, 6])
        squares = mean_squared_gradients(model, batches)
        found = evaluate_adaptively(model, batches, dynamic=dynamic, mean_squares=squares, cache=cache)
        return {name: loss.compute()["loss"] for name, loss in found.items()}

    expected = losses()
    with torch.inference_mode():
        torch.testing.assert_close(losses(), expected)


def test_where_all_weights_are_frozen_there_is_nothing_to_adapt() -> None:
    model, batches = make_model().requires_grad_(False), make_stream(2, [5])
    for run in (
        lambda: evaluate_adaptively(model, batches, dynamic=DynamicEvaluation("sgd")),
        lambda: mean_squared_gradients(model, batches),
    ):
        with pytest.raises(ValueError, match="all weights of this LanguageModel are frozen"):
            run()


def test_rms_without_its_statistics_is_refused() -> None:
    batches, dynamic = make_stream(2, [5]), DynamicEvaluation("rms")
    wider = mean_squared_gradients(LanguageModel(LSTM(7, 7), VOCABULARY), batches)
    for squares in (None, wider):
        with pytest.raises(ValueError, match="needs the mean squares of all"):
            evaluate_adaptively(make_model(), batches, dynamic=dynamic, mean_squares=squares)
    with pytest.raises(ValueError, match="no training text"):
        mean_squared_gradients(make_model(), [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adam"}, "method must be one of rms, sgd, got 'adam'"),
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"lr": float("nan")}, "lr must be at least 0, a finite number, got nan"),
        ({"decay": 1.5}, "decay must be at least 0 and at most 1, got 1.5"),
        ({"epsilon": 0.0}, "epsilon must be above 0, got 0.0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_a_value_out_of_its_range_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicEvaluation(**options)
