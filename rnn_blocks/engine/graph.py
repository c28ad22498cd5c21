"""The graph of a recorded step: what its nodes are, and the same sums in fewer operators."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from rnn_blocks.engine.products import multiplies_slowly

aten = torch.ops.aten

RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims}
"""Operators that leave the numbers and their order as they are."""

_SAME = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}


def is_call(node: Any, *targets: Any) -> bool:
    """Whether ``node`` calls one of ``targets``."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def meta(node: fx.Node) -> tuple[torch.Size, torch.dtype]:
    """The shape and dtype of a node's tensor."""
    value = node.meta["val"]
    return value.shape, value.dtype


def is_random(node: fx.Node) -> bool:
    """Whether a node draws random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def changes_tensors(node: fx.Node) -> bool:
    """Whether a node works in place."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def looks_at_numbers(node: fx.Node) -> bool:
    """Whether the numbers that a node is given say of what shape its result is."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.dynamic_output_shape not in node.target.tags:
        return False
    if node.target is not aten.index.Tensor:
        return True
    places: Any = node.args[1]
    return any(place is not None and meta(place)[1] in (torch.bool, torch.uint8) for place in places)


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """``nodes`` and all that they are made of."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def cat_dim(node: fx.Node) -> int:
    """The dimension of a ``cat``."""
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    return int(dim) % len(meta(node)[0])


def tidy(graph: fx.Graph) -> None:
    """Take out what does nothing, and make one operator of two where torch has one."""
    for node in list(graph.nodes):
        if is_call(node, *_SAME):
            node.replace_all_uses_with(node.args[0])
        elif is_call(node, aten.t.default) and is_call(node.args[0], aten.t.default):
            node.replace_all_uses_with(node.args[0].args[0])
        elif is_call(node, *RESHAPES):
            _shorten_reshape(node)
        elif is_call(node, aten.mul.Tensor, aten.mul.Scalar) and node.args[1] == 1 and meta(node) == meta(node.args[0]):
            node.replace_all_uses_with(node.args[0])
        elif is_call(node, aten.add.Tensor) and not node.kwargs:
            _fuse_sum(graph, node)
        elif is_call(node, aten.cat.default):
            _flatten_cat(node)
        elif is_call(node, aten.native_layer_norm_backward.default):
            _part_layer_norm(graph, node)
    widen_products(graph)
    graph.eliminate_dead_code()


def widen_products(graph: fx.Graph) -> None:
    """Products that this CPU makes slowly in their dtype are made in float32 and rounded after."""
    widened: dict[fx.Node, fx.Node] = {}

    def in_float32(node: fx.Node) -> fx.Node:
        if node not in widened:
            base: Any = node.args[0] if is_call(node, aten.t.default) else node
            with graph.inserting_after(node):
                wide = _call(graph, aten._to_copy.default, (base,), base.meta["val"].float(), dtype=torch.float32)
            if base is not node:
                with graph.inserting_after(wide):
                    wide = _call(graph, aten.t.default, (wide,), wide.meta["val"].t())
            widened[node] = wide
        return widened[node]

    for node in list(graph.nodes):
        if not is_call(node, aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default):
            continue
        value = node.meta["val"]
        if not multiplies_slowly(value.dtype, value.device):
            continue
        operands: Any = [in_float32(operand) for operand in node.args]
        with graph.inserting_before(node):
            product = _call(graph, node.target, tuple(operands), value.float(), **node.kwargs)
            rounded = _call(graph, aten._to_copy.default, (product,), value, dtype=value.dtype)
        node.replace_all_uses_with(rounded)
        graph.erase_node(node)


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...], value: Any, **options: Any) -> fx.Node:
    node = graph.call_function(target, args, options)
    node.meta["val"] = value
    return node


def _shorten_reshape(node: fx.Node) -> None:
    """A reshape of a reshape takes the first one's operand; one that gives back the shape of the first is nothing."""
    base: Any = node.args[0]
    while is_call(base, *RESHAPES):
        base = base.args[0]
        if meta(base) == meta(node):
            node.replace_all_uses_with(base)
            return
    if is_call(node, aten.view.default, aten._unsafe_view.default):
        node.args = (base, *node.args[1:])


def _fuse_sum(graph: fx.Graph, node: fx.Node) -> None:
    """``x + a @ b``, that for each of a batch, ``x + a * b`` and ``x + (-y)``."""
    for operand, other in (node.args, node.args[::-1]):
        if not isinstance(operand, fx.Node) or not isinstance(other, fx.Node) or len(operand.users) != 1:
            continue
        if meta(other) != meta(operand) or meta(other) != meta(node):
            continue
        if operand.target is aten.mm.default:
            fused = aten.addmm.default
        elif operand.target is aten.bmm.default:
            fused = aten.baddbmm.default
        elif operand.target is aten.mul.Tensor and all(isinstance(a, fx.Node) for a in operand.args):
            fused = aten.addcmul.default
        elif operand.target is aten.neg.default:
            fused = aten.sub.Tensor
        else:
            continue
        with graph.inserting_before(node):
            replacement = graph.call_function(fused, (other, *operand.args))
        replacement.meta = dict(node.meta)
        node.replace_all_uses_with(replacement)
        return


def _flatten_cat(node: fx.Node) -> None:
    """``cat([cat([a, b]), c])`` is ``cat([a, b, c])``."""
    last = len(meta(node)[0]) - 1
    if cat_dim(node) != last:
        return
    parts: list[fx.Node] = []
    operands: Any = node.args[0]
    for part in operands:
        nested = is_call(part, aten.cat.default) and cat_dim(part) == last
        parts.extend(part.args[0] if nested else [part])
    node.args = (parts, last)


def _part_layer_norm(graph: fx.Graph, node: fx.Node) -> None:
    """The gradients of a layer norm's weights apart from its input's, which alone is needed to go on."""
    weights = [user for user in node.users if user.args[1] != 0]
    if not weights or len(weights) == len(node.users):
        return
    arguments: Any = node.args
    target: Any = node.target
    *operands, mask = arguments
    with graph.inserting_before(node):
        apart = graph.call_function(target, (*operands, [False, *mask[1:]]))
    apart.meta = dict(node.meta)
    node.args = (*operands, [True, False, False])
    for user in weights:
        user.replace_input_with(node, apart)
