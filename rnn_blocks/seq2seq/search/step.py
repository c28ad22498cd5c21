"""What a search asks of a model, and what it gives back."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from rnn_blocks.engine import State


class Step(NamedTuple):
    """What a model says of the next token of every hypothesis.

    Attributes:
        logits: ``(batch, beam, vocab)``; minus infinity rules a token out.
        state: after the step, every tensor ``(batch, beam, …)``.
        attention: this step's weights, ``(batch, beam, source)``, or ``None`` where there are none.

    >>> import torch
    >>> Step(torch.zeros(2, 5, 100), torch.zeros(2, 5, 16), None).logits.shape
    torch.Size([2, 5, 100])
    """

    logits: Tensor
    state: State
    attention: Tensor | None


StepFunction: TypeAlias = Callable[[Tensor, State, State], Step]
"""``step(tokens (batch, beam), state, memory)``: reads the last token of every hypothesis.

``state`` holds tensors ``(batch, beam, …)``; ``memory`` holds tensors ``(batch, …)``, what all hypotheses of a sentence
share: it is never copied for them. Both batch and beam shrink while a search goes on. The logits are only read.
"""


class Hypothesis(NamedTuple):
    """One output of a search.

    Attributes:
        tokens: ids, without ``<bos>`` and ``<eos>``.
        score: what it was ranked by, penalties included.
        log_prob: log P(tokens | source) in nats, that of ``<eos>`` included where it is finished.
        finished: whether it ended in ``<eos>``; else the search came to its longest length.
        attention: ``(target, source)`` on the CPU, a row for ``<eos>`` too where it is finished; ``None`` where it was
            not asked for.

    >>> Hypothesis([4, 5], -0.5, -0.6, True, None).tokens
    [4, 5]
    """

    tokens: list[int]
    score: float
    log_prob: float
    finished: bool
    attention: Tensor | None
