"""Dropout of whole words."""

import torch
from torch import Tensor, nn

from rnn_blocks.checks import number


class EmbeddingDropout(nn.Module):
    """An embedding that forgets whole words of its vocabulary, other ones at each call in training.

    Gal & Ghahramani (2016), section 4.2; Merity et al. (2018), section 4.3. See :func:`embedding_dropout`. The
    embedding is kept as it is, as ``embedding``: an output layer tied to its weight loses nothing.

    Args:
        embedding: the words' vectors.
        p: the part of the vocabulary that is dropped.

    Raises:
        ValueError: for a ``p`` outside of [0, 1).

    >>> words = EmbeddingDropout(torch.nn.Embedding(10, 3), p=0.1)
    >>> words(torch.tensor([[1, 2, 1], [4, 4, 9]])).shape
    torch.Size([2, 3, 3])
    """

    def __init__(self, embedding: nn.Embedding, p: float) -> None:
        super().__init__()
        number("p", p, high=1)
        self.embedding = embedding
        self.p = p

    def forward(self, ids: Tensor) -> Tensor:
        """Ids ``(…)`` to vectors ``(…, embedding_dim)``."""
        return embedding_dropout(self.embedding, ids, self.p, self.training)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


def embedding_dropout(embedding: nn.Embedding, ids: Tensor, p: float, training: bool) -> Tensor:
    """The vectors of ``ids``, in training without some words of the vocabulary: each is zero with probability ``p``.

    A word is there or not wherever it stands in ``ids``; what is left is divided by ``1 - p``. One number is drawn for
    each word of the vocabulary, and only the vectors of ``ids`` are touched, so that gradients stay sparse where the
    embedding's are.

    Args:
        embedding: the words' vectors, ``(vocabulary, embedding_dim)``.
        ids: integers ``(…)``.
        p: the part of the vocabulary that is dropped.
        training: whether anything is.

    Returns:
        ``(…, embedding_dim)``.

    Raises:
        ValueError: for a ``p`` outside of [0, 1).

    >>> embedding = torch.nn.Embedding.from_pretrained(torch.ones(10, 2))
    >>> first, second = embedding_dropout(embedding, torch.tensor([7, 7]), 0.5, training=True)
    >>> torch.equal(first, second), first.tolist() in ([0.0, 0.0], [2.0, 2.0])
    (True, True)
    """
    number("p", p, high=1)
    vectors: Tensor = embedding(ids)
    if not training or not p:
        return vectors
    kept = torch.rand(embedding.num_embeddings, device=ids.device) >= p  # (vocabulary,)
    return torch.where(kept[ids].unsqueeze(-1), vectors / (1 - p), 0.0)
