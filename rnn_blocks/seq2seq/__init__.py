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
from rnn_blocks.seq2seq.decoder import Decoder
from rnn_blocks.seq2seq.decoder_cell import DecoderCell
from rnn_blocks.seq2seq.encoder import Encoded, Encoder
from rnn_blocks.seq2seq.search import (
    Hypothesis,
    Step,
    StepFunction,
    beam_search,
    greedy_search,
    sample_search,
    sample_token,
)

__all__ = [
    "AdditiveAttention",
    "Attention",
    "Bridge",
    "ConcatAttention",
    "Decoder",
    "DecoderCell",
    "DotAttention",
    "Encoded",
    "Encoder",
    "GeneralAttention",
    "Hypothesis",
    "LastStateBridge",
    "MeanBridge",
    "Memory",
    "MultiHeadAttention",
    "ProjectedBridge",
    "Step",
    "StepFunction",
    "beam_search",
    "greedy_search",
    "make_attention",
    "make_bridge",
    "sample_search",
    "sample_token",
]
