"""Callbacks for any Lightning project: gradient norms, a clipping threshold that nobody sets, averaged weights.

Each subject has a room: ``clipping`` (the threshold and its policies, non-finite gradients, the bound on updates,
advice), ``norm_monitor`` (by module, gate and parameter; histograms, updates), ``gradient_flow`` (how far back in time
gradients reach) and ``averaging``. They stand on ``measuring`` (a step's gradients and weights, with torch alone), on
``figures``, and on ``trainer``, the one place that knows Lightning.
"""

from rnn_blocks.callbacks.averaging import NonMonotonicAveraging
from rnn_blocks.callbacks.clipping.advice import ClippingAdvice
from rnn_blocks.callbacks.clipping.advisor import ClippingAdvisor
from rnn_blocks.callbacks.clipping.callback import AdaptiveGradientClipping
from rnn_blocks.callbacks.clipping.nonfinite import NonFiniteGradientError
from rnn_blocks.callbacks.clipping.policies import (
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
from rnn_blocks.callbacks.gradient_flow.callback import GradientFlowMonitor
from rnn_blocks.callbacks.norm_monitor.callback import GradientNormMonitor

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
