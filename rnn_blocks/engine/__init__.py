"""Running a step over time, fast: torch's native kernels, and the plain loop for everything else."""

from rnn_blocks.engine.loop import run_loop
from rnn_blocks.engine.native import run_native
from rnn_blocks.engine.state import State, describe_state, detach_state, map_state, state_tensors

__all__ = ["State", "describe_state", "detach_state", "map_state", "run_loop", "run_native", "state_tensors"]
