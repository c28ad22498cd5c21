"""Attention: where to look in a sequence, one way of scoring a file."""

from rnn_blocks.seq2seq.attention.additive import AdditiveAttention
from rnn_blocks.seq2seq.attention.attention import Attention, Memory
from rnn_blocks.seq2seq.attention.concat import ConcatAttention
from rnn_blocks.seq2seq.attention.dot import DotAttention
from rnn_blocks.seq2seq.attention.general import GeneralAttention
from rnn_blocks.seq2seq.attention.make import make_attention
from rnn_blocks.seq2seq.attention.multi_head import MultiHeadAttention

__all__ = [
    "AdditiveAttention",
    "Attention",
    "ConcatAttention",
    "DotAttention",
    "GeneralAttention",
    "Memory",
    "MultiHeadAttention",
    "make_attention",
]
