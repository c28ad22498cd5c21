"""One step of time each, one idea a file."""

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.clockwork import Clockwork
from rnn_blocks.cells.deep_transition import DeepInput, DeepOutput, DeepTransition
from rnn_blocks.cells.elman import ElmanCell
from rnn_blocks.cells.gru import GRUCell
from rnn_blocks.cells.indrnn import IndRNNCell
from rnn_blocks.cells.initialisation import (
    init_chrono,
    init_identity,
    init_orthogonal,
    init_uniform,
    init_unit_forget_bias,
    initialise,
)
from rnn_blocks.cells.layer_norm_gru import LayerNormGRUCell
from rnn_blocks.cells.layer_norm_lstm import LayerNormLSTMCell
from rnn_blocks.cells.leaky import Leaky
from rnn_blocks.cells.leaky_integrator import LeakyIntegratorCell
from rnn_blocks.cells.learned_state import LearnedState
from rnn_blocks.cells.linear_cell import LinearCell
from rnn_blocks.cells.lru import LRUCell
from rnn_blocks.cells.lstm import LSTMCell
from rnn_blocks.cells.min_gru import MinGRUCell
from rnn_blocks.cells.min_lstm import MinLSTMCell
from rnn_blocks.cells.mogrifier import Mogrifier
from rnn_blocks.cells.peephole_lstm import PeepholeLSTMCell
from rnn_blocks.cells.recurrent_dropout import RecurrentDropout
from rnn_blocks.cells.rglru import RGLRUCell
from rnn_blocks.cells.rhn import RHNCell
from rnn_blocks.cells.skip_through_time import SkipThroughTime
from rnn_blocks.cells.slstm import SLSTMCell
from rnn_blocks.cells.sru import SRUCell
from rnn_blocks.cells.wrapper import CellWrapper
from rnn_blocks.cells.zoneout import Zoneout

__all__ = [
    "Cell",
    "CellWrapper",
    "Clockwork",
    "DeepInput",
    "DeepOutput",
    "DeepTransition",
    "ElmanCell",
    "GRUCell",
    "IndRNNCell",
    "LRUCell",
    "LSTMCell",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "Leaky",
    "LeakyIntegratorCell",
    "LearnedState",
    "LinearCell",
    "MinGRUCell",
    "MinLSTMCell",
    "Mogrifier",
    "PeepholeLSTMCell",
    "RGLRUCell",
    "RHNCell",
    "RecurrentDropout",
    "SLSTMCell",
    "SRUCell",
    "SkipThroughTime",
    "Zoneout",
    "init_chrono",
    "init_identity",
    "init_orthogonal",
    "init_uniform",
    "init_unit_forget_bias",
    "initialise",
]
