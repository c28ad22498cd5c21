"""Beam search: the most probable sequences, as far as a few hypotheses kept at each step find them."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from rnn_blocks.checks import number, whole
from rnn_blocks.engine import State
from rnn_blocks.seq2seq.search.history import History
from rnn_blocks.seq2seq.search.limits import LimitOptions, Limits, check_source_lengths
from rnn_blocks.seq2seq.search.logits import StepLogits
from rnn_blocks.seq2seq.search.step import Hypothesis, StepFunction
from rnn_blocks.seq2seq.search.survivors import Survivors, select_rows, spread_rows
from rnn_blocks.signatures import with_options_of


@with_options_of(Limits)
@torch.no_grad()
def beam_search(
    step: StepFunction,
    state: State,
    memory: State,
    *,
    beam_size: int = 5,
    n_best: int = 1,
    length_penalty: float = 1.0,
    coverage_penalty: float = 0.0,
    groups: int = 1,
    diversity: float = 0.0,
    source_lengths: Tensor | None = None,
    return_attention: bool = False,
    **options: Unpack[LimitOptions],
) -> list[list[Hypothesis]]:
    """Search for the most probable sequences, keeping a few hypotheses of each sentence at every step.

    At each step the ``beam_size`` best continuations, by log-probability, are kept; those that end in ``<eos>`` leave
    the beam, which narrows by them (Bahdanau et al. 2015). A finished hypothesis y of n tokens, ``<eos>`` counted, is
    scored by (Wu et al. 2016, eq. 14)

        log P(y) / ((5 + n) / 6)^length_penalty + coverage_penalty * Σ_s log(min(Σ_t a_ts, 1)).

    A sentence is done when its beam is empty, when no hypothesis in it can overtake the ``n_best``-th finished one any
    more, or at ``max_length``: those unfinished by then rank behind all finished ones. What is done leaves the batch.
    With a beam as wide as there are sequences, the result is the exact maximum.

    With ``groups`` (Vijayakumar et al. 2018, algorithm 1) the beam falls into equal parts that advance one after the
    other within a step; ``diversity`` is taken off a candidate's rank for each time that an earlier group chose its
    token at this step. The penalty stays with the hypothesis, but is no part of its score. Every group runs to its end.

    Args:
        step: the model, see :data:`~rnn_blocks.StepFunction`. It is called first with one hypothesis a sentence (one a
            group), then with as many as the sentence that has most of them needs.
        state: before the first step, every tensor ``(batch, …)``; the step gets and gives ``(batch, beam, …)``.
        memory: what hypotheses of a sentence share, every tensor ``(batch, …)``.
        beam_size: hypotheses of a sentence, those of all groups together.
        n_best: how many are returned; fewer where there are not so many sequences.
        length_penalty: 0 ranks by log-probability, 1 nearly by its mean over the tokens.
        coverage_penalty: weight of the source positions that were not attended to; needs ``source_lengths``.
        groups: of a diverse beam search; 1 is the plain one.
        diversity: in nats.
        source_lengths: ``(batch,)``: positions that count in the coverage, and where attention maps are cut.
        return_attention: whether each hypothesis comes with its attention map.

    Returns:
        For each sentence its hypotheses, best first. One that comes to where every token is ruled out is none.

    Raises:
        ValueError: where an argument is out of its range, or the step gives no attention where it is needed.
        FloatingPointError: where the logits hold NaN or infinity.

    >>> def step(tokens, state, memory):  # after token i comes i + 1, most likely
    ...     return Step(5 * torch.eye(5)[(tokens + 1) % 5], state, None)
    >>> from rnn_blocks import Step
    >>> beam_search(step, torch.zeros(1, 1), (), bos=0, eos=4, max_length=9, beam_size=2)[0][0].tokens
    [1, 2, 3]
    """
    limits = Limits(state, memory, **options)
    _check(beam_size, n_best, groups, length_penalty, coverage_penalty, diversity)
    check_source_lengths(source_lengths, limits.batch)
    if coverage_penalty and source_lengths is None:
        raise ValueError("coverage_penalty needs source_lengths: padding is not there to be covered")
    batch, device, uses_attention = limits.batch, limits.device, return_attention or coverage_penalty > 0
    history = History(batch, limits.eos)

    # One row a hypothesis, (batch, groups * width); first one a group.
    state = spread_rows(state, groups)
    tokens = torch.full((batch, groups), limits.bos, device=device)
    live = torch.zeros(batch, groups, device=device)  # log-probabilities, minus infinity where there is no hypothesis
    handicap = torch.zeros(batch, groups, device=device) if groups > 1 and diversity else None
    coverage: Tensor | None = None  # (batch, groups * width, source)

    # One row a sentence.
    width = beam_size // groups
    room = torch.full((batch, groups), width, device=device)  # what finished ones left of the beam
    best = torch.full((batch, n_best), -torch.inf, device=device)  # scores of finished ones
    most = limits.max_length  # (batch,)
    forced, lengths = limits.prefixes, source_lengths

    for length in range(1, limits.longest + 1):
        logits, state, attention = found = step(tokens, state, memory)
        if length == 1:
            limits.check_step(found, groups, attention=uses_attention)
        read = StepLogits(logits)
        normaliser = read.normaliser()  # (batch, beam)
        offset = live - normaliser if handicap is None else live - normaliser - handicap
        count = width if handicap is None else width + logits.shape[1] * width  # what handicaps may bring forward
        ranks, at = read.best(offset, groups, count, limits.forbidden(length))  # (batch, groups, count)
        if forced is not None and length <= forced.shape[1]:
            ranks, at = _force(ranks, at, forced[:, length - 1], read, offset)
        chosen = at % read.vocab_size  # tokens
        each = logits.shape[1] // groups
        first = torch.arange(0, batch * groups * each, each, device=device).view(batch, groups, 1)
        rows = first + at // read.vocab_size
        if handicap is None:
            log_probs = ranks = _within(ranks, room)
        else:
            log_probs = ranks + handicap.flatten()[rows]
            ranks, place = _one_group_after_another(ranks, chosen, room, width, diversity)
            log_probs, chosen, rows = (tensor.gather(-1, place) for tensor in (log_probs, chosen, rows))
            log_probs = log_probs.masked_fill(ranks == -torch.inf, -torch.inf)

        last = (most == length).view(batch, 1, 1)
        is_eos = chosen == limits.eos
        scores = log_probs / _length_norm(length, length_penalty)
        if coverage_penalty:
            assert attention is not None
            assert lengths is not None
            attention = attention.to(scores.dtype)  # sums of bfloat16 would lose small weights
            coverage = attention if coverage is None else coverage + attention
            scores = scores + coverage_penalty * _uncovered(coverage, lengths).flatten()[rows]
        history.record(
            rows,
            chosen,
            log_probs,
            scores.masked_fill(~(is_eos | last), -torch.inf),
            attention if return_attention else None,
        )
        best = torch.cat([best, scores.masked_fill(~is_eos, -torch.inf).flatten(1)], 1).topk(n_best).values
        stops = is_eos | last
        if groups == 1:
            # Log-probabilities only fall, and the longest hypothesis divides them by most.
            bound = log_probs.masked_fill(stops, -torch.inf).amax(-1).squeeze(1) / _length_norm(most, length_penalty)
            stops = stops | (bound <= best[:, -1]).view(batch, 1, 1)
        room = room - (is_eos & (log_probs > -torch.inf)).sum(-1)

        survivors = Survivors(log_probs, stops, [room])
        if survivors.width == 0:
            break
        width = max(left for left, count in zip(survivors.others, survivors.counts, strict=True) if count)
        picked = survivors.picked
        live, tokens, kept = survivors.live, chosen.flatten()[picked], rows.flatten()[picked]
        state = select_rows(state, kept)
        if coverage is not None:
            coverage = coverage.flatten(0, 1)[kept]
        if handicap is not None:
            handicap = (log_probs - ranks).nan_to_num_(0.0).flatten()[picked]  # none where there is no hypothesis
        memory = survivors.sentences_of(memory)
        room, best, most = (survivors.sentences(tensor) for tensor in (room, best, most))
        forced = None if forced is None else survivors.sentences(forced)
        lengths = None if lengths is None else survivors.sentences(lengths)
        history.go_on(picked, survivors.numbers(history.sentences))
        batch = len(tokens)
    return history.hypotheses(n_best, distinct=groups > 1, source_lengths=source_lengths)


def _check(
    beam_size: int, n_best: int, groups: int, length_penalty: float, coverage_penalty: float, diversity: float
) -> None:
    for name, count in (("beam_size", beam_size), ("n_best", n_best), ("groups", groups)):
        whole(name, count)
    if n_best > beam_size:
        raise ValueError(f"n_best must be at most beam_size ({beam_size}), got {n_best}")
    if beam_size % groups:
        raise ValueError(f"groups must divide beam_size ({beam_size}), got {groups}")
    for name, value in (
        ("length_penalty", length_penalty),
        ("coverage_penalty", coverage_penalty),
        ("diversity", diversity),
    ):
        number(name, value)


def _length_norm(length: int | Tensor, length_penalty: float) -> float | Tensor:
    """Wu et al. 2016, eq. 14: lp(Y)."""
    return ((5 + length) / 6) ** length_penalty


def _uncovered(coverage: Tensor, lengths: Tensor) -> Tensor:
    """Wu et al. 2016, eq. 14: ``Σ_s log(min(Σ_t a_ts, 1))`` over real positions, ``(batch, beam)``."""
    real = torch.arange(coverage.shape[-1], device=coverage.device) < lengths.view(-1, 1, 1)
    floor = torch.finfo(coverage.dtype).tiny  # a weight that underflowed, rather than minus infinity
    return (coverage.clamp(floor, 1).log() * real).sum(-1)


def _within(ranks: Tensor, room: Tensor) -> Tensor:
    """``ranks (…, candidates)``, best first, with minus infinity past the first ``room``."""
    return ranks.masked_fill(torch.arange(ranks.shape[-1], device=ranks.device) >= room.unsqueeze(-1), -torch.inf)


def _force(ranks: Tensor, at: Tensor, forced: Tensor, read: StepLogits, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Where a sentence's prefix says what comes next, only that: of the group's one hypothesis so far."""
    groups = ranks.shape[1]
    token = forced.clamp(min=0).view(-1, 1).expand(-1, read.beam)
    rank = (read.of(token) + offset).view(read.batch, groups, -1)[..., 0]  # the first of each group
    is_forced = (forced >= 0).view(-1, 1, 1)
    first = torch.arange(ranks.shape[-1], device=ranks.device) == 0
    ranks = torch.where(is_forced, torch.where(first, rank.unsqueeze(-1), -torch.inf), ranks)
    return ranks, torch.where(is_forced, forced.view(-1, 1, 1), at)


def _one_group_after_another(
    ranks: Tensor, tokens: Tensor, room: Tensor, width: int, diversity: float
) -> tuple[Tensor, Tensor]:
    """Choose for each group in turn, tokens that earlier groups chose having fallen behind.

    Args:
        ranks: ``(batch, groups, candidates)``.
        tokens: of the same shape.
        room: how many each may choose, ``(batch, groups)``.
        width: the largest of them.
        diversity: taken off for each earlier choice of the same token.

    Returns:
        The ranks of those chosen, ``(batch, groups, chosen)``, and their places among the candidates.
    """
    most = min(width, ranks.shape[-1])
    taken = tokens[:, 0, :0]  # (batch, chosen so far)
    chosen = []
    for rank, token, places in zip(ranks.unbind(1), tokens.unbind(1), room.unbind(1), strict=True):
        times = (token.unsqueeze(-1) == taken.unsqueeze(1)).sum(-1)  # (batch, candidates)
        best, place = (rank - diversity * times).topk(most)
        best = _within(best, places)
        taken = torch.cat([taken, token.gather(-1, place).masked_fill(best == -torch.inf, -1)], 1)
        chosen.append((best, place))
    return torch.stack([best for best, _ in chosen], 1), torch.stack([place for _, place in chosen], 1)
