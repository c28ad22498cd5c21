"""LightningModules built on the layers."""

from rnn_blocks.modules.adaptation import (
    CachedText,
    DynamicEvaluation,
    NeuralCache,
    evaluate_adaptively,
    mean_squared_gradients,
    tune_cache,
    tune_dynamic_evaluation,
)
from rnn_blocks.modules.cloze import ClozeBatch, ClozeModel, Filled
from rnn_blocks.modules.generation import sample_token
from rnn_blocks.modules.language_model import LanguageModel, TextBatch
from rnn_blocks.modules.linear_cross_entropy import linear_cross_entropy, smoothing_term
from rnn_blocks.modules.scheduled_sampling import ScheduledSampling
from rnn_blocks.modules.seq2seq import ParallelBatch, Seq2Seq, TranslationScores
from rnn_blocks.modules.token_loss import TokenLoss

__all__ = [
    "CachedText",
    "ClozeBatch",
    "ClozeModel",
    "DynamicEvaluation",
    "Filled",
    "LanguageModel",
    "NeuralCache",
    "ParallelBatch",
    "ScheduledSampling",
    "Seq2Seq",
    "TextBatch",
    "TokenLoss",
    "TranslationScores",
    "evaluate_adaptively",
    "linear_cross_entropy",
    "mean_squared_gradients",
    "sample_token",
    "smoothing_term",
    "tune_cache",
    "tune_dynamic_evaluation",
]
