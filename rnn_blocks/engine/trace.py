"""One step of time, traced once and split into what runs when.

The step and its derivative are recorded as one graph of torch's own operators (``make_fx`` over autograd). Each node of it
then belongs to one of three programs:

- *invariant*: depends on weights alone, runs once a sequence;
- *forward*: what the outputs need, runs at each step, and keeps what the derivative will ask for;
- *backward*: the rest, runs at each step from the last to the first.

A weight's gradient is a sum over the steps. Where a step's part of it is a product ``A_tᵀ B_t`` the factors are collected and the
sum is one product over all steps; where it is a sum over the batch, the summands are; else the parts are added up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

Joint = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


class NotTraceableError(ValueError):
    """A step that cannot be recorded: it changes tensors in place, or looks at their numbers."""


@dataclass(frozen=True)
class WeightGradient:
    """How the gradient of one weight is put together from the steps.

    ``kind`` is "product" (``Σ leftᵀ right``), "sum" (of ``left`` over time and ``dims``) or "total" (``Σ left``); ``left``
    and ``right`` number what the backward program collects; ``finish`` are the linear operators that follow.
    """

    kind: str
    left: int
    right: int
    dims: tuple[int, ...]
    keepdim: bool
    finish: tuple[tuple[Any, tuple[Any, ...], dict[str, Any]], ...]


@dataclass(frozen=True)
class Program:
    """The three programs and how they hang together.

    ``invariant(*constants) -> kept``; ``forward(*projected, *masks, *state, *constants, *kept) -> (results, saved)``;
    ``backward(*saved, *tangents, *constants, *kept) -> (projected gradients, state gradients, collected)``.
    """

    invariant: Callable[..., tuple[Tensor, ...]]
    forward: Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
    backward: Callable[..., tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...], tuple[Tensor, ...]]]
    weight_gradients: tuple[WeightGradient | None, ...]
    sources: str


def trace_step(
    step: Joint,
    projected: Sequence[Tensor],
    masks: Sequence[Tensor],
    state: Sequence[Tensor],
    constants: Sequence[Tensor],
    *,
    projected_need: Sequence[bool],
    constants_need: Sequence[bool],
    differentiate: bool,
) -> Program:
    """Trace ``step(projected, masks, state, constants) -> [output, *state]`` at the shapes given.

    Args:
        step: a pure function of tensors.
        projected: one step's slices.
        masks: one step's masks.
        state: the state's tensors.
        constants: weights and whatever else is the same at all steps.
        projected_need: which of ``projected`` take a gradient.
        constants_need: which of ``constants`` take a gradient.
        differentiate: whether there will be a backward pass.

    Raises:
        NotTraceableError: where the step cannot be recorded.
    """
    groups = [len(projected), len(masks), len(state), len(constants)]
    state_need = [_takes_gradient(tensor) for tensor in state]
    needs = [*projected_need, *[False] * len(masks), *state_need, *constants_need]
    inputs = [*projected, *masks, *state, *constants]

    def joint(*flat: Tensor) -> list[Tensor | None]:
        given, tangents = flat[: sum(groups)], flat[sum(groups) :]
        with torch.enable_grad():
            primals = [
                tensor.detach().requires_grad_(need and differentiate)
                for tensor, need in zip(given, needs, strict=True)
            ]
            parts = iter(primals)
            results = step(*([next(parts) for _ in range(size)] for size in groups))
            if not differentiate:
                return list(results)
            pairs = [(r, t) for r, t in zip(results, tangents, strict=True) if r.requires_grad]
            wanted = [primal for primal, need in zip(primals, needs, strict=True) if need]
            found: Sequence[Tensor | None] = [None] * len(wanted)
            if pairs and wanted:
                outs, grads = zip(*pairs, strict=True)
                found = torch.autograd.grad(outs, wanted, grads, allow_unused=True)
        gradients = iter(found)
        return [*results, *(next(gradients) if need else None for need in needs)]

    devices = sorted({tensor.device.index or 0 for tensor in inputs if tensor.is_cuda})
    with torch.random.fork_rng(devices=devices):  # recording a step draws what running it would
        try:
            with torch.no_grad():
                tangents = [torch.zeros_like(r) for r in step(projected, masks, state, constants)]
            module = make_fx(joint)(*inputs, *tangents)
        except (RuntimeError, TypeError) as error:
            raise NotTraceableError(f"this step cannot be recorded: {error}") from error
    return _Splitter(module, groups, len(tangents), needs).program()


def _takes_gradient(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


_VIEWS = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}
_LINEAR = {aten.t.default, aten.view.default, aten._to_copy.default, aten._unsafe_view.default, aten.neg.default}


class _Splitter:
    """Sorts the nodes of a joint graph into the three programs and writes them as Python."""

    def __init__(self, module: fx.GraphModule, groups: Sequence[int], num_results: int, needs: Sequence[bool]) -> None:
        self.module, self.graph = module, module.graph
        self._tidy()
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        edges = [0]
        for size in [*groups, num_results]:
            edges.append(edges[-1] + size)
        parts = [placeholders[a:b] for a, b in zip(edges, edges[1:], strict=False)]
        self.projected, self.masks, self.state, self.constants, self.tangents = parts
        outputs: Any = next(node for node in self.graph.nodes if node.op == "output").args[0]
        self.results = list(outputs[:num_results])
        gradients = list(outputs[num_results:]) or [None] * len(needs)
        self.projected_grads = gradients[: edges[1]]
        self.state_grads = gradients[edges[2] : edges[3]]
        self.constant_grads = gradients[edges[3] :]
        self._classify()

    def _tidy(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                if node.target._schema.is_mutable:
                    raise NotTraceableError(f"this step cannot be recorded: {node.target} changes a tensor in place")
                if node.target in _VIEWS:
                    node.replace_all_uses_with(node.args[0])
                elif node.target is aten.t.default and _is_call(node.args[0], aten.t.default):
                    node.replace_all_uses_with(node.args[0].args[0])
                elif node.target is aten.add.Tensor and not node.kwargs:
                    self._add_to_product(node)
        self.graph.eliminate_dead_code()

    def _add_to_product(self, node: fx.Node) -> None:
        """``x + a @ b`` is one operation."""
        for product, other in (node.args, node.args[::-1]):
            if (
                _is_call(product, aten.mm.default)
                and len(product.users) == 1
                and isinstance(other, fx.Node)
                and _dtype(other) == _dtype(product)
                and other.meta["val"].shape == product.meta["val"].shape
            ):
                with self.graph.inserting_before(node):
                    fused = self.graph.call_function(aten.addmm.default, (other, *product.args))
                fused.meta = dict(node.meta)
                node.replace_all_uses_with(fused)
                return

    def _classify(self) -> None:
        varying, derivative = {*self.projected, *self.masks, *self.state}, {*self.tangents}
        self.order = [node for node in self.graph.nodes if node.op in ("call_function", "get_attr")]
        for node in self.order:
            inputs = node.all_input_nodes
            if any(i in derivative for i in inputs):
                derivative.add(node)
            elif any(i in varying for i in inputs) or _is_random(node):
                varying.add(node)
        needed: set[fx.Node] = set()
        pending = [node for node in self.results if isinstance(node, fx.Node)]
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                pending.extend(node.all_input_nodes)
        self.invariant = [n for n in self.order if n not in varying and n not in derivative]
        self.forward = [n for n in self.order if n in varying and n in needed]
        self.backward = [n for n in self.order if n in derivative or (n in varying and n not in needed)]
        steady = {*self.constants, *self.invariant}
        self.steady = steady
        stepwise = {*self.forward, *self.projected, *self.masks, *self.state}
        self.stepwise = stepwise

    def _weight_gradient(self, node: fx.Node | None, collected: list[fx.Node]) -> WeightGradient | None:
        if node is None:
            return None

        def collect(of: fx.Node) -> int:
            if of not in collected:
                collected.append(of)
            return collected.index(of)

        finish: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        end = node
        while end.op == "call_function" and end.target in _LINEAR and len(end.all_input_nodes) == 1:
            finish.append((end.target, end.args[1:], dict(end.kwargs)))
            end = end.args[0]  # type: ignore[assignment]
        done = tuple(reversed(finish))
        if _is_call(end, aten.mm.default):
            left, right = end.args
            if _is_call(left, aten.t.default) and left.args[0] not in self.steady and right not in self.steady:
                return WeightGradient("product", collect(left.args[0]), collect(right), (), False, done)
        if _is_call(end, aten.sum.dim_IntList) and not end.kwargs:
            source, dims, *keepdim = end.args
            if source not in self.steady and 0 in [d % source.meta["val"].dim() for d in dims]:
                axes = tuple(d % source.meta["val"].dim() for d in dims)
                return WeightGradient("sum", collect(source), -1, axes, bool(keepdim and keepdim[0]), done)
        return WeightGradient("total", collect(node), -1, (), False, ())

    def program(self) -> Program:
        collected: list[fx.Node] = []
        weight_gradients = tuple(self._weight_gradient(node, collected) for node in self.constant_grads)
        backward_results = [*self.projected_grads, *self.state_grads, *collected]
        live = _ancestors([n for n in backward_results if isinstance(n, fx.Node)])
        self.backward = [node for node in self.backward if node in live]
        used = {i for node in self.backward for i in node.all_input_nodes} | {
            n for n in backward_results if isinstance(n, fx.Node)
        }
        saved = [n for n in self.graph.nodes if n in self.stepwise and n in used]
        kept = list(self.invariant)
        names = {node: f"v{k}" for k, node in enumerate(self.graph.nodes)}
        given = [*self.constants, *kept]
        writer = _Writer(self.module, names)
        tuples = writer.tuple
        invariant = writer.function("invariant", self.constants, self.invariant, tuples(kept))
        forward = writer.function(
            "forward",
            [*self.projected, *self.masks, *self.state, *given],
            self.forward,
            f"{tuples(self.results)}, {tuples(saved)}",
        )
        backward = writer.function(
            "backward",
            [*saved, *self.tangents, *given],
            self.backward,
            f"{tuples(self.projected_grads)}, {tuples(self.state_grads)}, {tuples(collected)}",
        )
        return Program(invariant, forward, backward, weight_gradients, "\n".join(writer.sources))


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def _is_call(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


# torch's own bindings parse their arguments faster than an operator called through torch.ops
_BINDINGS = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.neg.default: torch.neg,
    aten.exp.default: torch.exp,
    aten.sigmoid.default: torch.sigmoid,
    aten.tanh.default: torch.tanh,
    aten.relu.default: torch.relu,
    aten.mm.default: torch.mm,
    aten.addmm.default: torch.addmm,
    aten.t.default: torch.t,
    aten.cat.default: torch.cat,
    aten.where.self: torch.where,
    aten.maximum.default: torch.maximum,
}


class _Writer:
    """Writes runs of nodes as Python functions."""

    def __init__(self, module: fx.GraphModule, names: dict[fx.Node, str]) -> None:
        self.module, self.names = module, names
        self.sources: list[str] = []

    def tuple(self, nodes: Sequence[fx.Node | None]) -> str:
        return f"({''.join('None, ' if n is None else f'{self.names[n]}, ' for n in nodes)})"

    def function(self, name: str, arguments: Sequence[fx.Node], body: Sequence[fx.Node], result: str) -> Any:
        scope: dict[str, Any] = {}
        lines = [f"def {name}({', '.join(self.names[node] for node in arguments)}):"]
        for node in body:
            lines.append(f"    {self.names[node]} = {self._call(node, scope)}")
        lines.append(f"    return {result}")
        source = "\n".join(lines)
        self.sources.append(source)
        exec(source, scope)  # written above from the graph's own nodes
        return scope[name]

    def _call(self, node: fx.Node, scope: dict[str, Any]) -> str:
        if node.op == "get_attr":
            scope[f"c_{node.name}"] = getattr(self.module, str(node.target))
            return f"c_{node.name}"
        if getattr(node.target, "__name__", "") == "getitem":
            return f"{self._value(node.args[0], scope)}[{node.args[1]}]"
        function: Any = node.target
        key = f"f_{getattr(function, '_opname', None) or function.__name__}_{getattr(function, '_overloadname', '')}"
        scope[key] = _BINDINGS.get(function, function)
        arguments = [self._value(argument, scope) for argument in node.args]
        arguments += [f"{k}={self._value(v, scope)}" for k, v in node.kwargs.items()]
        return f"{key}({', '.join(arguments)})"

    def _value(self, value: Any, scope: dict[str, Any]) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, list | tuple):
            inner = ", ".join(self._value(v, scope) for v in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
        if (
            isinstance(value, int | float | bool | str | None)
            and value == value
            and value
            not in (
                float("inf"),
                float("-inf"),
            )
        ):
            return repr(value)
        key = f"k{len(scope)}"
        scope[key] = value
        return key
