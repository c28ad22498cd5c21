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
from rnn_blocks.modules.cloze import ClozeModel, Filled
from rnn_blocks.modules.cloze_batch import ClozeBatch
from rnn_blocks.modules.generation import sample_token
from rnn_blocks.modules.language_model import LanguageModel
from rnn_blocks.modules.linear_cross_entropy import linear_cross_entropy, smoothing_term
from rnn_blocks.modules.parallel_batch import ParallelBatch
from rnn_blocks.modules.scheduled_sampling import ScheduledSampling
from rnn_blocks.modules.seq2seq import Seq2Seq
from rnn_blocks.modules.text_batch import TextBatch
from rnn_blocks.modules.token_loss import TokenLoss
from rnn_blocks.modules.translation_scores import TranslationScores

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
