"""How weights start: each function sets those of every weighted cell inside a module, in place."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from rnn_blocks.cells.cell import Cell
from rnn_blocks.cells.settled import writable
from rnn_blocks.cells.weights import WeightedCell
from rnn_blocks.checks import is_within, whole

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def initialise(module: AnyModule, init: str) -> AnyModule:
    """Set the weights as a configuration's string says.

    ====================  ==================================================================
    ``init``              what it calls
    ====================  ==================================================================
    ``torch``             :func:`init_uniform`
    ``orthogonal``        :func:`init_orthogonal`
    ``identity``          :func:`init_identity`, or ``identity(0.5)`` with its ``scale``
    ``unit-forget-bias``  :func:`init_unit_forget_bias`
    ``chrono(784)``       :func:`init_chrono` with its ``max_length``
    ====================  ==================================================================

    One of the first three, which set all weights, and one of the last two, which set biases afterwards, may be joined
    by ``+``. Nothing is drawn before the whole string is understood and found to fit every cell.

    A weight that is parametrised (`torch.nn.utils.parametrizations`) is set by its parametrisation's ``right_inverse``,
    and so is what that makes of it; a pruned one stays pruned.

    Args:
        module: a cell, a wrapper around one, or anything that holds cells.
        init: as above.

    Returns:
        The module.

    Raises:
        ValueError: for another name, a number that is missing, superfluous or out of range, two of a kind, for
            cells that it does not fit, and for a parametrised weight without a ``right_inverse``, none being changed.

    >>> import rnn_blocks
    >>> cell = initialise(rnn_blocks.LSTMCell(2, 3), "orthogonal+unit-forget-bias")
    >>> cell.bias.tolist()
    [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    chosen = [_understood(part.strip(), init) for part in init.split("+")]
    for kind in ("weights", "biases"):
        same = [part for part in chosen if part.kind == kind]
        if len(same) > 1:
            raise ValueError(f"init {init!r} sets the {kind} {len(same)} times: {_CHOICES}")
    for part in chosen:
        part.check(module)
    with writable(module) as plain:
        for part in sorted(chosen, key=lambda part: part.kind == "biases"):
            part.apply(plain)
    return module


@torch.no_grad()
def init_uniform(module: AnyModule) -> AnyModule:
    """Each cell's own beginning: torch's, uniform within ``±1/√hidden_size``, unless the cell says otherwise.

    Args:
        module: a cell, a wrapper around one, or anything that holds cells.

    Returns:
        The module.

    >>> import rnn_blocks
    >>> cell = init_uniform(rnn_blocks.GRUCell(2, 4))
    >>> bool(cell.weight_hh.abs().max() <= 0.5)
    True
    """
    with writable(module) as plain:
        for part in plain.modules():
            reset = getattr(part, "reset_parameters", None)
            if isinstance(part, Cell) and callable(reset):
                reset()
    return module


@torch.no_grad()
def init_orthogonal(module: AnyModule) -> AnyModule:
    """Recurrent weights orthogonal gate by gate (Saxe et al. 2014), input weights Glorot's gate by gate, biases zero.

    Each ``hidden × hidden`` block of ``weight_hh`` is orthogonal by itself, ``U Uᵀ = I``, so that a product of many
    steps neither grows nor shrinks; of one orthogonal matrix for all the gates the blocks would not be. Each
    ``hidden × input`` block of ``weight_ih`` is uniform within ``±√(6 / (input_size + hidden_size))`` (Glorot & Bengio
    2010, eq. 16). Biases that a cell wants elsewhere, as a highway network's, go there.

    Args:
        module: a cell, a wrapper around one, or anything that holds cells.

    Returns:
        The module.

    Raises:
        ValueError: where no cell with gates is inside.

    >>> import rnn_blocks
    >>> forget = init_orthogonal(rnn_blocks.LSTMCell(2, 3)).weight_hh[3:6]
    >>> torch.allclose(forget @ forget.T, torch.eye(3), atol=1e-6)
    True
    """
    with writable(module) as plain:
        for cell in _weighted(plain):
            bound = math.sqrt(6 / (cell.input_size + cell.hidden_size))
            cell.weight_ih.uniform_(-bound, bound)
            for block in cell.recurrent_blocks():
                # drawn where a QR decomposition exists: there is none in half precision
                drawn = torch.empty_like(block, dtype=torch.promote_types(block.dtype, torch.float32))
                block.copy_(nn.init.orthogonal_(drawn))
            cell.reset_biases()
    return module


@torch.no_grad()
def init_identity(module: AnyModule, scale: float = 1.0) -> AnyModule:
    """Recurrent weights ``scale · I``, biases zero: the IRNN of Le et al. (2015), made for rectified Elman cells.

    With a scale of one a state stays as it is until an input changes it; a smaller one forgets, as suits tasks of
    shorter dependencies. A cell of several gates gets it in the block of each. Input weights are left as they are.

    Args:
        module: a cell, a wrapper around one, or anything that holds cells.
        scale: what stands on the diagonal.

    Returns:
        The module.

    Raises:
        ValueError: where no cell with gates is inside, or the scale is not finite.

    >>> import rnn_blocks
    >>> init_identity(rnn_blocks.ElmanCell(3, 2, nonlinearity="relu"), 0.5).weight_hh.tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    _check_scale(scale)
    with writable(module) as plain:
        for cell in _weighted(plain):
            for block in cell.recurrent_blocks():
                nn.init.eye_(block).mul_(scale)
            cell.reset_biases()
    return module


@torch.no_grad()
def init_unit_forget_bias(module: AnyModule) -> AnyModule:
    """The forget gate's bias one (Gers et al. 2000; Jozefowicz et al. 2015), all else left as it is.

    It is exactly one, in the only bias there is: torch's modules add up two. In a GRU the update gate ``z`` is what
    keeps the past, and is set.

    Args:
        module: a cell, a wrapper around one, or anything that holds cells.

    Returns:
        The module.

    Raises:
        ValueError: where a cell has no forget gate, or no cell with gates is inside.

    >>> import rnn_blocks
    >>> init_unit_forget_bias(rnn_blocks.GRUCell(1, 2)).bias[2:4].tolist()
    [1.0, 1.0]
    """
    with writable(module) as plain:
        for cell, forget in _forgetting(plain):
            cell.gate_bias(forget).fill_(1.0)
    return module


@torch.no_grad()
def init_chrono(module: AnyModule, max_length: int) -> AnyModule:
    """Forget gates that remember for times spread up to ``max_length`` (Tallec & Ollivier 2018, eq. 16).

    ``b_f = log u`` with ``u`` uniform in ``[1, max_length - 1]``, one for each feature, and ``b_i = -b_f`` where an
    input gate stands beside it: a gate ``σ(log u) = u / (1 + u)`` forgets within about ``1 + u`` steps. In a GRU the
    update gate is set. All else is left as it is.

    Args:
        module: a cell, a wrapper around one, or anything that holds cells.
        max_length: the longest dependency expected, in steps; at least 2.

    Returns:
        The module.

    Raises:
        ValueError: where a cell has no forget gate, no cell with gates is inside, or ``max_length`` is below 2.

    >>> import rnn_blocks
    >>> i, f, _, _ = init_chrono(rnn_blocks.LSTMCell(2, 3), 784).bias.chunk(4)
    >>> bool((f >= 0).all()), torch.equal(i, -f)
    (True, True)
    """
    _check_max_length(max_length)
    with writable(module) as plain:
        for cell, forget in _forgetting(plain):
            bias = cell.gate_bias(forget)
            bias.copy_(torch.empty_like(bias, dtype=torch.float32).uniform_(1, max_length - 1).log())
            if cell.input_block is not None:
                cell.gate_bias(cell.input_block).copy_(-bias)
    return module


def _weighted(module: nn.Module) -> list[WeightedCell]:
    cells = [part for part in module.modules() if isinstance(part, WeightedCell)]
    if not cells:
        raise ValueError(f"{type(module).__name__} holds no cell with gates, such as an LSTMCell, to initialise")
    return cells


def _forgetting(module: nn.Module) -> list[tuple[WeightedCell, int]]:
    found = []
    for cell in _weighted(module):
        if cell.forget_block is None:
            raise ValueError(
                f"{type(cell).__name__} has no forget gate whose bias could be set, as LSTMCell and GRUCell have"
            )
        found.append((cell, cell.forget_block))
    return found


def _check_scale(scale: float) -> None:
    if not is_within(scale, -math.inf, above=True):
        raise ValueError(f"scale must be finite, got {scale!r}")


def _check_max_length(max_length: int) -> None:
    whole("max_length", max_length, 2, " steps")


_CHOICES = (
    "init is one of 'torch', 'orthogonal', 'identity', 'identity(SCALE)', and one of 'unit-forget-bias', "
    "'chrono(MAX_LENGTH)', or two of them joined by '+', such as 'orthogonal+chrono(784)'"
)


@dataclass(frozen=True)
class _Initialiser:
    """One name of a configuration's string, with its number."""

    kind: str  # "weights" or "biases": what it sets
    check: Callable[[nn.Module], object]
    apply: Callable[[nn.Module], object]


def _understood(part: str, init: str) -> _Initialiser:
    match = re.fullmatch(r"([a-z-]+)(?:\(([^()]*)\))?", part)
    name, number = match.groups() if match else (part, None)
    try:
        if name == "identity":
            scale = 1.0 if number is None else float(number)
            _check_scale(scale)
            return _Initialiser("weights", _weighted, lambda module: init_identity(module, scale))
        if name == "chrono" and number is not None:
            max_length = int(number)
            _check_max_length(max_length)
            return _Initialiser("biases", _forgetting, lambda module: init_chrono(module, max_length))
    except ValueError as error:
        raise ValueError(f"init {init!r}: {error}; {_CHOICES}") from error
    plain = {
        "torch": _Initialiser("weights", lambda module: None, init_uniform),
        "orthogonal": _Initialiser("weights", _weighted, init_orthogonal),
        "unit-forget-bias": _Initialiser("biases", _forgetting, init_unit_forget_bias),
    }
    if number is not None or name not in plain:
        raise ValueError(f"{part!r} is not known, got init {init!r}; {_CHOICES}")
    return plain[name]
