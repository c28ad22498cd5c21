"""A model that fills in blanks, and its batches."""

from rnn_blocks.modules.cloze.batch import ClozeBatch
from rnn_blocks.modules.cloze.model import ClozeModel, Filled

__all__ = ["ClozeBatch", "ClozeModel", "Filled"]
