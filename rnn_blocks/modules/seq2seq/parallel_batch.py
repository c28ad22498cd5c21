"""A batch of sentence pairs."""

from typing import NamedTuple

from torch import Tensor


class ParallelBatch(NamedTuple):
    """Source sentences and their translations, padded at the end.

    Attributes:
        source: ids, ``(batch, source)``; what stands past a length is never read.
        source_lengths: ``(batch,)``, at least 1 each.
        target_inputs: ids that the decoder is fed, ``<bos> y1 … yn``, ``(batch, target)``.
        target_outputs: ids that it should predict, ``y1 … yn <eos>``, ``(batch, target)``; ``-100`` past the end.
        references: the translations as text, to score against; ``None`` where nobody scores.
        indices: ``(batch,)``, the place of each pair in its split, from 0; ``None`` where nobody asks.

    >>> import torch
    >>> batch = ParallelBatch(
    ...     source=torch.tensor([[5, 6, 2]]),
    ...     source_lengths=torch.tensor([3]),
    ...     target_inputs=torch.tensor([[1, 8, 9]]),
    ...     target_outputs=torch.tensor([[8, 9, 2]]),
    ...     references=["zwei Wörter"],
    ... )
    >>> batch.source.shape
    torch.Size([1, 3])
    """

    source: Tensor
    source_lengths: Tensor
    target_inputs: Tensor
    target_outputs: Tensor
    references: list[str] | None = None
    indices: Tensor | None = None
