"""Small models to search, and searches by hand: loops over lists in Python, one sentence at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rnn_blocks import Hypothesis, Step
from rnn_blocks.engine import State

BOS, EOS = 1, 2


@dataclass
class RandomModel:
    """A recurrence with random weights in float64: the next token depends on all before and on the sentence.

    The state is a pair, one of them of integers; the memory a source that is attended to. With `ruled_out`, a share of
    the pairs of tokens cannot be, and nothing at all comes after the token 3.
    """

    vocab_size: int
    seed: int = 0
    features: int = 6
    spread: float = 2.0
    ruled_out: float = 0.0
    calls: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        self.embedding = draw(self.vocab_size, self.features)
        self.recurrent = draw(self.features, self.features) / math.sqrt(self.features)
        self.output = draw(self.features, self.vocab_size) * self.spread
        self.bias = torch.zeros(self.vocab_size, dtype=torch.float64)
        self.bias[EOS] = 1.5 * (self.seed % 3)  # some models end soon, some late
        self.forbidden = torch.rand(self.vocab_size, self.vocab_size, generator=generator) < self.ruled_out
        if self.ruled_out:
            self.forbidden[3] = True

    def sources(self, lengths: Sequence[int], seed: int = 0) -> tuple[State, State, Tensor]:
        """State, memory and lengths of sentences; each depends on its place and length only, padding is large."""
        sources = torch.full((len(lengths), max(lengths), self.features), 1e3, dtype=torch.float64)
        states = torch.empty(len(lengths), self.features, dtype=torch.float64)
        for sentence, length in enumerate(lengths):
            generator = torch.Generator().manual_seed(1000 * seed + sentence)
            states[sentence] = torch.randn(self.features, generator=generator, dtype=torch.float64)
            sources[sentence, :length] = torch.randn(length, self.features, generator=generator, dtype=torch.float64)
        real = torch.tensor(lengths)
        bias = torch.where(torch.arange(max(lengths)) < real[:, None], 0.0, -1e30).double()
        return (states, torch.zeros(len(lengths), dtype=torch.long)), (sources, bias), real

    def __call__(self, tokens: Tensor, state: State, memory: State) -> Step:
        self.calls.append(tuple(tokens.shape))
        (hidden, count), (sources, bias) = state, memory
        hidden = torch.tanh(self.embedding.to(tokens.device)[tokens] + hidden @ self.recurrent.to(tokens.device))
        scores = hidden @ sources.mT + bias.unsqueeze(1)  # (batch, beam, source)
        weights = scores.softmax(-1)
        hidden = torch.tanh(hidden + weights @ sources * 0.5)
        logits = hidden @ self.output.to(tokens.device) + self.bias.to(tokens.device)
        logits = logits.masked_fill(self.forbidden.to(tokens.device)[tokens], -torch.inf)
        return Step(logits, (hidden, count + 1), weights)

    def one(self, state: State, memory: State, sentence: int, length: int) -> tuple[State, State]:
        """The sentence alone, without padding."""
        (hidden, count), (sources, bias) = state, memory
        here = slice(sentence, sentence + 1)
        return (hidden[here], count[here]), (sources[here, :length], bias[here, :length])

    def log_probs(self, state: State, memory: State, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of every next token after ``bos`` and ``tokens``, and the attention of all steps, for one sentence."""
        state = tuple(tensor[:, None] for tensor in state)
        maps = []
        for token in [BOS, *tokens]:
            logits, state, weights = self(torch.tensor([[token]]), state, memory)
            maps.append(weights[0, 0])
        return logits[0, 0].log_softmax(-1), torch.stack(maps)


@dataclass
class Options:
    """What a search by hand is asked for."""

    max_length: int
    beam_size: int = 1
    length_penalty: float = 0.0
    coverage_penalty: float = 0.0
    min_length: int = 0
    groups: int = 1
    diversity: float = 0.0
    prefix: Sequence[int] = ()
    banned: Sequence[int] = ()


def hypothesis(log_prob: float, tokens: Sequence[int], maps: Tensor, options: Options) -> Hypothesis:
    finished = tokens[-1] == EOS
    score = log_prob / ((5 + len(tokens)) / 6) ** options.length_penalty
    if options.coverage_penalty:
        score += options.coverage_penalty * float(maps.sum(0).clamp(max=1).log().sum())
    return Hypothesis(list(tokens[:-1] if finished else tokens), score, log_prob, finished, maps)


def allowed(tokens: Sequence[int], model: RandomModel, options: Options) -> list[int]:
    """What may follow."""
    early = len(tokens) + 1 < options.min_length
    choices = [t for t in range(model.vocab_size) if t not in options.banned and not (t == EOS and early)]
    if len(tokens) < len(options.prefix):
        choices = [options.prefix[len(tokens)]]
    return [t for t in choices if not model.forbidden[tokens[-1] if tokens else BOS, t]]


def every_sequence(model: RandomModel, state: State, memory: State, options: Options) -> list[Hypothesis]:
    """All there are, best first: finished ones, then those cut at the longest length."""

    def walk(tokens: list[int], log_prob: float) -> Iterator[Hypothesis]:
        log_probs, maps = model.log_probs(state, memory, tokens)
        for token in allowed(tokens, model, options):
            total = log_prob + float(log_probs[token])
            if token == EOS or len(tokens) + 1 == options.max_length:
                yield hypothesis(total, [*tokens, token], maps, options)
            else:
                yield from walk([*tokens, token], total)

    return sorted(walk([], 0.0), key=lambda found: (not found.finished, -found.score))


def beam_by_hand(model: RandomModel, state: State, memory: State, options: Options) -> list[Hypothesis]:
    """A beam search without any early end."""
    size = options.beam_size // options.groups
    beams: list[list[tuple[float, float, list[int]]]] = [[(0.0, 0.0, [])] for _ in range(options.groups)]
    found: list[list[Hypothesis]] = [[] for _ in range(options.groups)]
    for length in range(1, options.max_length + 1):
        taken: list[int] = []
        for group in range(options.groups):
            candidates = []
            for rank, log_prob, tokens in beams[group]:
                log_probs, maps = model.log_probs(state, memory, tokens)
                for token in allowed(tokens, model, options):
                    here = float(log_probs[token])
                    handicap = options.diversity * taken.count(token)
                    candidates.append((rank + here - handicap, log_prob + here, [*tokens, token], maps))
            candidates.sort(key=lambda candidate: -candidate[0])
            room = size - len([one for one in found[group] if one.finished])
            beams[group] = []
            for rank, log_prob, tokens, maps in candidates[:room]:
                if tokens[-1] == EOS or length == options.max_length:
                    found[group].append(hypothesis(log_prob, tokens, maps, options))
                else:
                    beams[group].append((rank, log_prob, tokens))
            taken += [tokens[-1] for _, _, tokens, _ in candidates[:room]]
    unique = {(tuple(one.tokens), one.finished): one for group in found for one in group}
    return sorted(unique.values(), key=lambda one: (not one.finished, -one.score))


def same(found: Sequence[Hypothesis], expected: Sequence[Hypothesis]) -> None:
    """Raise AssertionError where two lists of hypotheses differ; attention is compared where both have it."""
    assert [(one.tokens, one.finished) for one in found] == [(one.tokens, one.finished) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert math.isclose(one.log_prob, other.log_prob, abs_tol=1e-5)
        assert math.isclose(one.score, other.score, abs_tol=1e-5)
        if one.attention is not None and other.attention is not None:
            torch.testing.assert_close(one.attention, other.attention)
