"""Callbacks for any Lightning project and any training loop: gradient norms, a threshold that nobody sets, averages.

Each subject has a room: ``clipping`` (the threshold and its policies, non-finite gradients, the bound on updates,
advice), ``norm_monitor`` (by module, gate and parameter; histograms, updates), ``gradient_flow`` (how far back in time
gradients reach) and ``averaging``. They stand on ``measuring`` (a step's gradients and weights, with torch alone), on
``figures``, and on ``trainer``, the one place that knows Lightning.

`GradientClipper` and the policies need torch alone: Lightning is imported with the first of the callbacks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rnn_blocks.callbacks.clipping.clipper import GradientClipper
from rnn_blocks.callbacks.clipping.nonfinite import NonFiniteGradientError
from rnn_blocks.callbacks.clipping.policies import (
    Auto,
    Clip,
    ClippingPolicy,
    EmaRatio,
    Fixed,
    LogNormal,
    Percentile,
    SkipOutliers,
    Step,
    Unitwise,
    ZScore,
)

if TYPE_CHECKING:
    from rnn_blocks.callbacks.advisor.advice import ClippingAdvice
    from rnn_blocks.callbacks.advisor.callback import ClippingAdvisor
    from rnn_blocks.callbacks.averaging import NonMonotonicAveraging
    from rnn_blocks.callbacks.clipping.callback import AdaptiveGradientClipping
    from rnn_blocks.callbacks.gradient_flow.callback import GradientFlowMonitor
    from rnn_blocks.callbacks.norm_monitor.callback import GradientNormMonitor

# What is imported when it is asked for, and where it is.
_LATER = {
    "AdaptiveGradientClipping": "clipping.callback",
    "ClippingAdvice": "advisor.advice",
    "ClippingAdvisor": "advisor.callback",
    "GradientFlowMonitor": "gradient_flow.callback",
    "GradientNormMonitor": "norm_monitor.callback",
    "NonMonotonicAveraging": "averaging",
}

__all__ = [
    "AdaptiveGradientClipping",
    "Auto",
    "Clip",
    "ClippingAdvice",
    "ClippingAdvisor",
    "ClippingPolicy",
    "EmaRatio",
    "Fixed",
    "GradientClipper",
    "GradientFlowMonitor",
    "GradientNormMonitor",
    "LogNormal",
    "NonFiniteGradientError",
    "NonMonotonicAveraging",
    "Percentile",
    "SkipOutliers",
    "Step",
    "Unitwise",
    "ZScore",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *_LATER]
