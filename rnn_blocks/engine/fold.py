"""Which parts of a recorded step may run once for all steps, with time folded into the batch.

A weight's gradient is a sum over steps and over the batch. Where its last operators treat the rows of a batch one by
one and then sum over them, running them on ``time * batch`` rows gives the sum over time as well: one large product in
place of many small ones.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from rnn_blocks.engine.graph import RESHAPES, aten, cat_dim, is_call, meta

_LINEAR = (aten.t.default, aten.view.default, aten._to_copy.default, aten._unsafe_view.default, aten.neg.default)
_POINTWISE = (
    aten._to_copy.default,
    aten.log_sigmoid_forward.default,
    aten.log_sigmoid_backward.default,
    aten.softplus_backward.default,
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.fill.Scalar,
)


class Folding:
    """Sorts nodes into those that treat a batch row by row and those that sum over its rows.

    A row of the batch may be several rows of a value, as where attention compares each with many positions: then each
    row's lie together.

    Args:
        stepwise: placeholders whose first dimension is the batch.
        steady: nodes that are the same at all steps.
        batched: nodes that are the same at all steps with a row for each of the batch, such as a locked mask.
    """

    def __init__(self, stepwise: Iterable[fx.Node], steady: set[fx.Node], batched: set[fx.Node]) -> None:
        self._steady, self._batched = steady, batched
        self._rows = dict.fromkeys(stepwise, True)
        self._batch = next((meta(node)[0][0] for node in self._rows), 1)
        self._one_step: set[fx.Node] = set()  # by rows, but for the batch of one step alone

    def is_rows(self, node: Any) -> bool:
        """Whether row ``n`` of the node's value depends on row ``n`` of what is stepwise, and on what is steady."""
        if not isinstance(node, fx.Node) or node in self._steady:
            return False
        if node not in self._rows:
            self._rows[node] = self._finds_rows(node)
        return self._rows[node]

    def _finds_rows(self, node: fx.Node) -> bool:
        args: Any = node.args
        if node.op != "call_function":
            return False
        if is_call(node, aten.mm.default):
            return self.is_rows(args[0]) and args[1] in self._steady
        if is_call(node, aten.addmm.default):
            bias = self.is_rows(args[0]) or (args[0] in self._steady and len(meta(args[0])[0]) == 1)
            return bias and self.is_rows(args[1]) and args[2] in self._steady
        if is_call(node, aten.split.Tensor, aten.split_with_sizes.default):
            dim = args[2] if len(args) > 2 else 0
            return dim % len(meta(args[0])[0]) != 0 and self.is_rows(args[0])
        if is_call(node, aten.cat.default):
            return cat_dim(node) != 0 and all(self.is_rows(part) for part in args[0])
        if is_call(node, *RESHAPES):
            return self._keeps_rows(node)
        if is_call(node, aten.bmm.default):
            self._one_step.add(node)
            return self.is_rows(args[0]) and (self.is_rows(args[1]) or args[1] in self._batched)
        if is_call(node, aten.sum.dim_IntList, aten._softmax.default):
            dims = args[1] if isinstance(args[1], list | tuple) else [args[1]]
            return 0 not in [dim % len(meta(args[0])[0]) for dim in dims] and self.is_rows(args[0])
        if is_call(node, aten._softmax_backward_data.default):
            return args[2] % len(meta(args[0])[0]) != 0 and self.is_rows(args[0]) and self.is_rows(args[1])
        if is_call(node, aten.slice.Tensor):
            return len(args) > 1 and args[1] % len(meta(args[0])[0]) != 0 and self.is_rows(args[0])
        if is_call(node, aten.native_layer_norm.default):
            return self.is_rows(args[0]) and len(args[1]) < len(meta(args[0])[0])
        if is_call(node, aten.native_layer_norm_backward.default):
            return all(self.is_rows(args[k]) for k in (0, 1, 3, 4)) and len(args[2]) < len(meta(args[1])[0])
        if getattr(node.target, "__name__", "") == "getitem":
            gradient_of_weights = is_call(args[0], aten.native_layer_norm_backward.default) and args[1] != 0
            return self.is_rows(args[0]) and not gradient_of_weights
        pointwise = isinstance(node.target, torch._ops.OpOverload) and (
            torch.Tag.pointwise in node.target.tags or node.target in _POINTWISE
        )
        return pointwise and self._aligned(node)

    def _keeps_rows(self, node: fx.Node) -> bool:
        """Whether each row's numbers lie together after a reshape as before."""
        args: Any = node.args
        if not self._batch or not self.is_rows(args[0]) or not meta(node)[0] or meta(node)[0][0] % self._batch:
            return False
        if is_call(node, aten.view.default, aten._unsafe_view.default):
            self._one_step.add(node)  # to sizes that are those of one step
            return True
        dims = args[1] if isinstance(args[1], list | tuple) else [args[1]]
        return 0 not in [dim % max(len(meta(node)[0]), len(meta(args[0])[0])) for dim in dims]

    def _aligned(self, node: fx.Node) -> bool:
        """Whether the operands of a pointwise operator have their rows where the result has its own."""
        value = node.meta["val"]
        shape = (value if isinstance(value, torch.Tensor) else value[0]).shape
        dims, rows = len(shape), shape[0] if shape else 0
        found = False
        for operand in node.all_input_nodes:
            shape = meta(operand)[0]
            if self.is_rows(operand):
                if len(shape) != dims or shape[0] != rows:
                    return False
                found = True
            elif operand in self._batched:
                if len(shape) != dims:
                    return False
                self._one_step.add(node)
            elif operand not in self._steady or (len(shape) == dims and shape[0] != 1):
                return False
        return found

    def is_sum(self, node: Any) -> bool:
        """Whether the node's value is a sum over rows: run on all steps at once, it is the sum over all steps."""
        if not isinstance(node, fx.Node) or node.op != "call_function":
            return False
        args: Any = node.args
        if is_call(node, *_LINEAR) and len(node.all_input_nodes) == 1:
            return self.is_sum(args[0])
        if is_call(node, aten.cat.default):  # of the gradients of a weight's parts
            return all(self.is_sum(part) for part in args[0])
        if is_call(node, aten.mm.default):
            return is_call(args[0], aten.t.default) and self.is_rows(args[0].args[0]) and self.is_rows(args[1])
        if is_call(node, aten.sum.dim_IntList):
            return self.is_rows(args[0]) and 0 in [dim % len(meta(args[0])[0]) for dim in args[1]]
        if getattr(node.target, "__name__", "") == "getitem":
            return is_call(args[0], aten.native_layer_norm_backward.default) and args[1] != 0 and self.is_rows(args[0])
        return False

    def tail(self, node: fx.Node, core: set[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
        """What a sum is made of: the nodes to run on all steps at once, and those that run at each step and they take.

        These are of ``core``, or cannot be run on all steps at once: they name sizes of one step, or take an operand
        with the rows of one batch alone.
        """
        inside: list[fx.Node] = []
        leaves: list[fx.Node] = []
        pending = [node]
        while pending:
            node = pending.pop()
            if node in self._steady or node in inside or node in leaves:
                continue
            known = node in core or node in self._one_step
            if known and isinstance(node.meta["val"], torch.Tensor):  # a tuple cannot be kept, but made again
                leaves.append(node)
                continue
            inside.append(node)
            pending.extend(node.all_input_nodes)
        return inside, leaves
