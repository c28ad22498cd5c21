"""A text cut anew."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from rnn_blocks.modules.language_model.text_batch import TextBatch

IGNORED = -100


def segments(batches: Iterable[TextBatch], steps: int) -> Iterator[TextBatch]:
    """The same text in chunks of ``steps``, however it was cut; only the last of a text may be shorter.

    Args:
        batches: chunks in order; a text begins where one is ``fresh``.
        steps: of time, at least 1.

    >>> text = torch.arange(6).view(1, 6)
    >>> cut = [TextBatch(text[:, :4], text[:, :4] + 1), TextBatch(text[:, 4:], text[:, 4:] + 1, fresh=False)]
    >>> [(batch.inputs.tolist(), batch.fresh) for batch in segments(cut, 3)]
    [([[0, 1, 2]], True), ([[3, 4, 5]], False)]
    """
    waiting: TextBatch | None = None
    for batch in batches:
        if waiting is not None:
            if batch.fresh:
                yield waiting
            else:
                batch = _joined(waiting, batch)
        waiting = None
        while batch.inputs.shape[1] > steps:
            first, batch = _cut(batch, steps)
            yield first
        waiting = batch
    if waiting is not None:
        yield waiting


def _joined(first: TextBatch, then: TextBatch) -> TextBatch:
    return TextBatch(
        torch.cat([first.inputs, then.inputs], 1),
        torch.cat([first.targets, then.targets], 1),
        first.num_bytes + then.num_bytes,
        first.fresh,
    )


def _cut(batch: TextBatch, steps: int) -> tuple[TextBatch, TextBatch]:
    first, rest = batch.targets[:, :steps], batch.targets[:, steps:]
    tokens = _count(batch.targets)
    num_bytes = batch.num_bytes * _count(first) / tokens if tokens else 0.0
    return (
        TextBatch(batch.inputs[:, :steps], first, num_bytes, batch.fresh),
        TextBatch(batch.inputs[:, steps:], rest, batch.num_bytes - num_bytes, False),
    )


def _count(targets: Tensor) -> int:
    return int((targets != IGNORED).sum())
