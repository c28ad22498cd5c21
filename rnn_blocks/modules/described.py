"""Layers and cells as plain data, ``{"class_path": …, "init_args": …}``, and back."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rnn_blocks.cells import Cell, DeepOutput
from rnn_blocks.cells.mlp import MLP
from rnn_blocks.layers import Bidirectional, Dilated, DilatedRecurrent, Layer, Recurrent, RecurrentStack
from rnn_blocks.modules.scheduled_sampling import ScheduledSampling

TRUSTED = ("rnn_blocks", "torch")
CLASS, ARGUMENTS = "class_path", "init_args"
_PLAIN = (bool, int, float, str)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # training, _parameters, …


class NotDescribableError(ValueError):
    """An object whose constructor's arguments cannot be told from it."""


def describe(value: Any) -> Any:
    """A value as plain data: an object by its class and the arguments that make one like it.

    A layer's arguments are read from it: each is looked for under its own name. Whether they are right is tested: they
    make a second layer, which must be of the same parts, sizes and settings at every depth.

    Args:
        value: numbers, strings, ``None``, sequences of such, layers, cells, classes, and ``functools.partial`` of
            classes.

    Raises:
        NotDescribableError: where an argument is not to be found, or another object would come of them.

    >>> import rnn_blocks
    >>> described = describe(rnn_blocks.GRU(3, [4, 2], skip="residual"))
    >>> described["class_path"], described["init_args"]["hidden_size"]
    ('rnn_blocks.GRU', [4, 2])
    >>> rebuild(described)(torch.zeros(1, 5, 3))[0].shape
    torch.Size([1, 5, 2])
    """
    described = _described(value)
    if isinstance(value, nn.Module):
        with torch.random.fork_rng(devices=[]):  # the second one's weights are drawn for nothing
            try:
                twin = rebuild(described, trust=[type(part).__module__.partition(".")[0] for part in value.modules()])
            except (TypeError, ValueError) as error:
                raise NotDescribableError(
                    f"{class_path(type(value))}: its arguments make none like it: {error}"
                ) from error
        difference = next(_differences(value, twin), None)
        if difference is not None:
            raise NotDescribableError(f"{class_path(type(value))}: its arguments cannot be told from it: {difference}")
    return described


def rebuild(described: Any, *, trust: Sequence[str] = ()) -> Any:
    """What :func:`describe` described. No other classes are made than modules, optimizers and their like.

    Args:
        described: plain data.
        trust: packages besides ``rnn_blocks`` and ``torch`` whose classes may be made: their code is run.

    Raises:
        ValueError: for a class of another package, or one that is no part of a model.

    >>> rebuild({"class_path": "subprocess.Popen", "init_args": {"args": "ls"}})  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    ValueError: 'subprocess.Popen' is not made: only classes of rnn_blocks, torch are; where you trust this
    configuration, trust=['subprocess'] makes those as well
    """
    if isinstance(described, list):
        return [rebuild(part, trust=trust) for part in described]
    if not isinstance(described, dict):
        return described
    made_of = _class_of(described, trust)
    return made_of(**rebuilt_arguments(made_of, described.get(ARGUMENTS) or {}, trust=trust))


def rebuilt_arguments(made_of: type, described: dict[str, Any], *, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of a class from plain data, each as its constructor's annotation asks: a factory, a tuple, a value.

    Raises:
        ValueError: as :func:`rebuild` does.

    >>> import rnn_blocks
    >>> rebuilt_arguments(rnn_blocks.Leaky, {"time_constant": [1.0, 9.0]})
    {'time_constant': (1.0, 9.0)}
    """
    hints = get_type_hints(made_of.__init__)  # type: ignore[misc]  # of this very class
    arguments: dict[str, Any] = {}
    for name, value in described.items():
        kinds = _alternatives(hints.get(name, Any))
        origins = [get_origin(kind) or kind for kind in kinds]
        if isinstance(value, dict) and Callable in origins:
            factory = _class_of(value, trust)
            arguments[name] = partial(factory, **rebuilt_arguments(factory, value.get(ARGUMENTS) or {}, trust=trust))
        else:
            arguments[name] = rebuild(value, trust=trust)
            if isinstance(value, list) and tuple in origins:
                arguments[name] = tuple(arguments[name])
    return arguments


def _alternatives(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _alternatives(part)]
    origin = get_origin(hint) or hint
    return [Callable if origin is Callable or getattr(origin, "__name__", "") == "Callable" else hint]


def _class_of(described: dict[str, Any], trust: Sequence[str]) -> type:
    path = described.get(CLASS)
    if not isinstance(path, str) or set(described) - {CLASS, ARGUMENTS}:
        raise ValueError(f"{described!r} describes no object: {{'{CLASS}': …, '{ARGUMENTS}': {{…}}}} does")
    packages = (*TRUSTED, *trust)
    if path.partition(".")[0] not in packages:
        raise ValueError(
            f"{path!r} is not made: only classes of {', '.join(packages)} are; where you trust this configuration, "
            f"trust=[{path.partition('.')[0]!r}] makes those as well"
        )
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no class {path!r}: {error}") from error
    if not isinstance(found, type) or found.__module__.partition(".")[0] not in packages:
        raise ValueError(f"{path!r} is no class of {', '.join(packages)}")
    parts = (nn.Module, Optimizer, LRScheduler, ScheduledSampling)
    if not issubclass(found, parts) and found.__module__.partition(".")[0] in TRUSTED:
        raise ValueError(f"{path!r} is not made: it is no module, optimizer or schedule")
    return found


def class_path(kind: type) -> str:
    """The public name of a class of ours, and the place of any other.

    >>> class_path(Recurrent), class_path(nn.Linear)
    ('rnn_blocks.Recurrent', 'torch.nn.modules.linear.Linear')
    """
    public = getattr(import_module("rnn_blocks"), kind.__name__, None) is kind
    return f"rnn_blocks.{kind.__name__}" if public else f"{kind.__module__}.{kind.__qualname__}"


def _described(value: Any) -> Any:
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, list | tuple | nn.ModuleList):
        return [_described(part) for part in value]
    if isinstance(value, partial):
        keywords = {name: _described(part) for name, part in value.keywords.items()}
        return {CLASS: _path(_made_by(value)), ARGUMENTS: keywords}
    if isinstance(value, type):
        return {CLASS: _path(value), ARGUMENTS: {}}
    if isinstance(value, nn.Module | ScheduledSampling):
        return {CLASS: _path(type(value)), ARGUMENTS: _arguments(value)}
    raise NotDescribableError(f"{value!r} cannot be written as plain data")


def _made_by(factory: partial[Any]) -> type:
    """The class of a partial, also of one that jsonargparse made of a command line's options."""
    made: Any = factory.func
    by_parser = getattr(made, "__module__", "").startswith("jsonargparse") and factory.args
    made = factory.args[-1] if by_parser else made
    if not isinstance(made, type) or (factory.args and not by_parser):
        raise NotDescribableError(f"{factory!r} cannot be written as plain data")
    return made


def _path(kind: type) -> str:
    if "<locals>" in kind.__qualname__ or kind.__module__ == "__main__":
        raise NotDescribableError(f"{kind.__qualname__} lies in no module that could be imported")
    return class_path(kind)


def _arguments(whole: Any, *, besides: Sequence[str] = ()) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(type(whole).__init__).parameters.items())[1:]:
        if name in besides:
            continue
        for find in (_special, _attribute):
            try:
                arguments[name] = _described(find(whole, name))
                break
            except LookupError:
                continue
        else:
            if parameter.default is inspect.Parameter.empty:
                raise NotDescribableError(
                    f"{class_path(type(whole))}: its argument {name!r} cannot be told from it; "
                    f"a class of yours keeps it as an attribute of that name"
                )
    return arguments


def _attribute(whole: Any, name: str) -> Any:
    """A constructor's argument under its own name, or the names that our own classes have for it."""
    for found in (name, f"{name}_layer", f"initial_{name}"):
        value = getattr(whole, found, None if hasattr(whole, found) else whole)
        if value is not whole and not isinstance(value, Tensor) and not inspect.ismethod(value):
            return value
    pair = {"time_constant": ("shortest", "longest"), "p": ("p_hidden", "p_others")}.get(name)
    if pair is not None and all(hasattr(whole, part) for part in pair):
        return [getattr(whole, part) for part in pair]
    if name == "size" and isinstance(whole, Layer):
        return whole.input_size
    raise LookupError(name)


def _special(whole: Any, name: str) -> Any:
    """What a constructor has used up: the numbers that layers were made from."""
    if isinstance(whole, RecurrentStack):
        return _of_stack(whole, name)
    if isinstance(whole, Dilated) and name in ("cells", "dilations", "engine"):
        layers = [layer for layer in whole.layers if isinstance(layer, DilatedRecurrent)]
        each: dict[str, list[Any]] = {
            "cells": [layer.cell for layer in layers],
            "dilations": [layer.dilation for layer in layers],
        }
        return layers[0].engine if name == "engine" else each[name]
    if isinstance(whole, DeepOutput) and name == "output_size":
        return whole.hidden_size
    deep = [part for part in whole.children() if isinstance(part, MLP)] if isinstance(whole, Cell) else []
    if deep and name in ("layers", "width", "nonlinearity"):
        first = deep[0].layers[0]
        assert isinstance(first, nn.Linear)
        found = {"layers": len(deep[0].layers), "width": first.out_features, "nonlinearity": deep[0].nonlinearity}
        return found[name]
    raise LookupError(name)


def _of_stack(whole: RecurrentStack, name: str) -> Any:
    both_ways = isinstance(whole.layers[0], Bidirectional)
    one_way = [layer.forward_layer if isinstance(layer, Bidirectional) else layer for layer in whole.layers]
    first = one_way[0]
    if not isinstance(first, Recurrent):
        raise LookupError(name)
    widths = [layer.output_size for layer in one_way]
    uniform = len(set(widths)) == 1
    found: dict[str, Any] = {
        "hidden_size": widths[0] if uniform else widths,
        "num_layers": len(widths),
        "bidirectional": both_ways,
        "engine": first.engine,
        "init": "torch",  # what the weights began as is past
    }
    if name in found:
        return found[name]
    if name == "make_cell":
        sizes = list(inspect.signature(type(first.cell).__init__).parameters)[1:3]
        return partial(type(first.cell), **rebuilt_arguments(type(first.cell), _arguments(first.cell, besides=sizes)))
    return _attribute(whole if hasattr(whole, name) else first.cell, name)


def _differences(one: nn.Module, other: nn.Module) -> Iterator[str]:
    """Where two modules are not of the same parts, sizes and settings."""
    ours, theirs = dict(one.named_modules()), dict(other.named_modules())
    for name in [*ours, *theirs]:
        a, b = ours.get(name), theirs.get(name)
        if type(a) is not type(b) or a is None or b is None:
            yield f"{name or 'it'} would be {type(b).__name__}, not {type(a).__name__}"
            return
        if name not in theirs:
            continue
        settings = {key: value for key, value in vars(a).items() if key not in _OF_EVERY_MODULE}
        for key, value in settings.items():
            if key not in vars(b) or not _alike(value, vars(b)[key]):
                yield f"{f'{name}.' if name else ''}{key} would be {vars(b).get(key)!r}, not {value!r}"
    tensors = [[*module.named_parameters(), *module.named_buffers()] for module in (one, other)]
    shapes = [[(name, tuple(tensor.shape)) for name, tensor in found] for found in tensors]
    if shapes[0] != shapes[1]:
        yield f"the weights would be {shapes[1]}, not {shapes[0]}"


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if one is None or isinstance(one, _PLAIN):
        return bool(one == other) and type(one) is type(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    return type(one) is type(other) and (not callable(one) or isinstance(one, nn.Module) or one == other)
