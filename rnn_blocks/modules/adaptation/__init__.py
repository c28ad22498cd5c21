"""Language models that adapt to the text they are tested on."""

from rnn_blocks.modules.adaptation.dynamic_evaluation import DynamicEvaluation, mean_squared_gradients
from rnn_blocks.modules.adaptation.evaluate import evaluate_adaptively
from rnn_blocks.modules.adaptation.neural_cache import CachedText, NeuralCache
from rnn_blocks.modules.adaptation.tuning import tune_cache, tune_dynamic_evaluation

__all__ = [
    "CachedText",
    "DynamicEvaluation",
    "NeuralCache",
    "evaluate_adaptively",
    "mean_squared_gradients",
    "tune_cache",
    "tune_dynamic_evaluation",
]
