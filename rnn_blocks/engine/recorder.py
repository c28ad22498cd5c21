"""Torch's operators, written into a graph as they run."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from rnn_blocks.engine.graph import aten, is_random
from rnn_blocks.engine.unchanged import memory_of

_PLAIN = Tensor.__torch_dispatch__


class NotRecordableError(RuntimeError):
    """A function does something with its inputs that leaves no operator in a record."""


@dataclass(frozen=True)
class Recording:
    """What a function of tensors did.

    Attributes:
        graph: placeholders for its inputs, a node for each operator, and its results as output; in each node's
            ``meta["val"]`` the tensor that it gave.
        constants: tensors that are none of its inputs, by the targets of their nodes.
        nodes: all that were ever in the graph.
    """

    graph: fx.Graph
    constants: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[fx.Node] = field(default_factory=list)

    def run(self, *inputs: Tensor) -> Any:
        """Run what was recorded."""
        values: dict[fx.Node, Any] = {}
        given = iter(inputs)
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = self.constants[str(node.target)]
            elif node.op == "output":
                break
            else:
                function: Any = node.target
                args, options = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = function(*args, **options)
        return fx.map_arg(node.args[0], values.__getitem__)

    def forget_values(self) -> None:
        """Let go of the tensors that the nodes gave: a graph is a circle, which Python frees late."""
        for node in (*self.nodes, *self.graph.nodes):
            node.meta.clear()


def recorded(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Recording:
    """Run ``function(*inputs)``, and record torch's operators in it and in the backward passes that it asks for.

    They are those that autograd has come down to, as by torch's ``make_fx``, in a seventh of the time: nothing is
    faked, and nothing is kept of where each operator was called.

    Args:
        function: of tensors to a list of tensors or ``None``.
        inputs: tensors; each is a placeholder.

    Raises:
        NotRecordableError: it asks for the numbers of a tensor that depends on its inputs or on chance, or takes such a
            tensor from elsewhere than from an operator.

    >>> graph = recorded(lambda x: [(x * 2).tanh()], [torch.ones(3)]).graph
    >>> [str(node.target) for node in graph.nodes]
    ['input0', 'aten.mul.Tensor', 'aten.tanh.default', 'output']
    """
    recorder = _Recorder()
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a weight that was cast before would be a constant
    try:
        given = [recorder.placeholder(tensor) for tensor in inputs]
        with recorder:
            results = function(*given)
        recorder.recording.graph.output([recorder.argument(result) for result in results])
    except BaseException:
        recorder.recording.forget_values()
        raise
    finally:
        torch.set_autocast_cache_enabled(cached)
    return recorder.recording


class _Recorder(TorchDispatchMode):
    supports_higher_order_operators = True  # such as torch.cond, which are one call more

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording(fx.Graph())
        self._nodes: dict[int, tuple[fx.Node, int]] = {}  # and the tensor's storage, by its id
        self._seen: list[Tensor] = []  # as long as they live their ids, and those of their storages, are theirs
        self._varying: set[int] = set()  # storages with numbers that depend on the inputs or on chance

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Whether torch's compiler works within it; `torch.cond` uses it."""
        return True

    def placeholder(self, tensor: Tensor) -> Tensor:
        """A tensor to put in for ``tensor``, which may be there twice."""
        tensor = tensor.detach()
        node = self.recording.graph.placeholder(f"input{len(self._seen)}")
        self._varying.add(memory_of(tensor))
        self._follow(tensor, node)
        return tensor

    def argument(self, value: Any) -> Any:
        """What stands for ``value`` in the graph."""
        if isinstance(value, Tensor):
            node, storage = self._nodes.get(id(value)) or (self._constant(value), memory_of(value))
            if storage != memory_of(value):
                raise NotRecordableError("it puts one tensor's numbers into another by a way that leaves no operator")
            return node
        if isinstance(value, list | tuple):
            return [self.argument(part) for part in value]
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        if any(type(value).__torch_dispatch__ is not _PLAIN and id(value) not in self._nodes for value in tensors):
            return NotImplemented  # a subclass says of what operators this is made
        is_operator = isinstance(func, torch._ops.OpOverload)
        if is_operator and any(value.is_inference() for value in tensors):  # autograd has not come down to simple ones
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func is aten.lift_fresh.default:  # of a constant, which a change in place would change for good
            func = aten.lift_fresh_copy.default
        arguments = tuple(self.argument(value) for value in args)
        options = {name: self.argument(value) for name, value in kwargs.items()}
        varies = not self._varying.isdisjoint(map(memory_of, tensors))
        if is_operator and torch.Tag.data_dependent_output in func.tags:
            if varies:
                raise NotRecordableError(f"it looks at numbers ({func})")
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if varies and isinstance(result, bool | int | float) and func.namespace != "aten":
            raise NotRecordableError(f"it makes a number of tensors ({func})")
        node = self.recording.graph.call_function(func, arguments, options)
        if varies or is_random(node):
            changed = tensors if is_operator and func._schema.is_mutable else []
            self._varying.update(map(memory_of, [*tensors_in(result), *changed]))
        self._follow(result, node)
        return result

    def _constant(self, tensor: Tensor) -> fx.Node:
        if memory_of(tensor) in self._varying:
            raise NotRecordableError(
                "it reads weights elsewhere than in its module, or another tensor by a way that leaves no operator"
            )
        name = f"constant{len(self.recording.constants)}"
        self.recording.constants[name] = tensor
        node = self.recording.graph.create_node("get_attr", name)
        self._follow(tensor, node)
        return node

    def _follow(self, result: Any, node: fx.Node) -> None:
        self.recording.nodes.append(node)
        if isinstance(result, Tensor):
            self._nodes[id(result)] = node, memory_of(result)
            self._seen.append(result)
            node.meta["val"] = result.detach()
        elif isinstance(result, list | tuple):
            node.meta["val"] = tuple(result)
            for number, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._follow(part, self.recording.graph.call_function(operator.getitem, (node, number)))


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in lists, tuples and dictionaries, one within another.

    >>> len(tensors_in([torch.ones(2), (1, {"a": torch.ones(3)})]))
    2
    """
    return list(_flat([value]))


def _flat(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _flat(value)
        elif isinstance(value, dict):
            yield from _flat(value.values())
