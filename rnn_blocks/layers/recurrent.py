"""A cell run over time."""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from rnn_blocks.cells import Cell, LinearCell
from rnn_blocks.cells.kernel import has_kernel
from rnn_blocks.cells.settled import is_watched, original, settled
from rnn_blocks.engine import State, count_from, counted, has_numbers, is_transformed, run_fused, run_loop
from rnn_blocks.layers.layer import Layer

Engine: TypeAlias = Literal["auto", "native", "fused", "compiled", "scan", "loop"]
ENGINES: tuple[Engine, ...] = ("auto", "native", "fused", "compiled", "scan", "loop")

STEPS = "steps"
"""Where a state dict's metadata have how many steps the cell has run: see :mod:`rnn_blocks.engine.background`."""


class Recurrent(Layer):
    """A cell run over time.

    Args:
        cell: any :class:`~rnn_blocks.Cell`, yours included.
        engine: ``"native"`` runs torch's own kernel (oneDNN, cuDNN), for the plain cells that have one; ``"fused"``
            records one step and its derivative, and runs them without autograd in between; ``"compiled"`` is that
            with the step's operators made one kernel by torch's compiler, which takes seconds for each new shape;
            ``"scan"`` runs all steps of a :class:`~rnn_blocks.LinearCell` at once; ``"loop"`` steps through time in
            Python under autograd; ``"auto"`` takes the fastest that the cell, hooks of its parts, the device and the
            arguments allow, and in a long training on CPU goes over from ``"fused"`` to ``"compiled"``.
        batch_first: see :class:`~rnn_blocks.Layer`.

    Raises:
        ValueError: for an unknown engine; when run, for ``engine="native"`` on a cell without such a kernel or with
            ``resets``, and for ``engine="scan"`` on a cell that is no :class:`~rnn_blocks.LinearCell`.

    >>> import torch, rnn_blocks
    >>> layer = Recurrent(rnn_blocks.GRUCell(3, 4))
    >>> outputs, state = layer(torch.randn(2, 7, 3), lengths=torch.tensor([7, 0]))
    >>> outputs.shape, state.shape
    (torch.Size([2, 7, 4]), torch.Size([2, 4]))
    """

    def __init__(self, cell: Cell, *, engine: Engine = "auto", batch_first: bool = True) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}, got {engine!r}")
        _check_cell(type(self).__name__, cell)
        super().__init__(cell.input_size, cell.hidden_size, batch_first=batch_first)
        self.cell = cell
        self.engine = engine

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """The cell's."""
        return self.cell.initial_state(batch_size, like)

    def run(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """Over all steps, by the engine asked for; time first."""
        engine = self._engine_for(inputs, resets)
        cell, inputs, state = settled(self.cell, inputs, state)
        if engine == "native":
            result = cell.native(inputs, state, lengths) if has_kernel(self.cell) else None
            if result is not None:
                return result
            if self.engine == "native":
                others = "'scan', 'fused' or 'loop'" if isinstance(self.cell, LinearCell) else "'fused' or 'loop'"
                raise ValueError(
                    f"engine='native' cannot run this: {type(self.cell).__name__} has no native kernel; "
                    f"use engine='auto', {others}"
                )
            engine = self._engine_without_kernel(inputs)
        if engine == "scan":
            if not isinstance(cell, LinearCell):
                raise ValueError(
                    f"engine='scan' cannot run this: {type(self.cell).__name__} is no LinearCell; "
                    "use engine='auto', 'native', 'fused' or 'loop'"
                )
            return cell.scan(inputs, state, lengths=lengths, resets=resets)
        fresh = None if resets is None else self.cell.initial_state(inputs.shape[1], inputs)
        state = cell.begin(state)
        projected = cell.project(inputs)
        if engine in ("fused", "compiled"):
            return run_fused(
                cell,
                projected,
                state,
                fresh=fresh,
                lengths=lengths,
                resets=resets,
                compiled=engine == "compiled",
                fall_back=self.engine == "auto",
                background=self.engine == "auto" and inputs.device.type == "cpu",
                owner=original(self.cell),
            )
        return run_loop(cell.step, projected, state, fresh=fresh, lengths=lengths, resets=resets)

    def _engine_for(self, inputs: Tensor, resets: Tensor | None) -> Engine:
        linear = isinstance(self.cell, LinearCell)
        plain_only = is_transformed() or not has_numbers(inputs)
        if (self.engine == "scan" or (self.engine == "auto" and linear)) and not (linear and plain_only):
            return "scan"
        if torch.compiler.is_compiling() or plain_only:  # which record steps, and cannot look into a recorded one
            return "loop"
        if self.engine != "auto":
            if self.engine == "native" and resets is not None:
                raise ValueError(
                    "engine='native' cannot run this: native kernels take no resets; "
                    "use engine='auto', 'fused' or 'loop'"
                )
            return self.engine
        device, steps = inputs.device.type, inputs.shape[0] * inputs.shape[1]
        pays = device in self.cell.native_on and (device != "cpu" or steps >= self.cell.native_from)
        if resets is None and (pays or not torch.is_grad_enabled()):
            return "native"
        return self._engine_without_kernel(inputs)

    def _engine_without_kernel(self, inputs: Tensor) -> Engine:
        if not self.cell.fusable or is_watched(self.cell):
            return "loop"
        if inputs.device.type == "cuda":  # where starting a kernel takes longer than a step's arithmetic
            return "compiled"
        return "fused" if torch.is_grad_enabled() else "loop"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        steps = counted(self.cell)
        if steps and hasattr(destination, "_metadata"):  # beside the version of each module, among no weights
            destination._metadata[prefix[:-1]][STEPS] = steps

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)
        if "version" in local_metadata:  # torch's: else a plain dict, which knows of no steps
            count_from(self.cell, local_metadata.get(STEPS, {}))

    def step(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One step of time, straight through the cell: what generation and decoding use."""
        self._check_step(inputs, state)
        output: tuple[Tensor, State] = self.cell(inputs, state)
        return output

    def extra_repr(self) -> str:
        """The engine."""
        return f"engine={self.engine!r}"


def _check_cell(owner: str, cell: object) -> None:
    if isinstance(cell, Cell) or hasattr(cell, "advance"):  # that of torch.compile is no subclass
        return
    why = " of torch.nn" if isinstance(cell, nn.RNNCellBase) else ", a layer" if isinstance(cell, Layer) else ""
    raise ValueError(f"{owner} needs a cell of rnn_blocks, got {type(cell).__name__}{why}")
