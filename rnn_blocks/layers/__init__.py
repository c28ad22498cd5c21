"""What users stack: a sequence in and a sequence out."""

from rnn_blocks.layers.bidirectional import Bidirectional
from rnn_blocks.layers.layer import Layer
from rnn_blocks.layers.ready_made import GRU, LSTM, Elman
from rnn_blocks.layers.recurrent import Recurrent
from rnn_blocks.layers.stack import Stack

__all__ = ["GRU", "LSTM", "Bidirectional", "Elman", "Layer", "Recurrent", "Stack"]
