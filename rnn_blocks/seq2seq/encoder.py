"""From ids to what a decoder starts from and looks at."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnn_blocks.checks import number, whole
from rnn_blocks.engine import State, dropout
from rnn_blocks.layers import Layer
from rnn_blocks.layers.bidirectional import reverse_time
from rnn_blocks.layers.layer import check_layer, checked_lengths, without_padding


class Encoded(NamedTuple):
    """What an :class:`Encoder` made of its sources.

    >>> import torch, rnn_blocks
    >>> encoded = rnn_blocks.Encoder(rnn_blocks.GRU(3, 4), 10)(torch.tensor([[5, 6, 2]]))
    >>> encoded.outputs.shape, encoded.lengths.tolist()
    (torch.Size([1, 3, 4]), [3])
    """

    outputs: Tensor
    """``(batch, source, features)``, zero past each length."""

    lengths: Tensor
    """Tokens that count in each source, ``(batch,)``."""

    state: State
    """The layer's last state, of each source at its length."""


class Encoder(nn.Module):
    """An embedding and any layer, over sources of any lengths.

    It exports by ``torch.export`` and to ONNX with the batch and the length left open (but with a dilated layer).

    Args:
        layer: reads the vectors; bidirectional or not, of any depth.
        vocab_size: how many tokens there are.
        dropout: the part zeroed, in training, of the vectors and of the outputs.
        reverse: whether the layer reads each source from its end (Sutskever et al. 2014, section 3.3), which brings the
            first words of source and target close together. Outputs are in the source's order all the same.

    Raises:
        ValueError: for a ``vocab_size`` below 1, or a ``dropout`` outside of [0, 1).

    >>> import torch, rnn_blocks
    >>> encoder = Encoder(rnn_blocks.GRU(3, 4, bidirectional=True), vocab_size=10, dropout=0.2)
    >>> encoded = encoder(torch.tensor([[5, 6, 2], [7, 2, 0]]), torch.tensor([3, 2]))
    >>> encoded.outputs.shape, encoder.output_size
    (torch.Size([2, 3, 8]), 8)
    """

    def __init__(self, layer: Layer, vocab_size: int, *, dropout: float = 0.0, reverse: bool = False) -> None:
        super().__init__()
        check_layer("Encoder", layer)
        whole("vocab_size", vocab_size)
        number("dropout", dropout, high=1)
        self.embedding = nn.Embedding(vocab_size, layer.input_size)
        self.layer = layer
        self.dropout = dropout
        self.reverse = reverse
        self.output_size = layer.output_size

    def forward(self, source: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Encoded:
        """Read the sources.

        Args:
            source: ids ``(batch, source)``; what is past a length may be anything.
            lengths: tokens that count in each source, ``(batch,)``, zeros allowed; by default all.

        Raises:
            ValueError: where a shape does not fit, a length is negative or beyond the source, or (on a CPU) an id is
                not in the vocabulary.
        """
        if source.dim() != 2 or source.is_floating_point():
            raise ValueError(f"source must be ids (batch, source), got {source.dtype} of shape {tuple(source.shape)}")
        if lengths is not None:
            lengths = checked_lengths(lengths, source.shape[1], source.shape[0], source.device)
            source = without_padding(source, lengths)
        steps = source.t()  # (source, batch)
        if self.reverse:
            steps = reverse_time(steps, lengths)
        batch_first = self.layer.batch_first
        vectors = vectors_of(self.embedding, steps.t() if batch_first else steps, "source")
        vectors = dropout(vectors, self.dropout, self.training)
        outputs, state = self.layer(vectors, lengths=lengths)
        steps = outputs.transpose(0, 1) if batch_first else outputs
        if self.reverse:
            steps = reverse_time(steps, lengths)
        outputs = dropout(steps.transpose(0, 1), self.dropout, self.training)
        if lengths is None:
            lengths = torch.full(source.shape[:1], source.shape[1], device=source.device)
        return Encoded(outputs, lengths, state)

    def extra_repr(self) -> str:
        """What is not the default."""
        options = {"dropout": (self.dropout, 0.0), "reverse": (self.reverse, False)}
        return ", ".join(f"{name}={value!r}" for name, (value, default) in options.items() if value != default)


def vectors_of(embedding: nn.Embedding, ids: Tensor, name: str) -> Tensor:
    """The embedding's vectors of ``ids``.

    Raises:
        ValueError: where (on a CPU) an id is not in the vocabulary; ``name`` says of what.

    >>> import torch
    >>> vectors_of(nn.Embedding(10, 4), torch.tensor([[5, 6, 2]]), "source").shape
    torch.Size([1, 3, 4])
    """
    try:
        vectors: Tensor = embedding(ids)
    except IndexError as error:  # by the embedding itself, where ids are on a CPU: to look beforehand costs time
        size = embedding.num_embeddings
        wrong = ids[(ids < 0) | (ids >= size)]
        if not len(wrong):
            raise
        raise ValueError(
            f"{name} has the id {wrong[0].item()}, but the vocabulary has {size} tokens, 0 to {size - 1}"
        ) from error
    return vectors
