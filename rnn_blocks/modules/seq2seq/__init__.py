"""A model that translates, its batches, and its scores."""

from rnn_blocks.modules.seq2seq.model import Seq2Seq
from rnn_blocks.modules.seq2seq.parallel_batch import ParallelBatch
from rnn_blocks.modules.seq2seq.translation_scores import TranslationScores

__all__ = ["ParallelBatch", "Seq2Seq", "TranslationScores"]
