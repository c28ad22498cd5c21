"""Callbacks for any Lightning project: gradient norms, a clipping threshold that nobody sets, averaged weights."""

from rnn_blocks.callbacks.advisor import ClippingAdvisor
from rnn_blocks.callbacks.averaging import NonMonotonicAveraging
from rnn_blocks.callbacks.clipping import AdaptiveGradientClipping
from rnn_blocks.callbacks.clipping_advice import ClippingAdvice
from rnn_blocks.callbacks.gradient_flow import GradientFlowMonitor
from rnn_blocks.callbacks.monitor import GradientNormMonitor
from rnn_blocks.callbacks.nonfinite import NonFiniteGradientError
from rnn_blocks.callbacks.policies import (
    Auto,
    Clip,
    ClippingPolicy,
    EmaRatio,
    Fixed,
    Percentile,
    Step,
    Unitwise,
    ZScore,
)

__all__ = [
    "AdaptiveGradientClipping",
    "Auto",
    "Clip",
    "ClippingAdvice",
    "ClippingAdvisor",
    "ClippingPolicy",
    "EmaRatio",
    "Fixed",
    "GradientFlowMonitor",
    "GradientNormMonitor",
    "NonFiniteGradientError",
    "NonMonotonicAveraging",
    "Percentile",
    "Step",
    "Unitwise",
    "ZScore",
]
