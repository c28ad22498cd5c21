"""One step of time each, one idea a file."""

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.elman import ElmanCell
from rnn_blocks.cells.gru import GRUCell
from rnn_blocks.cells.lstm import LSTMCell

__all__ = ["Cell", "ElmanCell", "GRUCell", "LSTMCell"]
