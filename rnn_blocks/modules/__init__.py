"""LightningModules built on the layers."""

from rnn_blocks.modules.generation import sample_token
from rnn_blocks.modules.language_model import LanguageModel
from rnn_blocks.modules.linear_cross_entropy import linear_cross_entropy
from rnn_blocks.modules.text_batch import TextBatch
from rnn_blocks.modules.token_loss import TokenLoss

__all__ = ["LanguageModel", "TextBatch", "TokenLoss", "linear_cross_entropy", "sample_token"]
