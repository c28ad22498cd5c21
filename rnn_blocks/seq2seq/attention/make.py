"""An attention by its name."""

from typing import Literal, TypeAlias

from rnn_blocks.seq2seq.attention.additive import AdditiveAttention
from rnn_blocks.seq2seq.attention.attention import Attention
from rnn_blocks.seq2seq.attention.concat import ConcatAttention
from rnn_blocks.seq2seq.attention.dot import DotAttention
from rnn_blocks.seq2seq.attention.general import GeneralAttention
from rnn_blocks.seq2seq.attention.multi_head import MultiHeadAttention

AttentionName: TypeAlias = Literal["dot", "general", "concat", "additive", "multi-head"]
ATTENTIONS: dict[AttentionName, type[Attention]] = {
    "dot": DotAttention,
    "general": GeneralAttention,
    "concat": ConcatAttention,
    "additive": AdditiveAttention,
    "multi-head": MultiHeadAttention,
}


def make_attention(name: AttentionName, query_size: int, memory_size: int, *, coverage: bool = False) -> Attention:
    """An attention by its name, with its other options as they are by default.

    Args:
        name: ``"dot"``, ``"general"``, ``"concat"``, ``"additive"`` or ``"multi-head"``.
        query_size: features of a query.
        memory_size: features of what is attended to.
        coverage: see :class:`~rnn_blocks.Attention`.

    Raises:
        ValueError: for another name, or sizes that the attention does not take.

    >>> make_attention("general", 3, 4)
    GeneralAttention(
      3, 4
      (key_layer): Linear(in_features=4, out_features=3, bias=False)
    )
    """
    if name not in ATTENTIONS:
        raise ValueError(f"attention must be one of {', '.join(map(repr, ATTENTIONS))}, got {name!r}")
    return ATTENTIONS[name](query_size, memory_size, coverage=coverage)
