"""The neural cache: words that came a moment ago come again."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rnn_blocks.checks import number, whole

IGNORED = -100
STEPS = 256  # at a time: bounds the scores held at once to lanes x STEPS x (STEPS + window)


class CachedText(NamedTuple):
    """What a cache remembers of each lane, oldest first; at most ``window`` steps.

    Attributes:
        hidden: what the output layer read at those steps, ``(lanes, steps, features)``.
        words: the token that came after each, ``(lanes, steps)``; -100 where there was none.

    >>> words = torch.tensor([[0], [1], [2], [3], [0]])  # (time, lanes)
    >>> _, text = NeuralCache(window=3).mix(torch.randn(5, 1, 2), words, torch.full((5, 1), math.log(0.25)))
    >>> text.words.tolist(), text.hidden.shape
    ([[2, 3, 0]], torch.Size([1, 3, 2]))
    """

    hidden: Tensor
    words: Tensor


@dataclass(frozen=True)
class NeuralCache:
    r"""A language model's prediction mixed with the words that followed where the model was in a similar state.

    Grave, Joulin & Usunier (2017), "Improving neural language models with a continuous cache", eq. 2 to 4: with ``h_t``
    what the output layer reads, and ``x_{i+1}`` the word that came after step ``i``::

        p_cache(w | h_1..t, x_1..t) ∝ Σ_i 1[w = x_{i+1}] exp(θ h_t · h_i)    over the last `window` steps i < t
        p(w) = (1 - λ) p_vocab(w) + λ p_cache(w)

    Nothing is trained; it costs one product of each step's ``h`` with those of the window. At the first step of a text
    the cache is empty, and ``p`` the model's own.

    The best values depend on the model (θ scales with its hidden states) and are chosen on validation text. The
    defaults, and ``window=3785, theta=0.662, weight=0.1279`` for WikiText-2, are those that Merity et al. (2018)
    published with the AWD-LSTM.

    Args:
        window: steps that are remembered.
        theta: θ, how much more a similar state counts than others; with 0 all of the window count alike.
        weight: λ, the cache's share of the mixture.

    Raises:
        ValueError: for a number out of its range.

    >>> cache = NeuralCache(window=100, theta=1.0, weight=0.1)
    >>> hidden, words = torch.zeros(3, 1, 4), torch.tensor([[7], [7], [7]])  # (time, lanes, ...)
    >>> log_probs, text = cache.mix(hidden, words, torch.full((3, 1), math.log(0.2)))
    >>> [round(p, 2) for p in log_probs.exp().flatten().tolist()]
    [0.2, 0.28, 0.28]
    """

    window: int = 500
    theta: float = 1.0
    weight: float = 0.1

    def __post_init__(self) -> None:
        whole("window", self.window, 1, " step")
        number("theta", self.theta)
        number("weight", self.weight, high=1)

    def mix(
        self, hidden: Tensor, targets: Tensor, log_probs: Tensor, text: CachedText | None = None
    ) -> tuple[Tensor, CachedText]:
        """Log-probabilities of the words that came, by model and cache together.

        Args:
            hidden: what the output layer reads, ``(time, lanes, features)``.
            targets: the token after each step, ``(time, lanes)``; -100 where there is none.
            log_probs: the model's log-probability of each target, ``(time, lanes)``.
            text: what came before, from the call on the chunk before; ``None`` at a text's start.

        Returns:
            ``log p`` of each target, ``(time, lanes)``, and the text to hand to the next call.
        """
        cached, text = self.look_up(hidden, targets, log_probs, text)
        return mixture(log_probs, cached, self.weight), text

    def look_up(
        self, hidden: Tensor, targets: Tensor, log_probs: Tensor, text: CachedText | None = None
    ) -> tuple[Tensor, CachedText]:
        """``log p_cache`` of the words that came: ``-inf`` for one that is not in the cache.

        Arguments and text are those of :meth:`mix`. Where the cache is empty it says what the model says.
        """
        pieces = []
        for h, words, otherwise in zip(hidden.split(STEPS), targets.split(STEPS), log_probs.split(STEPS), strict=True):
            h, words = h.transpose(0, 1), words.t()  # (lanes, time, features), (lanes, time)
            if h.dtype in (torch.float16, torch.bfloat16):
                h = h.float()  # θ h·h of a wide model is large, and goes into an exponential
            if text is None:
                text = CachedText(h[:, :0], words[:, :0])
            text = CachedText(torch.cat([text.hidden, h], 1), torch.cat([text.words, words], 1))
            pieces.append(self._log_share(h, words, text, otherwise.t()))
            text = CachedText(text.hidden[:, -self.window :], text.words[:, -self.window :])
        assert text is not None
        return torch.cat(pieces, 1).t(), text

    def _log_share(self, hidden: Tensor, targets: Tensor, text: CachedText, otherwise: Tensor) -> Tensor:
        time, remembered = targets.shape[1], text.words.shape[1]
        scores = self.theta * hidden @ text.hidden.mT  # (lanes, time, remembered)
        now = torch.arange(remembered - time, remembered, device=targets.device)[:, None]
        age = now - torch.arange(remembered, device=targets.device)  # (time, remembered); 0 is the step itself
        words = text.words[:, None, :]
        in_cache = (age > 0) & (age <= self.window) & (words != IGNORED)  # (lanes, time, remembered)
        scores = scores.masked_fill(~in_cache, -torch.inf)
        same_word = scores.masked_fill(words != targets[:, :, None], -torch.inf)
        log_share = same_word.logsumexp(2) - scores.logsumexp(2)  # (lanes, time)
        return torch.where(in_cache.any(2), log_share, otherwise)


def mixture(log_probs: Tensor, cached: Tensor, weight: float) -> Tensor:
    """``log((1 - λ) p_vocab + λ p_cache)``; just ``log_probs`` with a weight of 0.

    >>> mixture(torch.tensor(0.5).log(), torch.tensor(0.1).log(), 0.5).exp()
    tensor(0.3000)
    """
    if weight == 0:
        return log_probs
    return torch.logaddexp(log_probs + math.log1p(-weight), cached + math.log(weight))
