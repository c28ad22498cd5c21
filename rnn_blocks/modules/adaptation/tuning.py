"""The numbers of cache and dynamic evaluation, chosen on validation text."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rnn_blocks.modules.adaptation.dynamic_evaluation import DynamicEvaluation
from rnn_blocks.modules.adaptation.evaluate import evaluate_adaptively
from rnn_blocks.modules.adaptation.neural_cache import CachedText, NeuralCache, mixture
from rnn_blocks.modules.adaptation.segments import IGNORED
from rnn_blocks.modules.language_model.model import LanguageModel
from rnn_blocks.modules.language_model.text_batch import TextBatch

THETAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
WEIGHTS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4)
MOST_MOVES = 6  # of a rate: times 2, or through 2


def tune_cache(
    model: LanguageModel,
    batches: Iterable[TextBatch],
    *,
    cache: NeuralCache | None = None,
    thetas: Sequence[float] = THETAS,
    weights: Sequence[float] = WEIGHTS,
    dynamic: DynamicEvaluation | None = None,
    mean_squares: dict[str, Tensor] | None = None,
) -> NeuralCache:
    """The cache whose ``theta`` and ``weight`` give the lowest loss on a text: all pairs are tried, in one pass.

    Args:
        model: a trained model.
        batches: chunks of validation text, as for :func:`evaluate_adaptively`.
        cache: has the window; by default :class:`NeuralCache`'s own.
        thetas: to choose from.
        weights: to choose from.
        dynamic: dynamic evaluation that the cache will go with.
        mean_squares: of the gradients, for its method ``"rms"``.

    Raises:
        ValueError: where there is no text.

    >>> import rnn_blocks
    >>> model = LanguageModel(rnn_blocks.LSTM(8, 8), vocab_size=20)
    >>> text = torch.arange(5).repeat(1, 9)
    >>> tune_cache(model, [TextBatch(text[:, :-1], text[:, 1:])], weights=[0.1, 0.9]).weight
    0.9
    """
    cache = cache or NeuralCache()
    grid = _Grid([[replace(cache, theta=theta, weight=weight) for weight in weights] for theta in thetas])
    evaluate_adaptively(model, batches, cache=grid, dynamic=dynamic, mean_squares=mean_squares)
    return grid.best()


class _Grid:
    """Caches of one window that read a text together; a row has one θ and is looked up once."""

    def __init__(self, rows: list[list[NeuralCache]]) -> None:
        self._rows = rows
        self._log_probs: list[Tensor] = []  # of each batch's words together, (rows, columns)

    def mix(
        self, hidden: Tensor, targets: Tensor, log_probs: Tensor, text: CachedText | None = None
    ) -> tuple[Tensor, CachedText]:
        counted = targets != IGNORED
        sums = []
        for row in self._rows:
            cached, after = row[0].look_up(hidden, targets, log_probs, text)
            mixed = [mixture(log_probs, cached, cache.weight)[counted].sum(dtype=torch.float64) for cache in row]
            sums.append(torch.stack(mixed))
        self._log_probs.append(torch.stack(sums))
        return log_probs, after

    def best(self) -> NeuralCache:
        place = int(torch.stack(self._log_probs).sum(0).argmax())
        return [cache for row in self._rows for cache in row][place]


def tune_dynamic_evaluation(
    model: LanguageModel,
    batches: Callable[[], Iterable[TextBatch]],
    dynamic: DynamicEvaluation,
    *,
    mean_squares: dict[str, Tensor] | None = None,
    tune_lr: bool = True,
    tune_decay: bool = True,
) -> DynamicEvaluation:
    """Dynamic evaluation with the learning rate, then the decay, doubled or halved as long as that lowers the loss.

    From 0 they go to the method's default first.

    Args:
        model: a trained model.
        batches: makes chunks of validation text, as for :func:`evaluate_adaptively`, anew for each pass over it.
        dynamic: where to start.
        mean_squares: of the gradients, for the method ``"rms"``.
        tune_lr: whether the learning rate is chosen.
        tune_decay: whether the decay is.

    Raises:
        ValueError: where there is no text.

    >>> import rnn_blocks
    >>> model = LanguageModel(rnn_blocks.LSTM(8, 8), vocab_size=20)
    >>> text = torch.arange(5).repeat(1, 9)
    >>> tune_dynamic_evaluation(model, lambda: [TextBatch(text[:, :-1], text[:, 1:])], DynamicEvaluation("sgd")).rate
    6.4
    """

    def loss(candidate: DynamicEvaluation) -> float:
        try:
            losses = evaluate_adaptively(model, batches(), dynamic=candidate, mean_squares=mean_squares)
        except FloatingPointError:
            return math.inf
        return losses["model"].compute()["loss"].item()

    known: dict[DynamicEvaluation, float] = {}

    def better(candidate: DynamicEvaluation, than: DynamicEvaluation) -> bool:
        for one in (candidate, than):
            if one not in known:
                known[one] = loss(one)
        return known[candidate] < known[than]

    default = DynamicEvaluation(dynamic.method)
    moves: list[Callable[[DynamicEvaluation, float], DynamicEvaluation]] = []
    if tune_lr:
        moves.append(lambda now, factor: replace(now, lr=now.rate * factor or default.rate))
    if tune_decay:
        moves.append(lambda now, factor: replace(now, decay=min(1.0, now.decay * factor or default.decay)))
    for move in moves:
        start = dynamic
        for factor in (2.0, 0.5):
            for _ in range(MOST_MOVES):
                candidate = move(dynamic, factor)
                if not better(candidate, dynamic):
                    break
                dynamic = candidate
            if dynamic != start:
                break
    return dynamic
