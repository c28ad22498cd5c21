"""Encoder–decoder: what reads a sequence, and what writes another."""

from rnn_blocks.seq2seq.attention import (
    AdditiveAttention,
    Attention,
    ConcatAttention,
    DotAttention,
    GeneralAttention,
    Memory,
    MultiHeadAttention,
    make_attention,
)
from rnn_blocks.seq2seq.bridge import Bridge, LastStateBridge, MeanBridge, ProjectedBridge, make_bridge
from rnn_blocks.seq2seq.encoder import Encoded, Encoder

__all__ = [
    "AdditiveAttention",
    "Attention",
    "Bridge",
    "ConcatAttention",
    "DotAttention",
    "Encoded",
    "Encoder",
    "GeneralAttention",
    "LastStateBridge",
    "MeanBridge",
    "Memory",
    "MultiHeadAttention",
    "ProjectedBridge",
    "make_attention",
    "make_bridge",
]
