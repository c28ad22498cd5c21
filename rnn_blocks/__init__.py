"""Recurrent blocks for PyTorch Lightning: cells, layers and LightningModules.

A cell is one step of time, a layer a sequence in and a sequence out; wrappers map each kind to itself.

>>> import torch, rnn_blocks
>>> layer = rnn_blocks.LSTM(256, 512, num_layers=2)
>>> outputs, state = layer(torch.randn(8, 35, 256))
>>> outputs.shape
torch.Size([8, 35, 512])
"""

from rnn_blocks.cells import (
    Cell,
    CellWrapper,
    Clockwork,
    DeepInput,
    DeepOutput,
    DeepTransition,
    ElmanCell,
    GRUCell,
    Leaky,
    LearnedState,
    LSTMCell,
    RecurrentDropout,
    SkipThroughTime,
    Zoneout,
)
from rnn_blocks.engine import State, detach_state, map_state
from rnn_blocks.layers import GRU, LSTM, Elman, Layer, Recurrent, Stack
from rnn_blocks.modules import LanguageModel, TextBatch, TokenLoss, linear_cross_entropy, sample_token

__all__ = [
    "GRU",
    "LSTM",
    "Cell",
    "CellWrapper",
    "Clockwork",
    "DeepInput",
    "DeepOutput",
    "DeepTransition",
    "Elman",
    "ElmanCell",
    "GRUCell",
    "LSTMCell",
    "LanguageModel",
    "Layer",
    "Leaky",
    "LearnedState",
    "Recurrent",
    "RecurrentDropout",
    "SkipThroughTime",
    "Stack",
    "State",
    "TextBatch",
    "TokenLoss",
    "Zoneout",
    "detach_state",
    "linear_cross_entropy",
    "map_state",
    "sample_token",
]
