"""Callbacks for any Lightning project: gradient norms, and a clipping threshold that nobody has to set."""

from rnn_blocks.callbacks.clipping import AdaptiveGradientClipping, NonFiniteGradientError
from rnn_blocks.callbacks.monitor import GradientNormMonitor
from rnn_blocks.callbacks.policies import Auto, Clip, ClippingPolicy, Fixed, Step

__all__ = [
    "AdaptiveGradientClipping",
    "Auto",
    "Clip",
    "ClippingPolicy",
    "Fixed",
    "GradientNormMonitor",
    "NonFiniteGradientError",
    "Step",
]
