"""Drawing tokens: the distribution of one, and a continuation against running the whole prefix again at each step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import VOCABULARY

from rnn_blocks import GRU, LSTM, LanguageModel, sample_token
from rnn_blocks.modules.generation import stream_tokens

DRAWS = 400


def make_model(**options):
    options = {"layer": LSTM(6, 6, num_layers=2), "init_range": 1.0} | options
    return LanguageModel(options.pop("layer"), VOCABULARY, **options)


def allowed(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> dict[int, float]:
    """The probability of each token that may be drawn, by sorting and adding up in Python."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[:top_k]
    weights = [math.exp((logits[token] - max(logits)) / temperature) for token in order]
    total, kept, reached = math.fsum(weights), [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if top_p is not None and top_p < 1 and reached >= top_p:
            break
        kept.append((token, weight))
        reached += weight / total
    total = math.fsum(weight for _, weight in kept)
    return {token: weight / total for token, weight in kept}


@given(
    st.lists(st.integers(-24, 24), min_size=2, max_size=8, unique=True),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.none() | st.integers(1, 9),
    st.none() | st.sampled_from([1e-6, 0.13, 0.37, 0.61, 0.87, 0.999, 1.0]),
    st.integers(0, 10**6),
)
def test_tokens_are_drawn_from_the_reference_distribution(quarters, temperature, top_k, top_p, seed):
    logits = [quarter / 4 for quarter in quarters]
    expected = allowed(logits, temperature, top_k, top_p)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor([logits]).repeat(DRAWS, 1)
    drawn = sample_token(rows, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    counts = torch.bincount(drawn, minlength=len(logits)).tolist()
    for token, count in enumerate(counts):
        p = expected.get(token, 0.0)
        assert abs(count - DRAWS * p) <= 6 * math.sqrt(DRAWS * p * (1 - p)) + 3 * (p > 0), (token, count, p)


def test_rows_are_drawn_each_from_its_own_distribution():
    logits = torch.full((3, 5), -1e4)
    logits[range(3), [4, 0, 2]] = 0.0
    assert sample_token(logits).tolist() == [4, 0, 2]
    assert sample_token(logits, top_k=2, top_p=0.5).tolist() == [4, 0, 2]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_of_equally_probable_tokens_top_k_keeps_no_more_than_k(top_k):
    drawn = sample_token(torch.zeros(1, 6).repeat(300, 1)[:, :], top_k=top_k)
    assert len(drawn.unique()) == top_k


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40])
def test_a_tiny_temperature_takes_the_most_probable(temperature):
    assert sample_token(torch.tensor([[1.0, 5.0, 4.9]]), temperature=temperature).tolist() == [1]


def test_a_huge_temperature_is_uniform():
    drawn = sample_token(torch.tensor([[50.0, 0.0, -50.0]]).repeat(900, 1), temperature=1e30)
    assert all(240 < count < 360 for count in torch.bincount(drawn).tolist())


def test_the_logits_are_left_as_they_were():
    logits = torch.randn(2, 5)
    before = logits.clone()
    sample_token(logits, top_k=2, top_p=0.5, temperature=0.3)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_logits_of_other_dtypes_are_drawn_from(dtype):
    assert sample_token(torch.tensor([[0.0, 40.0]], dtype=dtype), top_k=2, top_p=0.9).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature must be 0 \(the most probable token\) or above, got -1.0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample_token(torch.zeros(1, 3), **options)
    with pytest.raises(ValueError, match=message):
        make_model().generate([1], 3, **options)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (2**64, r"seed must be below 2\*\*64, got 18446744073709551616"),
        (1.5, "seed must be a whole number, at least -9223372036854775808, got 1.5"),
    ],
)
def test_a_seed_that_no_generator_takes_is_refused(seed, message):
    with pytest.raises(ValueError, match=message):
        make_model().generate([1], 3, seed=seed)


def continued_from_the_whole_prefix(model, prompt, max_tokens, seed, **options):
    generator = torch.Generator().manual_seed(seed)
    tokens = prompt
    for _ in range(max_tokens):
        with torch.no_grad():
            logits, _ = model(tokens)
        drawn = sample_token(logits[:, -1], generator=generator, **options)
        tokens = torch.cat([tokens, drawn[:, None]], dim=1)
    return tokens


@pytest.mark.parametrize(
    "layer",
    [LSTM(6, 6, num_layers=2), GRU(6, 5), LSTM(6, 6, batch_first=False), LSTM(6, 6, num_layers=2, dropout=0.5)],
    ids=["lstm", "gru", "time first", "dropout"],
)
@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {}, {"temperature": 0.7, "top_k": 4}, {"top_p": 0.8}], ids=str
)
@pytest.mark.parametrize("batch", [1, 3])
def test_stepping_the_state_equals_running_the_whole_prefix_again(layer, options, batch):
    model = make_model(layer=layer, dropout=0.5).eval()
    prompt = torch.randint(VOCABULARY, (batch, 4))
    expected = continued_from_the_whole_prefix(model, prompt, 12, seed=7, **options)
    model.train()
    found = model.generate(prompt, 12, seed=7, **options)
    assert found.tolist() == expected.tolist()
    assert len(found.unique()) > 2  # not one token over and over


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}], ids=str)
def test_every_narrowest_setting_is_greedy(options):
    model = make_model()
    assert torch.equal(model.generate([1, 2], 15, **options), model.generate([1, 2], 15, temperature=0.0))


def test_greedy_takes_the_most_probable_token():
    model = make_model()
    tokens = model.generate([1, 2], 1, temperature=0.0)
    logits, _ = model(torch.tensor([[1, 2]]))
    assert tokens[0, -1] == logits[0, -1].argmax()


def test_a_seed_repeats_the_draw_and_leaves_torchs_own_generator_alone():
    model = make_model()
    before = torch.get_rng_state()
    first = model.generate([1], 30, seed=1)
    assert torch.equal(first, model.generate([1], 30, seed=1))
    assert not torch.equal(first, model.generate([1], 30, seed=2))
    assert not torch.equal(model.generate([1], 30), model.generate([1], 30))
    assert torch.equal(before, torch.get_rng_state())


def test_a_batch_of_prompts_is_each_prompt_alone_where_nothing_is_drawn():
    model = make_model()
    prompts = torch.randint(VOCABULARY, (4, 3))
    together = model.generate(prompts, 9, temperature=0.0)
    assert together.shape == (4, 12)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row, model.generate(prompt, 9, temperature=0.0)[0])


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_as_it_was_before(training):
    model = make_model(dropout=0.5).train(training)
    model.generate([1], 3)
    assert {module.training for module in model.modules()} == {training}
    with pytest.raises(ValueError, match="vocabulary"):
        model.generate([99], 3)
    assert model.training == training


def test_streaming_gives_what_generate_appends_and_leaves_gradients_on():
    model = make_model()
    expected = model.generate([[1, 2], [3, 4]], 6, seed=3)[:, 2:]
    stream = model.stream(torch.tensor([[1, 2], [3, 4]]), seed=3)
    for column in expected.unbind(1):
        token = next(stream)
        assert torch.equal(token, column)
        assert torch.is_grad_enabled()
    stream.close()
    assert model.training


def test_generating_keeps_no_graph_and_leaves_the_state_carried_in_training():
    model = make_model()
    model._carried["train"] = ((torch.ones(1, 6),),)
    assert not model.generate([1], 3).requires_grad
    assert model._carried["train"][0][0].sum() == 6


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], 3, "the prompt is empty: give at least one token"),
        (torch.zeros(2, 0, dtype=torch.int64), 3, "the prompt is empty: give at least one token"),
        ([1, VOCABULARY], 3, f"the prompt holds token {VOCABULARY}, the vocabulary has {VOCABULARY}"),
        ([1, -1], 3, f"the prompt holds token -1, the vocabulary has {VOCABULARY}"),
        ([1], 0, "max_tokens must be at least 1, got 0"),
        ([1], -2, "max_tokens must be at least 1, got -2"),
    ],
)
def test_bad_prompts_are_refused(prompt, max_tokens, message):
    with pytest.raises(ValueError, match=message):
        make_model().generate(prompt, max_tokens)


def test_the_stream_of_tokens_ends_nowhere_and_steps_only_when_asked():
    steps = []

    def step(ids, state):
        steps.append(ids.item())
        return torch.eye(3)[(ids + 1) % 3], state

    stream = stream_tokens(step, torch.eye(3)[:1], torch.zeros(1), lambda logits: logits.argmax(-1))
    assert not steps
    assert [next(stream).item() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert steps == [0, 1, 2, 0, 1, 2]
