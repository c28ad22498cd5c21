"""Which parameters of a model are recurrent weights, which are input weights, and which rows of them are which gate's.

Modules are known by what they hold, not by their class: torch's `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells, this
library's cells, and any module that follows either's naming.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from rnn_blocks.callbacks.measuring.norms import row_norms


@dataclass(frozen=True)
class RecurrentModule:
    """A module with recurrent weights, or with weights stacked gate by gate.

    Attributes:
        name: its name in the model.
        inputs: the weights that the input comes in by, ``(gates * hidden_size, input_size)`` each.
        recurrent: those that the last state comes in by.
        gates: letters of the blocks of ``hidden_size`` rows, in their order; empty for a module without gates.
        hidden_size: rows of one gate.
        stacked: the parameters, biases too, that hold such blocks.
    """

    name: str
    inputs: list[Tensor]
    recurrent: list[Tensor]
    gates: tuple[str, ...]
    hidden_size: int
    stacked: list[Tensor]


def recurrent_modules(model: nn.Module) -> list[RecurrentModule]:
    """The recurrent modules inside a model, in the model's order, by the names that they have without `torch.compile`.

    A parameter whose name begins with ``weight_ih`` is an input weight. Recurrent are those beginning with
    ``weight_hh``, and what the module names in `recurrent_names`, as this library's cells do. Gates are the module's
    `gate_names`, or torch's: i, f, g, o of an LSTM; r, z, n of a GRU. A computed weight (pruned, or by
    `torch.nn.utils.parametrize`) counts as what it is computed of: the parameters that are trained.

    >>> [module] = recurrent_modules(nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 4)))
    >>> module.name, module.gates, [tuple(weight.shape) for weight in module.recurrent]
    ('1', ('r', 'z', 'n'), [(12, 4)])
    """
    found = []
    for name, module in model.named_modules():
        own = _named_weights(module)
        also = _told(module, "recurrent_names")
        also = also if isinstance(also, Collection) else ()  # modules of other kinds may mean something else by it
        inputs = [weight for key, weight in own if key.startswith("weight_ih")]
        recurrent = [weight for key, weight in own if key.startswith("weight_hh") or key in also]
        hidden_size = _told(module, "hidden_size")
        hidden_size = hidden_size if isinstance(hidden_size, int) else 0
        gates = _gates(module) if hidden_size else ()
        rows = len(gates) * hidden_size
        stacked = [weight for _, weight in own if gates and weight.dim() and len(weight) >= rows]
        if recurrent or (inputs and stacked):
            name = f"{name}.".replace("_orig_mod.", "")[:-1] or type(module).__name__
            found.append(RecurrentModule(name, inputs, recurrent, gates, hidden_size, stacked))
    return found


@torch.no_grad()
def gate_norms(module: RecurrentModule, among: Collection[Tensor]) -> Tensor | None:
    """Norm of the gradient of each gate's rows, over all the module's stacked weights and biases: ``(gates,)``.

    On the gradients' device, in float64 (float32 where the device has none); the same on every rank where gradients are
    sharded. None where none of the parameters is `among` these (an optimizer's), or none has a gradient.

    >>> cell = nn.LSTMCell(1, 1)
    >>> for parameter in cell.parameters():
    ...     parameter.grad = torch.arange(1.0, 5.0).reshape(parameter.shape)
    >>> [known] = recurrent_modules(cell)
    >>> gate_norms(known, set(cell.parameters())).tolist()  # √4 · 1, 2, 3, 4: two weights and two biases
    [2.0, 4.0, 6.0, 8.0]
    """
    gradients = [parameter.grad for parameter in module.stacked if parameter in among]
    known = [gradient for gradient in gradients if gradient is not None]
    if not known:
        return None
    dense = [gradient.to_dense() if gradient.is_sparse else gradient for gradient in known]
    rows = row_norms([gradient if gradient.ndim > 1 else gradient.unsqueeze(1) for gradient in dense])
    size = len(module.gates) * module.hidden_size
    blocks = torch.stack([row[:size].reshape(len(module.gates), -1) for row in rows], dim=1)
    norms: Tensor = torch.linalg.vector_norm(blocks, dim=(1, 2))
    return norms


def norm_over(parameters: list[Tensor], norms: Mapping[Tensor, float]) -> float | None:
    """Norm over those of the parameters that have one; None where none has."""
    known = [norms[parameter] for parameter in parameters if parameter in norms]
    return joint_norm(known) if known else None


def joint_norm(norms: Sequence[float]) -> float:
    """Norm of what has these norms in its parts; NaN if one is NaN, as torch's are, where `math.hypot` may say inf.

    >>> joint_norm([3.0, 4.0]), joint_norm([math.nan, math.inf])
    (5.0, nan)
    """
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)


def _named_weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own parameters, each by the name of the weight that it is, or is a part of."""
    own: list[tuple[str, Tensor]] = [
        (name.removesuffix("_orig"), parameter) for name, parameter in module.named_parameters(recurse=False)
    ]
    computed = module.parametrizations if is_parametrized(module) else nn.ModuleDict()
    assert isinstance(computed, nn.ModuleDict)
    return own + [(name, parameter) for name, parts in computed.items() for parameter in parts.parameters()]


def _gates(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return ("i", "f", "g", "o")
    if isinstance(module, nn.GRU | nn.GRUCell):
        return ("r", "z", "n")
    gates = _told(module, "gate_names")
    return gates if isinstance(gates, tuple) else ()


def _told(module: nn.Module, name: str) -> object:
    """An attribute of any module's; None where it has none, or has a property that raises."""
    try:
        return getattr(module, name, None)
    except Exception:  # somebody's module that means something else by it
        return None
