"""Where to clip: rules that turn the norms seen so far into a threshold, as pure functions of their history."""

from rnn_blocks.callbacks.policies.auto import Auto
from rnn_blocks.callbacks.policies.fixed import Fixed
from rnn_blocks.callbacks.policies.policy import SCOPES, Clip, ClippingPolicy, History, Scope, Step

__all__ = ["SCOPES", "Auto", "Clip", "ClippingPolicy", "Fixed", "History", "Scope", "Step"]
