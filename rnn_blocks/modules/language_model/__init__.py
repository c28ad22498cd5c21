"""A model of text, its batches, and text that it writes."""

from rnn_blocks.modules.language_model.model import LanguageModel
from rnn_blocks.modules.language_model.text_batch import TextBatch

__all__ = ["LanguageModel", "TextBatch"]
