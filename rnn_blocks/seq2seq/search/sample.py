"""Sequences drawn from a model, or made of the most probable token each time."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from rnn_blocks.checks import whole
from rnn_blocks.engine import State
from rnn_blocks.seq2seq.search.history import History
from rnn_blocks.seq2seq.search.limits import LimitOptions, Limits, check_source_lengths
from rnn_blocks.seq2seq.search.logits import StepLogits
from rnn_blocks.seq2seq.search.sampling import check_sampling, sample_token
from rnn_blocks.seq2seq.search.step import Hypothesis, StepFunction
from rnn_blocks.seq2seq.search.survivors import Survivors, select_rows, spread_rows
from rnn_blocks.signatures import with_options_of


@with_options_of(Limits)
@torch.no_grad()
def sample_search(
    step: StepFunction,
    state: State,
    memory: State,
    *,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    source_lengths: Tensor | None = None,
    return_attention: bool = False,
    **options: Unpack[LimitOptions],
) -> list[list[Hypothesis]]:
    """Draw sequences from the model, token after token.

    Args:
        step: the model, see :data:`~rnn_blocks.StepFunction`.
        state: before the first step, every tensor ``(batch, …)``; the step gets and gives ``(batch, beam, …)``.
        memory: what the samples of a sentence share, every tensor ``(batch, …)``.
        num_samples: how many are drawn for each sentence, independently; they may be equal.
        temperature: as in :func:`~rnn_blocks.sample_token`; 0 takes the most probable token.
        top_k: as in :func:`~rnn_blocks.sample_token`.
        top_p: as in :func:`~rnn_blocks.sample_token`.
        generator: where the randomness comes from.
        source_lengths: where attention maps are cut, ``(batch,)``.
        return_attention: whether each sample comes with its attention map.

    Returns:
        For each sentence its samples, finished ones first, then the most probable first. One that comes to where every
        token is ruled out is no sample, and is left out. Log-probabilities, and with them scores, are those of the
        model: neither temperature nor what was left out changes them.

    Raises:
        ValueError: where an argument is out of its range, or the step gives no attention where it is wanted.
        FloatingPointError: where the logits hold NaN or infinity.

    >>> from rnn_blocks import Step
    >>> def step(tokens, state, memory):  # heads or tails, until the coin is lost
    ...     return Step(torch.zeros(*tokens.shape, 3), state, None)
    >>> samples = sample_search(step, torch.zeros(1, 1), (), bos=0, eos=2, max_length=9, num_samples=4)[0]
    >>> len(samples)
    4
    """
    limits = Limits(state, memory, **options)
    whole("num_samples", num_samples)
    check_sampling(temperature, top_k, top_p)
    check_source_lengths(source_lengths, limits.batch)
    batch, device = limits.batch, limits.device
    history = History(batch, limits.eos)
    state = spread_rows(state, num_samples)
    tokens = torch.full((batch, num_samples), limits.bos, device=device)
    live = torch.zeros(batch, num_samples, device=device)  # log-probabilities, minus infinity where one has ended
    most, forced = limits.max_length, limits.prefixes

    for length in range(1, limits.longest + 1):
        logits, state, attention = found = step(tokens, state, memory)
        if length == 1:
            limits.check_step(found, num_samples, attention=return_attention)
        read, forbidden = StepLogits(logits), limits.forbidden(length)
        offset = live - read.normaliser()
        if temperature == 0:
            chosen = read.best(offset, read.beam, 1, forbidden)[1].squeeze(-1)
        else:
            allowed = read.without(forbidden).flatten(0, 1)
            nothing = allowed.amax(-1, keepdim=True) == -torch.inf
            allowed = allowed.masked_fill(nothing, 0.0)
            drawn = sample_token(allowed, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
            chosen = drawn.view(batch, -1)
        ruled_out = forbidden.mask[chosen]  # where everything is: it had to be something
        if forced is not None and length <= forced.shape[1]:
            wanted = forced[:, length - 1, None]
            chosen = torch.where(wanted >= 0, wanted, chosen)
            ruled_out = ruled_out & (wanted < 0)
        log_probs = (read.of(chosen) + offset).masked_fill(ruled_out, -torch.inf)  # (batch, samples)
        ends = (chosen == limits.eos) | (most == length).unsqueeze(1)
        rows = torch.arange(chosen.numel(), device=device).view(batch, -1)
        scores = log_probs.masked_fill(~ends, -torch.inf)
        history.record(rows, chosen, log_probs, scores, attention if return_attention else None)
        survivors = Survivors(log_probs.unsqueeze(1), ends.unsqueeze(1))
        if survivors.width == 0:
            break
        picked = survivors.picked
        live, tokens = survivors.live, chosen.flatten()[picked]
        state, memory = select_rows(state, picked), survivors.sentences_of(memory)
        most = survivors.sentences(most)
        forced = None if forced is None else survivors.sentences(forced)
        history.go_on(picked, survivors.numbers(history.sentences))
        batch = len(tokens)
    return history.hypotheses(num_samples, source_lengths=source_lengths)


@with_options_of(Limits)
def greedy_search(
    step: StepFunction,
    state: State,
    memory: State,
    *,
    source_lengths: Tensor | None = None,
    return_attention: bool = False,
    **options: Unpack[LimitOptions],
) -> list[list[Hypothesis]]:
    """Take the most probable token each time: one hypothesis a sentence, in a list of its own.

    The list is empty where it comes to where every token is ruled out.

    The errors are those of :func:`~rnn_blocks.sample_search`, and so is the score: the log-probability.

    Args:
        step: the model, see :data:`~rnn_blocks.StepFunction`.
        state: before the first step, every tensor ``(batch, …)``; the step gets and gives ``(batch, beam, …)``.
        memory: what hypotheses of a sentence share, every tensor ``(batch, …)``.
        source_lengths: where attention maps are cut, ``(batch,)``.
        return_attention: whether each hypothesis comes with its attention map.

    >>> from rnn_blocks import Step
    >>> def step(tokens, state, memory):  # after token i comes i + 1, most likely
    ...     return Step(5 * torch.eye(5)[(tokens + 1) % 5], state, None)
    >>> greedy_search(step, torch.zeros(1, 1), (), bos=0, eos=4, max_length=9)[0][0].tokens
    [1, 2, 3]
    """
    return sample_search(
        step,
        state,
        memory,
        temperature=0.0,
        source_lengths=source_lengths,
        return_attention=return_attention,
        **options,
    )
