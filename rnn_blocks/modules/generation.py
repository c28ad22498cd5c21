"""Drawing token after token."""

from collections.abc import Callable, Iterator

from torch import Tensor

from rnn_blocks.engine import State
from rnn_blocks.seq2seq.search.sampling import check_sampling, random_generator, sample_token

__all__ = ["Step", "check_sampling", "random_generator", "sample_token", "stream_tokens"]

Step = Callable[[Tensor, State], tuple[Tensor, State]]


def stream_tokens(step: Step, logits: Tensor, state: State, draw: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Draw a token, step the state with it, and so on without end.

    Args:
        step: ``(ids (batch,), state) -> (logits (batch, vocabulary), state)``.
        logits: for the first token, ``(batch, vocabulary)``.
        state: after the prompt.
        draw: logits to ids, ``(batch,)``.

    >>> import torch
    >>> after = lambda ids, state: (torch.eye(3)[(ids + 1) % 3], state)
    >>> stream = stream_tokens(after, torch.eye(3)[:1], torch.zeros(1), lambda logits: logits.argmax(-1))
    >>> [next(stream).item() for _ in range(4)]
    [0, 1, 2, 0]
    """
    while True:
        token = draw(logits)
        yield token
        logits, state = step(token, state)
