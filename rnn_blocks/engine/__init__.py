"""Running a step over time, fast: torch's native kernels, the traced step, the scan, and the plain loop."""

from rnn_blocks.engine.background import count_from, counted
from rnn_blocks.engine.dropout import dropout, dropout_mask
from rnn_blocks.engine.fused import run_fused
from rnn_blocks.engine.loop import run_loop
from rnn_blocks.engine.method_call import MethodCall
from rnn_blocks.engine.native import run_native
from rnn_blocks.engine.products import input_product
from rnn_blocks.engine.scan import linear_scan, run_scan
from rnn_blocks.engine.state import (
    State,
    describe_state,
    detach_state,
    hidden_of,
    like_state,
    map_state,
    state_tensors,
    with_hidden,
)
from rnn_blocks.engine.transforms import has_numbers, is_transformed, is_wrapped

__all__ = [
    "MethodCall",
    "State",
    "count_from",
    "counted",
    "describe_state",
    "detach_state",
    "dropout",
    "dropout_mask",
    "has_numbers",
    "hidden_of",
    "input_product",
    "is_transformed",
    "is_wrapped",
    "like_state",
    "linear_scan",
    "map_state",
    "run_fused",
    "run_loop",
    "run_native",
    "run_scan",
    "state_tensors",
    "with_hidden",
]
