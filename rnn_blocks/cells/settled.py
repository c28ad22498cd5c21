"""Cells whose weights are computed, by parametrisations and by hooks: computed once for a sequence."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized

from rnn_blocks.cells.cell import Cell
from rnn_blocks.engine import State

AnyCell = TypeVar("AnyCell", bound=Cell)

WEIGHT_HOOKS = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm", "torch.nn.utils.prune")
"""Where torch's hooks are made that compute a weight before a module's forward."""


def settled(cell: AnyCell, inputs: Tensor, state: State) -> tuple[AnyCell, Tensor, State]:
    """A cell, and what it is to run over, as they are once everything has happened that happens before a forward.

    A layer takes steps by a cell's `step`, all steps by its `project`, and never calls the cell as a module. So its
    hooks run here, as those of ``torch.nn.LSTM`` do, once for a sequence: forward-pre-hooks of the cell, and of the
    cells that it wraps, with ``(inputs, state)``, and those of other parts that compute weights (pruning, the older
    weight and spectral norm). Parametrised weights (`torch.nn.utils.parametrizations`) are computed once, too.

    Args:
        cell: any.
        inputs: ``(time, batch, input_size)``.
        state: before the first step.

    Returns:
        The cell itself, where nothing is computed; else a plain one around the computed weights, whose gradients reach
        what they were computed of. And ``inputs`` and ``state``, which a hook of the cell may replace.

    >>> import torch
    >>> from rnn_blocks.cells import GRUCell
    >>> cell = GRUCell(2, 3)
    >>> plain, *_ = settled(cell, torch.ones(4, 1, 2), torch.zeros(1, 3))
    >>> plain is cell
    True
    >>> cell = prune.l1_unstructured(cell, "weight_hh", amount=0.5)
    >>> plain, *_ = settled(cell, torch.ones(4, 1, 2), torch.zeros(1, 3))
    >>> plain is cell, int((plain.weight_hh == 0).sum()), cell.weight_hh_orig.requires_grad
    (False, 14, True)
    """
    modules = list(cell.modules())
    if not any(module._forward_pre_hooks or is_parametrized(module) for module in modules):
        return cell, inputs, state
    for module in modules:
        for number, hook in _hooks_before(module).items():
            result = _call(module, number, hook, inputs, state)
            if module is cell and result is not None:
                inputs, state = result if isinstance(result, tuple) else (result, state)
    plain: AnyCell = _plain(cell, {})
    return plain, inputs, state


def _hooks_before(module: nn.Module) -> dict[int, Callable[..., Any]]:
    """What runs before the forward of a cell, or computes the weights of another module."""
    hooks: dict[int, Callable[..., Any]] = dict(module._forward_pre_hooks)
    return hooks if isinstance(module, Cell) else {n: hook for n, hook in hooks.items() if _computes_weights(hook)}


def _computes_weights(hook: Callable[..., Any]) -> bool:
    return isinstance(hook, prune.BasePruningMethod) or type(hook).__module__ in WEIGHT_HOOKS


def _call(module: nn.Module, number: int, hook: Callable[..., Any], inputs: Tensor, state: State) -> Any:
    if number not in module._forward_pre_hooks_with_kwargs:
        return hook(module, (inputs, state))
    result = hook(module, (inputs, state), {})
    return None if result is None else result[0]


def _plain(module: nn.Module, known: dict[int, nn.Module]) -> Any:
    """A module of its own around the tensors that this one computes now, with nothing that would compute them again."""
    if id(module) in known:
        return known[id(module)]
    hooks = _hooks_before(module)
    parametrised = list(module.parametrizations) if is_parametrized(module) else []  # type: ignore[arg-type]
    kind = type(module).__bases__[0] if parametrised else type(module)  # of which torch has made a subclass
    twin: nn.Module = object.__new__(kind)
    known[id(module)] = twin
    contents = dict(vars(module))
    parameters: dict[str, Any] = dict(module._parameters)
    parameters |= {name: getattr(module, name) for name in parametrised}
    if hooks:
        computed = [name for name, value in contents.items() if isinstance(value, Tensor)]
        parameters |= {name: contents.pop(name) for name in computed}
    parts = {name: part for name, part in module._modules.items() if name != "parametrizations" or not parametrised}
    contents |= {
        "_parameters": parameters,
        "_buffers": dict(module._buffers),
        "_modules": {name: None if part is None else _plain(part, known) for name, part in parts.items()},
        "_forward_pre_hooks": type(module._forward_pre_hooks)(
            (number, hook) for number, hook in module._forward_pre_hooks.items() if number not in hooks
        ),
    }
    vars(twin).update(contents)
    return twin
