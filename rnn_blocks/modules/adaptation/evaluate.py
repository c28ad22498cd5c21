"""One pass over a text with a model that adapts to it."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor

from rnn_blocks.engine import State, detach_state
from rnn_blocks.modules.adaptation.dynamic_evaluation import (
    AdaptedWeights,
    DynamicEvaluation,
    differentiable_evaluation,
    ids_for,
)
from rnn_blocks.modules.adaptation.neural_cache import CachedText
from rnn_blocks.modules.adaptation.segments import IGNORED, segments
from rnn_blocks.modules.language_model.model import LanguageModel
from rnn_blocks.modules.language_model.text_batch import TextBatch
from rnn_blocks.modules.token_loss import TokenLoss

LOGITS = 2**24  # numbers held at once where every word's probability is made
LOOK_EVERY = 100  # segments: whether the loss is finite is known on the host


class Mixer(Protocol):
    """What a :class:`NeuralCache` is to a pass over a text."""

    def mix(
        self, hidden: Tensor, targets: Tensor, log_probs: Tensor, text: CachedText | None = None
    ) -> tuple[Tensor, CachedText]:
        """As :meth:`NeuralCache.mix`."""
        ...


def evaluate_adaptively(
    model: LanguageModel,
    batches: Iterable[TextBatch],
    *,
    cache: Mixer | None = None,
    dynamic: DynamicEvaluation | None = None,
    mean_squares: dict[str, Tensor] | None = None,
) -> dict[str, TokenLoss]:
    """The loss on a text of which the model learns as it reads: by a cache, by its weights, or both.

    Each token is scored before anything is learnt of it. The lanes of a batch have caches of their own, and the weights
    in common. When this ends, or breaks off, the model is as it was.

    Args:
        model: a trained model.
        batches: chunks of the text in order, a text beginning where one is ``fresh``; on any device.
        cache: a :class:`NeuralCache`, or what has its ``mix``.
        dynamic: dynamic evaluation. It cuts the text into its own segments.
        mean_squares: of the gradients on training text, by :func:`mean_squared_gradients`, for the method ``"rms"``.

    Returns:
        ``"model"``: the loss of the model's own predictions, its weights adapting with ``dynamic``; ``"cache"``: with
        ``cache`` given, that of the same mixed with the cache.

    Raises:
        ValueError: for ``"rms"`` without its mean squares, for ``dynamic`` where all weights are frozen, and for a text
            in which nothing is to be predicted.
        FloatingPointError: where dynamic evaluation diverges.

    >>> import rnn_blocks
    >>> from rnn_blocks import NeuralCache
    >>> model = LanguageModel(rnn_blocks.LSTM(8, 8), vocab_size=20)
    >>> text = torch.arange(5).repeat(1, 9)
    >>> batch = TextBatch(text[:, :-1], text[:, 1:])
    >>> learnt = evaluate_adaptively(model, [batch], cache=NeuralCache(), dynamic=DynamicEvaluation("sgd", lr=1.0))
    >>> {name: loss.compute()["perplexity"].item() < 20 for name, loss in learnt.items()}
    {'model': True, 'cache': True}
    """
    state: State | None = None
    text: CachedText | None = None
    adapted: AdaptedWeights | None = None
    with ExitStack() as stack:
        if dynamic is not None:
            stack.enter_context(differentiable_evaluation(model))
            adapted = stack.enter_context(dynamic.adapting(model, mean_squares))
            batches = segments(batches, dynamic.steps)
        else:
            stack.enter_context(model.evaluating())
            stack.enter_context(torch.no_grad())
        losses = {name: TokenLoss().to(model.device) for name in ("model", *(["cache"] if cache else []))}
        for number, batch in enumerate(batches, start=1):
            if batch.fresh:
                state = text = None
            inputs, targets = ids_for(model, batch.inputs), ids_for(model, batch.targets)
            hidden, state = model.hidden(inputs, state)  # (time, lanes, features)
            state = detach_state(state)
            num_tokens = (batch.targets != IGNORED).sum()  # where the batch lies, mostly on the host
            if not num_tokens:
                continue
            tokens = num_tokens.to(model.device)
            if cache is not None:
                known = hidden.detach()
                log_probs = target_log_probs(model, known, targets.t())
                mixed, text = cache.mix(known, targets.t(), log_probs, text)
                losses["cache"].update(_mean_loss(mixed, targets.t(), tokens), tokens, batch.num_bytes)
            if adapted is None and cache is not None:
                loss = _mean_loss(log_probs, targets.t(), tokens)
            else:
                loss = model.next_token_loss(hidden.flatten(0, 1), targets.t().flatten())
            losses["model"].update(loss, tokens, batch.num_bytes)
            if adapted is not None:
                assert dynamic is not None
                if number % LOOK_EVERY == 0 and not bool(loss.isfinite()):
                    break
                adapted.descend(loss)
    if dynamic is not None and not bool(losses["model"].nats.isfinite()):
        raise FloatingPointError(
            f"dynamic evaluation diverged: the loss is not finite. Lower its learning rate, which is {dynamic.rate:g}, "
            f"or raise its decay, which is {dynamic.decay:g}"
        )
    if not losses["model"].tokens:
        raise ValueError("there is nothing to evaluate: the batches hold no token with one before it")
    return losses


@torch.no_grad()
def target_log_probs(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """The model's log-probability of each target, ``(time, lanes)``; 0 where there is none.

    Args:
        model: the model.
        hidden: of its :meth:`~rnn_blocks.LanguageModel.hidden`, ``(time, lanes, features)``.
        targets: ids, ``(time, lanes)``; -100 where there is none.
    """
    counted = targets != IGNORED
    wanted = torch.where(counted, targets, 0).flatten()
    rows = max(1, LOGITS // model.embedding.num_embeddings)
    pieces = [
        model.log_probs(h).gather(1, words[:, None]).squeeze(1)
        for h, words in zip(hidden.flatten(0, 1).split(rows), wanted.split(rows), strict=True)
    ]
    return torch.where(counted, torch.cat(pieces).view_as(targets), 0.0)


def _mean_loss(log_probs: Tensor, targets: Tensor, num_tokens: Tensor) -> Tensor:
    return -torch.where(targets != IGNORED, log_probs, 0.0).sum() / num_tokens
