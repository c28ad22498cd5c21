"""Runs of graph nodes as Python functions."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from rnn_blocks.engine.compile import Written
from rnn_blocks.engine.graph import aten, is_call
from rnn_blocks.engine.products import sum_of_products
from rnn_blocks.engine.recorder import Recording

# torch's own bindings parse their arguments faster than an operator called through torch.ops, and write to `out`
_BINDINGS: dict[Any, tuple[Callable[..., Any], str]] = {
    aten.add.Tensor: (torch.add, "out"),
    aten.sub.Tensor: (torch.sub, "out"),
    aten.mul.Tensor: (torch.mul, "out"),
    aten.div.Tensor: (torch.div, "out"),
    aten.addcmul.default: (torch.addcmul, "out"),
    aten.neg.default: (torch.neg, "out"),
    aten.exp.default: (torch.exp, "out"),
    aten.sigmoid.default: (torch.sigmoid, "out"),
    aten.tanh.default: (torch.tanh, "out"),
    aten.mm.default: (torch.mm, "out"),
    aten.addmm.default: (torch.addmm, "out"),
    aten.baddbmm.default: (torch.baddbmm, "out"),
    aten.bmm.default: (torch.bmm, "out"),
    aten.cat.default: (torch.cat, "out"),
    aten.where.self: (torch.where, "out"),
    aten.maximum.default: (torch.maximum, "out"),
    aten.t.default: (torch.t, ""),
    aten.relu.default: (torch.relu, ""),
    aten.native_layer_norm.default: (torch.native_layer_norm, ""),
    aten.lerp.Tensor: (torch.lerp, "out"),
    aten.logaddexp.default: (torch.logaddexp, "out"),
    aten.rsub.Scalar: (torch.rsub, ""),
    aten.split.Tensor: (torch.unsafe_split, ""),
    aten.split_with_sizes.default: (torch.unsafe_split_with_sizes, ""),
}
_WRITING = {
    aten.sigmoid_backward.default: aten.sigmoid_backward.grad_input,
    aten.tanh_backward.default: aten.tanh_backward.grad_input,
    aten.threshold_backward.default: aten.threshold_backward.grad_input,
    aten.softplus_backward.default: aten.softplus_backward.grad_input,
    aten.log_sigmoid_backward.default: aten.log_sigmoid_backward.grad_input,
}


def can_write(node: fx.Node) -> bool:
    """Whether the operator of a node can be told where to put its result."""
    return bool(_BINDINGS.get(node.target, (None, ""))[1]) or node.target in _WRITING


def _reads(node: fx.Node) -> list[fx.Node]:
    """What the expression of a node names."""
    if is_call(node, aten.mm.default) and is_call(node.args[0], aten.t.default):  # a sum of products, see below
        return [*node.all_input_nodes, *node.args[0].all_input_nodes]  # type: ignore[union-attr]
    return node.all_input_nodes


class Writer:
    """Writes functions that share the names of a graph's nodes.

    Args:
        recording: the graph and its constants.
    """

    def __init__(self, recording: Recording) -> None:
        self._constants = recording.constants
        self.names = {node: f"v{k}" for k, node in enumerate(recording.graph.nodes)}
        self.sources: list[str] = []
        self._written: dict[Callable[..., Any], Written] = {}
        self.in_place: dict[fx.Node, str] = {}
        """Values that stand in a tensor as soon as their parts do."""
        self.products: dict[fx.Node, str] = {}
        """Functions that multiply by a packed factor."""

    def listing(self, nodes: Sequence[fx.Node | None]) -> str:
        """A tuple of the nodes' values."""
        return f"({''.join('None, ' if n is None else f'{self.names[n]}, ' for n in nodes)})"

    def function(
        self,
        name: str,
        arguments: Sequence[str],
        body: Sequence[fx.Node],
        result: str,
        targets: dict[fx.Node, list[str]] | None = None,
        *,
        copied: bool = False,
        taken: Sequence[fx.Node] = (),
    ) -> Any:
        """A function of ``arguments`` that runs ``body`` and returns ``result``.

        ``targets`` are the tensors that some nodes' values are to be written to, where ``copied`` at the end, as the
        compiler expects it. The values of ``taken`` are large: the function asks for each by ``take(number)`` when it
        needs it, and lets go of it, and of what it makes of it, when it is done.
        """
        targets = targets or {}
        scope: dict[str, Any] = {"sum_of_products": sum_of_products}
        lines = [f"def {name}({', '.join(arguments)}):"]
        last = {value: node for node in body for value in _reads(node)} if taken else {}
        kept = {node for node in last if node not in body and node not in taken}
        for node in body:
            for value in node.all_input_nodes:
                if value in taken and f"    {self.names[value]} = take({taken.index(value)})" not in lines:
                    lines.append(f"    {self.names[value]} = take({taken.index(value)})")
            places = [] if copied else targets.get(node, [])
            if node in self.in_place:
                lines.append(f"    {self.names[node]} = {self.in_place[node]}")
                places = [place for place in places if place != self.in_place[node]]
                written = False
            else:
                call, written = self._call(node, scope, places[0] if places else None)
                lines.append(f"    {self.names[node]} = {call}")
            lines += [f"    {place}.copy_({self.names[node]})" for place in places[written:]]
            done = [self.names[v] for v in _reads(node) if last.get(v) is node and v not in kept]
            if done:
                lines.append(f"    {' = '.join(done)} = None")
        for node, places in targets.items():
            if copied or node not in body:
                lines += [f"    {place}.copy_({self.names[node]})" for place in places]
        lines.append(f"    return {result}")
        source = "\n".join(lines)
        self.sources.append(source)
        function = Written(name, source, scope).function()  # written above from the graph's own nodes
        self._written[function] = Written(name, source, scope)
        return function

    def written(self, function: Callable[..., Any]) -> Written:
        """A function of this writer's in words."""
        return self._written[function]

    def _call(self, node: fx.Node, scope: dict[str, Any], target: str | None) -> tuple[str, bool]:
        """The expression, and whether it writes to ``target``."""
        if node.op == "get_attr":
            scope[f"c_{node.name}"] = self._constants[str(node.target)]
            return f"c_{node.name}", False
        function: Any = node.target
        args: Any = node.args
        if function is operator.getitem:
            return f"{self._value(args[0], scope)}[{args[1]}]", False
        if is_call(node, aten.mm.default) and is_call(args[0], aten.t.default) and not target:
            return f"sum_of_products({self._value(args[0].args[0], scope)}, {self._value(args[1], scope)})", False
        if is_call(node, aten.mm.default, aten.addmm.default) and args[-1] in self.products:
            product = f"{self.products[args[-1]]}({self.names[args[-2]]})"
            return (product if is_call(node, aten.mm.default) else f"{self.names[args[0]]} + {product}"), False
        binding, out = _BINDINGS.get(function, (function, ""))
        if target and function in _WRITING:
            binding, out = _WRITING[function], "grad_input"
        name = f"{node.name}_op"
        scope[name] = binding
        arguments = [self._value(argument, scope) for argument in args]
        arguments += [f"{k}={self._value(v, scope)}" for k, v in node.kwargs.items()]
        written = bool(target and out)
        if written:
            arguments.append(f"{out}={target}")
        return f"{name}({', '.join(arguments)})", written

    def _value(self, value: Any, scope: dict[str, Any]) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, list | tuple):
            return f"[{', '.join(self._value(v, scope) for v in value)}]"
        if value is None or isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value)):
            return repr(value)
        scope[f"k{len(scope)}"] = value
        return f"k{len(scope) - 1}"
