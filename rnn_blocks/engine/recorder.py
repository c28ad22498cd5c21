"""Torch's operators, written into a graph as they run."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from rnn_blocks.engine.graph import aten, is_random

_PLAIN = Tensor.__torch_dispatch__


class LooksAtNumbersError(RuntimeError):
    """A function asks for the numbers of a tensor that other calls will hold others in."""


@dataclass(frozen=True)
class Recording:
    """What a function of tensors did.

    Attributes:
        graph: placeholders for its inputs, a node for each operator, and its results as output; in each node's
            ``meta["val"]`` the tensor that it gave.
        constants: tensors that are none of its inputs, by the targets of their nodes.
    """

    graph: fx.Graph
    constants: dict[str, Tensor] = field(default_factory=dict)

    def run(self, *inputs: Tensor) -> Any:
        """Run what was recorded."""
        root = torch.nn.Module()
        for name, tensor in self.constants.items():
            root.register_buffer(name, tensor)
        return fx.Interpreter(fx.GraphModule(root, self.graph)).run(*inputs)

    def forget_values(self) -> None:
        """Let go of the tensors that the nodes gave: a graph is a circle, which Python frees late."""
        for node in self.graph.nodes:
            node.meta.clear()


def recorded(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Recording:
    """Run ``function(*inputs)``, and record torch's operators in it and in the backward passes that it asks for.

    They are those that autograd has come down to, as by torch's ``make_fx``, in a seventh of the time: nothing is
    faked, and nothing is kept of where each operator was called.

    Args:
        function: of tensors to a list of tensors or ``None``.
        inputs: tensors; each is a placeholder.

    Raises:
        LooksAtNumbersError: it asks for the numbers of a tensor that depends on its inputs or on chance.

    >>> graph = recorded(lambda x: [(x * 2).tanh()], [torch.ones(3)]).graph
    >>> [str(node.target) for node in graph.nodes]
    ['input0', 'aten.mul.Tensor', 'aten.tanh.default', 'output']
    """
    recorder = _Recorder()
    given = [recorder.placeholder(tensor) for tensor in inputs]
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a weight that was cast before would be a constant
    try:
        with recorder:
            results = function(*given)
    finally:
        torch.set_autocast_cache_enabled(cached)
    recorder.recording.graph.output([recorder.argument(result) for result in results])
    return recorder.recording


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording(fx.Graph())
        self._nodes: dict[int, fx.Node] = {}  # by the tensor's id
        self._seen: list[Tensor] = []  # as long as they live their ids are theirs
        self._varying: set[fx.Node] = set()

    def placeholder(self, tensor: Tensor) -> Tensor:
        """A tensor to put in for ``tensor``, which may be there twice."""
        tensor = tensor.detach()
        node = self.recording.graph.placeholder(f"input{len(self._seen)}")
        self._varying.add(node)
        self._follow(tensor, node)
        return tensor

    def argument(self, value: Any) -> Any:
        """What stands for ``value`` in the graph."""
        if isinstance(value, Tensor):
            return self._nodes.get(id(value)) or self._constant(value)
        if isinstance(value, list | tuple):
            return [self.argument(part) for part in value]
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        if any(type(value).__torch_dispatch__ is not _PLAIN and id(value) not in self._nodes for value in tensors):
            return NotImplemented  # a subclass says of what operators this is made
        if any(value.is_inference() for value in tensors):  # autograd has not come down to simple operators
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func is aten.lift_fresh.default:  # of a constant, which a change in place would change for good
            func = aten.lift_fresh_copy.default
        arguments = [self.argument(value) for value in args]
        options = {name: self.argument(value) for name, value in kwargs.items()}
        node = self.recording.graph.call_function(func, tuple(arguments), options)
        varies = is_random(node) or any(operand in self._varying for operand in node.all_input_nodes)
        if torch.Tag.data_dependent_output in func.tags:
            self.recording.graph.erase_node(node)
            if varies:
                raise LooksAtNumbersError(f"it looks at numbers ({func})")
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if varies:
            self._varying.add(node)
        self._follow(result, node)
        return result

    def _constant(self, tensor: Tensor) -> fx.Node:
        name = f"constant{len(self.recording.constants)}"
        self.recording.constants[name] = tensor
        node = self.recording.graph.create_node("get_attr", name)
        self._follow(tensor, node)
        return node

    def _follow(self, result: Any, node: fx.Node) -> None:
        if isinstance(result, Tensor):
            self._nodes[id(result)] = node
            self._seen.append(result)
            node.meta["val"] = result.detach()
        elif isinstance(result, list | tuple):
            node.meta["val"] = tuple(result)
            for number, part in enumerate(result):
                if isinstance(part, Tensor):
                    one = self.recording.graph.call_function(operator.getitem, (node, number))
                    if node in self._varying:
                        self._varying.add(one)
                    self._follow(part, one)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
