"""Modules whose weights are computed, by parametrisations and by hooks: computed once for a sequence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized

from rnn_blocks.cells.cell import STEP_METHODS, Cell
from rnn_blocks.engine import State

AnyCell = TypeVar("AnyCell", bound=Cell)
AnyModule = TypeVar("AnyModule", bound=nn.Module)
Hooks: TypeAlias = dict[int, Callable[..., Any]]

WEIGHT_HOOKS = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm", "torch.nn.utils.prune")
"""Where torch's hooks are made that compute a weight before a module's forward."""

SOURCES = ("_orig", "_g", "_v")
"""What such hooks add to a weight's name for what it is computed of."""

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


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
    own = _wrapped(cell)

    def hooks_of(module: nn.Module) -> Hooks:
        return dict(module._forward_pre_hooks) if module in own else _weight_hooks(module)

    if not any(hooks_of(module) or is_parametrized(module) for module in modules):
        return cell, inputs, state
    for module in modules:
        for number, hook in hooks_of(module).items():
            result = _call(original(module), number, hook, inputs, state)
            if module is cell and result is not None:
                inputs, state = result if isinstance(result, tuple) else (result, state)
    plain: AnyCell = _plain(cell, {}, hooks_of)
    return plain, inputs, state


def computed(module: AnyModule) -> AnyModule:
    """A module as its weights are now, each computed once; other hooks than those that compute weights stay.

    Returns:
        The module itself, where none is computed; else a plain one around them, whose gradients reach what they were
        computed of.

    >>> layer = prune.l1_unstructured(nn.Linear(2, 3), "weight", amount=0.5)
    >>> plain = computed(layer)
    >>> computed(plain) is plain, int((plain.weight == 0).sum())
    (True, 3)
    """
    parts = list(module.modules())
    if not any(is_parametrized(part) or _weight_hooks(part) for part in parts):
        return module
    for part in parts:
        for hook in _weight_hooks(part).values():
            hook(part, ())
    plain: AnyModule = _plain(module, {}, _weight_hooks)
    return plain


@contextmanager
def writable(module: AnyModule) -> Iterator[AnyModule]:
    """A module to set the weights of, in place: what is computed goes to what it is computed of.

    Yields:
        The module itself, where nothing is computed; else a plain one, whose weights the module has afterwards: a
        parametrisation is set as torch sets it, by its `right_inverse`, and a pruned weight stays pruned.

    Raises:
        ValueError: on leaving, before any weight is changed, where one that was set has no such inverse; and where one
            is not finite once it is set, as what weight norm makes of a row of zeros.

    >>> layer = prune.custom_from_mask(nn.Linear(2, 1), "weight", torch.tensor([[1.0, 0.0]]))
    >>> with writable(layer) as plain:
    ...     _ = nn.init.ones_(plain.weight)
    >>> layer.weight.tolist(), layer.weight_orig.tolist()
    ([[1.0, 0.0]], [[1.0, 1.0]])
    """
    plain = computed(module)
    if plain is module:
        yield module
        return
    weights: list[tuple[nn.Module, str, Tensor, Tensor]] = []  # of which module, its name, before and after
    for twin in plain.modules():
        part = original(twin)
        sources = {f"{_computed_by(hook)}{end}" for hook in _weight_hooks(part).values() for end in SOURCES}
        parameters: dict[str, Any] = twin._parameters
        for name, weight in list(parameters.items()):
            if name in sources:
                del parameters[name]
            elif weight is not None:
                parameters[name] = weight.detach().clone()
                weights.append((part, name, weight.detach().clone(), parameters[name]))
    yield plain
    written = [
        (part, name, after)
        for part, name, before, after in weights
        if not after.is_meta and not torch.equal(before, after)  # on the meta device there are no numbers
    ]
    for part, name, _ in written:
        if is_parametrized(part, name):
            kinds = [type(one) for one in part.parametrizations[name]]  # type: ignore[index]
            if not all(hasattr(kind, "right_inverse") for kind in kinds):
                raise ValueError(
                    f"{name} is computed by {', '.join(kind.__name__ for kind in kinds)} without a right_inverse to "
                    "set it by: initialise it before it is parametrised"
                )
    with torch.no_grad():
        for part, name, value in written:
            _write(part, name, value)
            if value.isfinite().all() and not getattr(part, name).isfinite().all():
                raise ValueError(f"{name} cannot be set so: what computes it gives numbers that are not finite")


def weight_names(module: nn.Module) -> set[str]:
    """The names of a module's weights, and of its parts', computed ones with what they are computed of.

    >>> sorted(weight_names(prune.l1_unstructured(nn.Linear(2, 3), "weight", amount=0.5)))
    ['bias', 'weight', 'weight_orig']
    """
    names: set[str] = set()
    for part in module.modules():
        names |= part._parameters.keys()
        names |= set(part.parametrizations) if is_parametrized(part) else set()  # type: ignore[arg-type]
        names |= {name for name, value in vars(part).items() if isinstance(value, Tensor) and _weight_hooks(part)}
    return names


def original(module: AnyModule) -> AnyModule:
    """What a plain module was made of; any other is itself."""
    found: AnyModule = vars(module).get("_original", module)
    return found


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of somebody's that run when it is called, besides those that compute weights.

    >>> layer = prune.l1_unstructured(nn.Linear(2, 3), "weight", amount=0.5)
    >>> has_hooks(layer), layer.register_forward_hook(print) is None, has_hooks(layer)
    (False, False, True)
    """
    others = len(module._forward_pre_hooks) > len(_weight_hooks(module)) or _has_any_global_hook()
    return others or any(getattr(module, kind) for kind in HOOKS[1:])


def is_watched(cell: Cell) -> bool:
    """Whether a part of a cell that is called as a module at each step has hooks, which no recorded step would run.

    Or whether somebody has put a method of a step on a part itself: it may read the part's own weights, and no others.
    """
    own, parts = _wrapped(cell), list(cell.modules())
    return any(has_own_step(part) or (part not in own and has_hooks(part)) for part in parts)


def has_own_step(module: nn.Module) -> bool:
    """Whether somebody has put a method that a step calls on this module alone, in place of its class's.

    >>> from rnn_blocks.cells import GRUCell
    >>> cell = GRUCell(2, 3)
    >>> has_own_step(cell)
    False
    >>> cell.advance = lambda projected, state, hidden: (hidden, hidden)
    >>> has_own_step(cell)
    True
    """
    names = vars(module)
    return any(callable(names.get(name)) and hasattr(type(module), name) for name in ("forward", *STEP_METHODS))


def _wrapped(module: nn.Module) -> list[Cell]:
    """A cell, and those that it runs by their steps: not the cells of a layer inside it, which calls them."""
    own = [module] if isinstance(module, Cell) else []
    for part in module.children():
        if isinstance(part, Cell | nn.ModuleList | nn.ModuleDict):
            own += _wrapped(part)
    return own


def _weight_hooks(module: nn.Module) -> Hooks:
    return {number: hook for number, hook in module._forward_pre_hooks.items() if _computes_weights(hook)}


def _computes_weights(hook: Callable[..., Any]) -> bool:
    return isinstance(hook, prune.BasePruningMethod) or type(hook).__module__ in WEIGHT_HOOKS


def _computed_by(hook: Any) -> str:
    """The name of the weight that a hook computes."""
    name: str = hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name
    return name


def _write(part: nn.Module, name: str, value: Tensor) -> None:
    """Set a weight, or what it is computed of."""
    if is_parametrized(part, name):
        setattr(part, name, value)
        return
    hook: Any = next((hook for hook in _weight_hooks(part).values() if _computed_by(hook) == name), None)
    if hook is None:
        part.get_parameter(name).copy_(value)
        return
    if f"{name}_orig" in part._parameters:
        part.get_parameter(f"{name}_orig").copy_(value)
    else:  # weight norm
        part.get_parameter(f"{name}_g").copy_(torch.norm_except_dim(value, 2, hook.dim))
        part.get_parameter(f"{name}_v").copy_(value)
    hook(part, ())


def _call(module: nn.Module, number: int, hook: Callable[..., Any], inputs: Tensor, state: State) -> Any:
    if number not in module._forward_pre_hooks_with_kwargs:
        return hook(module, (inputs, state))
    result = hook(module, (inputs, state), {})
    return None if result is None else result[0]


def _plain(module: nn.Module, known: dict[int, nn.Module], hooks_of: Callable[[nn.Module], Hooks]) -> Any:
    """A module of its own around the tensors that this one computes now, without the hooks that have run."""
    if id(module) in known:
        return known[id(module)]
    hooks = hooks_of(module)
    parametrised = list(module.parametrizations) if is_parametrized(module) else []  # type: ignore[arg-type]
    kind = type(module).__bases__[0] if parametrised else type(module)  # of which torch has made a subclass
    twin: nn.Module = object.__new__(kind)
    known[id(module)] = twin
    contents = {name: _rebound(value, module, twin) for name, value in vars(module).items()}
    parameters: dict[str, Any] = dict(module._parameters)
    parameters |= {name: getattr(module, name) for name in parametrised}
    if hooks:
        names = [name for name, value in contents.items() if isinstance(value, Tensor)]
        parameters |= {name: contents.pop(name) for name in names}
    parts = {name: part for name, part in module._modules.items() if name != "parametrizations" or not parametrised}
    contents |= {
        "_original": original(module),
        "_parameters": parameters,
        "_buffers": dict(module._buffers),
        "_modules": {name: None if part is None else _plain(part, known, hooks_of) for name, part in parts.items()},
    }
    for group in HOOKS:
        others = ((number, hook) for number, hook in contents[group].items() if number not in hooks)
        contents[group] = type(contents[group])((n, partial(_tell, hook, original(module))) for n, hook in others)
    vars(twin).update(contents)
    return twin


def _tell(hook: Callable[..., Any], module: nn.Module, _: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    """A hook is told of the module that it hangs on, and not of the twin that runs it."""
    return hook(module, *arguments, **keywords)


def _rebound(value: Any, module: nn.Module, twin: nn.Module) -> Any:
    """A method that was put on a module itself, as the gradient-flow monitor does, as its twin's."""
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, twin)
    if isinstance(value, partial) and value.args and value.args[0] is module:
        return partial(value.func, twin, *value.args[1:], **value.keywords)
    return value
