"""What users stack: a sequence in and a sequence out."""

from rnn_blocks.layers.activation_penalty import activation_regularisation, temporal_activation_regularisation
from rnn_blocks.layers.bidirectional import Bidirectional
from rnn_blocks.layers.dilated import Dilated, DilatedRecurrent
from rnn_blocks.layers.embedding_dropout import EmbeddingDropout, embedding_dropout
from rnn_blocks.layers.layer import Layer
from rnn_blocks.layers.ready_made import GRU, LSTM, Elman
from rnn_blocks.layers.ready_made_gated import RHN, SLSTM, IndRNN, LayerNormGRU, LayerNormLSTM, PeepholeLSTM
from rnn_blocks.layers.ready_made_linear import LRU, RGLRU, SRU, LeakyIntegrator, MinGRU, MinLSTM
from rnn_blocks.layers.recurrent import Recurrent
from rnn_blocks.layers.recurrent_stack import RecurrentStack
from rnn_blocks.layers.stack import Stack
from rnn_blocks.layers.torch_layout import TorchLayout
from rnn_blocks.layers.vanishing_gradient_penalty import vanishing_gradient_penalty
from rnn_blocks.layers.variational_dropout import VariationalDropout
from rnn_blocks.layers.weight_drop import WeightDrop

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "RGLRU",
    "RHN",
    "SLSTM",
    "SRU",
    "Bidirectional",
    "Dilated",
    "DilatedRecurrent",
    "Elman",
    "EmbeddingDropout",
    "IndRNN",
    "Layer",
    "LayerNormGRU",
    "LayerNormLSTM",
    "LeakyIntegrator",
    "MinGRU",
    "MinLSTM",
    "PeepholeLSTM",
    "Recurrent",
    "RecurrentStack",
    "Stack",
    "TorchLayout",
    "VariationalDropout",
    "WeightDrop",
    "activation_regularisation",
    "embedding_dropout",
    "temporal_activation_regularisation",
    "vanishing_gradient_penalty",
]
