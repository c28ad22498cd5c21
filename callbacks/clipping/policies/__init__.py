"""Where to clip: rules that turn the norms seen so far into a threshold, as pure functions of their history."""

from rnn_blocks.callbacks.clipping.policies.auto import Auto
from rnn_blocks.callbacks.clipping.policies.ema_ratio import EmaRatio
from rnn_blocks.callbacks.clipping.policies.fixed import Fixed
from rnn_blocks.callbacks.clipping.policies.log_normal import LogNormal
from rnn_blocks.callbacks.clipping.policies.percentile import Percentile
from rnn_blocks.callbacks.clipping.policies.policy import SCOPES, Clip, ClippingPolicy, History, Scope, Step
from rnn_blocks.callbacks.clipping.policies.skip_outliers import SkipOutliers
from rnn_blocks.callbacks.clipping.policies.unitwise import Unitwise
from rnn_blocks.callbacks.clipping.policies.zscore import ZScore

__all__ = [
    "SCOPES",
    "Auto",
    "Clip",
    "ClippingPolicy",
    "EmaRatio",
    "Fixed",
    "History",
    "LogNormal",
    "Percentile",
    "Scope",
    "SkipOutliers",
    "Step",
    "Unitwise",
    "ZScore",
]
