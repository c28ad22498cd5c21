"""One step of time, traced once and split into what runs when.

The step and its derivative are recorded as one graph of torch's own operators (``make_fx`` over autograd). Each node of
it then belongs to one of three programs:

- *invariant*: depends on weights alone, runs once a sequence;
- *forward*: what the outputs need, runs at each step, and keeps what the derivative will ask for;
- *backward*: the rest, runs at each step from the last to the first.

A weight's gradient is a sum over the steps. Where a step's part of it is a product ``A_tᵀ B_t`` the factors are
collected and the sum is one product over all steps; where it is a sum over the batch, the summands are; else the parts
are added up.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

Joint = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


class NotTraceableError(ValueError):
    """A step that cannot be recorded: it changes tensors in place, or looks at their numbers."""


@dataclass(frozen=True)
class WeightGradient:
    """How the gradient of one weight is put together from the steps.

    ``kind`` is "product" (``Σ leftᵀ right``), "sum" (of ``left`` over time and ``dims``) or "total" (``Σ left``). The
    operands are each a :class:`Source`; ``finish`` are the linear operators that follow.
    """

    kind: str
    left: "Source"
    right: "Source | None" = None
    dims: tuple[int, ...] = ()
    keepdim: bool = False
    finish: tuple[tuple[Any, tuple[Any, ...], dict[str, Any]], ...] = ()


@dataclass(frozen=True)
class Source:
    """Where the values of all steps lie.

    "slot" (the backward program wrote them to a buffer, or to a piece of it), "saved" (by the forward program),
    "output" (the outputs), "before" (the outputs one step earlier) or "total" (added up on the way).
    """

    place: str
    number: int = 0
    piece: int | None = None


@dataclass(frozen=True)
class Slot:
    """One step of a buffer that the backward program writes to; ``pieces``: the sizes its last dimension falls into."""

    shape: torch.Size
    dtype: torch.dtype
    pieces: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """The three programs and how they hang together.

    ``invariant(*constants) -> kept``

    ``forward(*projected, *masks, *state, *constants, *kept, out) -> (state, saved)``, where ``out`` takes the output

    ``backward(*saved, before, now, *tangents, *constants, *kept, *slots) -> (state gradients, totals)``

    ``before`` and ``now`` are the outputs of the previous step and of this one, used where the output is a part of the
    state, which then is not saved a second time. The slots, each followed by its pieces, are one step of the buffers
    that gather gradients over time.
    """

    invariant: Callable[..., tuple[Tensor, ...]]
    forward: Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
    backward: Callable[..., tuple[tuple[Tensor | None, ...], tuple[Tensor, ...]]]
    output: tuple[torch.Size, torch.dtype]
    carried: int | None
    slots: tuple["Slot", ...]
    projected_slots: tuple[int | None, ...]
    weight_gradients: tuple[WeightGradient | None, ...]
    source: str


def steady_dtypes(
    step: Joint, slices: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], constants: Sequence[Tensor]
) -> tuple[torch.dtype, ...] | None:
    """The dtypes of the state after a step where they differ from those before it, as under autocast; else ``None``."""
    devices = sorted({tensor.device.index or 0 for tensor in constants if tensor.is_cuda})
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        after = step(*slices, constants)[1:]
    found = tuple(tensor.dtype for tensor in after)
    return None if found == tuple(tensor.dtype for tensor in slices[2]) else found


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
            if any(_changes(node) for node in module.graph.nodes):  # noise is drawn in place, for one
                module = make_fx(functionalize(module))(*inputs, *tangents)
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
        edges = list(accumulate([*groups, num_results], initial=0))
        parts = [placeholders[a:b] for a, b in pairwise(edges)]
        self.projected, self.masks, self.state, self.constants, self.tangents = parts
        returned: Any = next(node for node in self.graph.nodes if node.op == "output").args[0]
        self.output: fx.Node = returned[0]
        self.state_after: list[fx.Node] = list(returned[1:num_results])
        gradients: list[fx.Node | None] = list(returned[num_results:]) or [None] * len(needs)
        self.projected_grads = gradients[: edges[1]]
        self.state_grads = gradients[edges[2] : edges[3]]
        self.constant_grads = gradients[edges[3] :]
        self.carried = next((k for k, node in enumerate(self.state_after) if node is self.output), None)
        if self.output.op == "placeholder":  # an output that is an input cannot be written to the outputs' buffer
            self.carried = None
        self._classify()
        self.slots: list[fx.Node] = []
        self.totals: list[fx.Node] = []

    def _tidy(self) -> None:
        for node in list(self.graph.nodes):
            if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
                continue
            if _changes(node):
                raise NotTraceableError(f"this step cannot be recorded: it changes an input in place ({node.target})")
            if node.target in _VIEWS:
                node.replace_all_uses_with(node.args[0])
            elif node.target is aten.t.default and _is_call(node.args[0], aten.t.default):
                node.replace_all_uses_with(node.args[0].args[0])
            elif node.target is aten.add.Tensor and not node.kwargs:
                self._fuse_sum(node)
            elif node.target is aten.cat.default:
                self._flatten_cat(node)
        self.graph.eliminate_dead_code()

    @staticmethod
    def _flatten_cat(node: fx.Node) -> None:
        """``cat([cat([a, b]), c])`` is ``cat([a, b, c])``."""
        last = len(_meta(node)[0]) - 1
        if _cat_dim(node) != last:
            return
        parts: list[fx.Node] = []
        operands: Any = node.args[0]
        for part in operands:
            nested = _is_call(part, aten.cat.default) and _cat_dim(part) == last
            parts.extend(part.args[0] if nested else [part])
        node.args = (parts, last)

    def _fuse_sum(self, node: fx.Node) -> None:
        """``x + a @ b``, ``x + a * b`` and ``x + (-y)`` are one operation each."""
        for operand, other in (node.args, node.args[::-1]):
            if not isinstance(operand, fx.Node) or not isinstance(other, fx.Node) or len(operand.users) != 1:
                continue
            if _meta(other) != _meta(operand) or _meta(other) != _meta(node):
                continue
            if operand.target is aten.mm.default:
                fused, arguments = aten.addmm.default, (other, *operand.args)
            elif operand.target is aten.mul.Tensor and all(isinstance(a, fx.Node) for a in operand.args):
                fused, arguments = aten.addcmul.default, (other, *operand.args)
            elif operand.target is aten.neg.default:
                fused, arguments = aten.sub.Tensor, (other, *operand.args)
            else:
                continue
            with self.graph.inserting_before(node):
                replacement = self.graph.call_function(fused, arguments)
            replacement.meta = dict(node.meta)
            node.replace_all_uses_with(replacement)
            return

    def _classify(self) -> None:
        varying, derivative = {*self.projected, *self.masks, *self.state}, {*self.tangents}
        order = [node for node in self.graph.nodes if node.op in ("call_function", "get_attr")]
        for node in order:
            if any(i in derivative for i in node.all_input_nodes):
                derivative.add(node)
            elif any(i in varying for i in node.all_input_nodes) or _is_random(node):
                varying.add(node)
        needed = _ancestors([self.output, *self.state_after])
        self.invariant = [n for n in order if n not in varying and n not in derivative]
        self.forward = [n for n in order if n in varying and n in needed]
        self.backward = [n for n in order if n in derivative or (n in varying and n not in needed)]
        self.steady = {*self.constants, *self.invariant}
        self.stepwise = {*self.forward, *self.projected, *self.masks, *self.state}

    def _source(self, node: fx.Node, saved: list[fx.Node]) -> Source:
        if self.carried is not None and node in (self.output, self.state[self.carried]):
            return Source("output" if node is self.output else "before")
        if node in self.stepwise:
            return Source("saved", _index(saved, node))
        for number, slot in enumerate(self.slots):
            pieces = self._pieces(slot)
            if node in pieces:
                return Source("slot", number, pieces.index(node))
        return Source("slot", _index(self.slots, node))

    def _weight_gradient(self, node: fx.Node | None, saved: list[fx.Node]) -> WeightGradient | None:
        if node is None:
            return None
        finish: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        end: Any = node
        while end.op == "call_function" and end.target in _LINEAR and len(end.all_input_nodes) == 1:
            finish.append((end.target, end.args[1:], dict(end.kwargs)))
            end = end.args[0]
        done = tuple(reversed(finish))
        if _is_call(end, aten.mm.default):
            left, right = end.args
            if _is_call(left, aten.t.default) and left.args[0] not in self.steady and right not in self.steady:
                sources = self._source(left.args[0], saved), self._source(right, saved)
                return WeightGradient("product", *sources, finish=done)
        if _is_call(end, aten.sum.dim_IntList) and not end.kwargs:
            of, dims, *keepdim = end.args
            axes = tuple(d % len(_meta(of)[0]) for d in dims)
            if of not in self.steady and 0 in axes:
                return WeightGradient("sum", self._source(of, saved), None, axes, bool(keepdim and keepdim[0]), done)
        return WeightGradient("total", Source("total", _index(self.totals, node)))

    def program(self) -> Program:
        saved: list[fx.Node] = []
        projected_slots = tuple(None if n is None else _index(self.slots, n) for n in self.projected_grads)
        weight_gradients = tuple(self._weight_gradient(node, saved) for node in self.constant_grads)
        wanted = [*self.slots, *self.totals, *(n for n in self.state_grads if n is not None)]
        live = _ancestors(wanted)
        backward = [node for node in self.backward if node in live]
        used = {*wanted, *(i for node in backward for i in node.all_input_nodes)}
        outputs = set() if self.carried is None else {self.output, self.state[self.carried]}
        for node in self.graph.nodes:
            if node in self.stepwise and node in used and node not in outputs:
                _index(saved, node)
        names = {node: f"v{k}" for k, node in enumerate(self.graph.nodes)}
        writer = _Writer(self.module, names)
        given = [names[node] for node in (*self.constants, *self.invariant)]
        before = "before" if self.carried is None else names[self.state[self.carried]]
        now = "now" if self.carried is None else names[self.output]
        invariant = writer.function(
            "invariant", [names[node] for node in self.constants], self.invariant, {}, writer.listing(self.invariant)
        )
        forward = writer.function(
            "forward",
            [*(names[node] for node in (*self.projected, *self.masks, *self.state)), *given, "out"],
            self.forward,
            {self.output: ["out"]},
            f"{writer.listing(self.state_after)}, {writer.listing(saved)}",
        )
        slots: list[Slot] = []
        arguments: list[str] = []
        targets: dict[fx.Node, list[str]] = {}
        for number, node in enumerate(self.slots):
            pieces = self._pieces(node)
            slots.append(Slot(*_meta(node), tuple(_meta(piece)[0][-1] for piece in pieces)))
            arguments += [f"slot{number}", *(f"slot{number}_{k}" for k in range(len(pieces)))]
            for k, piece in enumerate(pieces):
                targets.setdefault(piece, []).append(f"slot{number}_{k}")
            targets.setdefault(node, []).append(f"slot{number}")
            if pieces:
                writer.made[node] = f"slot{number}"
        backward_function = writer.function(
            "backward",
            [*(names[n] for n in saved), before, now, *(names[n] for n in self.tangents), *given, *arguments],
            backward,
            targets,
            f"{writer.listing(self.state_grads)}, {writer.listing(self.totals)}",
        )
        return Program(
            invariant,
            forward,
            backward_function,
            _meta(self.output),
            self.carried,
            tuple(slots),
            projected_slots,
            weight_gradients,
            "\n".join(writer.sources),
        )

    def _pieces(self, node: fx.Node) -> list[fx.Node]:
        """What lies side by side in a slot, where that is how its value is made."""
        if not _is_call(node, aten.cat.default) or _cat_dim(node) != len(_meta(node)[0]) - 1:
            return []
        parts: Any = node.args[0]
        pieces: list[fx.Node] = list(parts)
        fitting = all(piece in self.backward and _meta(piece)[1] == _meta(node)[1] for piece in pieces)
        return pieces if fitting and len(set(pieces)) == len(pieces) else []


def _index(nodes: list[fx.Node], node: fx.Node) -> int:
    """The place of ``node``, put at the end if it is not there."""
    if node not in nodes:
        nodes.append(node)
    return nodes.index(node)


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


def _cat_dim(node: fx.Node) -> int:
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    return int(dim) % len(_meta(node)[0])


def _changes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _meta(node: fx.Node) -> tuple[torch.Size, torch.dtype]:
    value = node.meta["val"]
    return value.shape, value.dtype


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
    aten.cat.default: (torch.cat, "out"),
    aten.where.self: (torch.where, "out"),
    aten.maximum.default: (torch.maximum, "out"),
    aten.t.default: (torch.t, ""),
    aten.split.Tensor: (torch.unsafe_split, ""),
    aten.split_with_sizes.default: (torch.unsafe_split_with_sizes, ""),
    aten.relu.default: (torch.relu, ""),
}


_WRITING = {
    aten.sigmoid_backward.default: aten.sigmoid_backward.grad_input,
    aten.tanh_backward.default: aten.tanh_backward.grad_input,
    aten.threshold_backward.default: aten.threshold_backward.grad_input,
}


class _Writer:
    """Writes runs of nodes as Python functions."""

    def __init__(self, module: fx.GraphModule, names: dict[fx.Node, str]) -> None:
        self.module, self.names = module, names
        self.sources: list[str] = []
        self.made: dict[fx.Node, str] = {}  # values that stand there once their pieces do

    def listing(self, nodes: Sequence[fx.Node | None]) -> str:
        return f"({''.join('None, ' if n is None else f'{self.names[n]}, ' for n in nodes)})"

    def function(
        self,
        name: str,
        arguments: Sequence[str],
        body: Sequence[fx.Node],
        targets: dict[fx.Node, list[str]],
        result: str,
    ) -> Any:
        """``targets`` are the tensors that some nodes' values are to be written to."""
        scope: dict[str, Any] = {}
        lines = [f"def {name}({', '.join(arguments)}):"]
        for node in body:
            places = targets.get(node, [])
            if node in self.made:
                lines.append(f"    {self.names[node]} = {self.made[node]}")
                places = [place for place in places if place != self.made[node]]
                written = False
            else:
                call, written = self._call(node, scope, places[0] if places else None)
                lines.append(f"    {self.names[node]} = {call}")
            lines += [f"    {place}.copy_({self.names[node]})" for place in places[written:]]
        for node, places in targets.items():
            if node not in body:
                lines += [f"    {place}.copy_({self.names[node]})" for place in places]
        lines.append(f"    return {result}")
        source = "\n".join(lines)
        self.sources.append(source)
        exec(source, scope)  # written above from the graph's own nodes
        return scope[name]

    def _call(self, node: fx.Node, scope: dict[str, Any], target: str | None) -> tuple[str, bool]:
        """The expression, and whether it writes to ``target``."""
        if node.op == "get_attr":
            scope[f"c_{node.name}"] = getattr(self.module, str(node.target))
            return f"c_{node.name}", False
        function: Any = node.target
        if function is operator.getitem:
            return f"{self._value(node.args[0], scope)}[{node.args[1]}]", False
        binding, out = _BINDINGS.get(function, (function, ""))
        if target and function in _WRITING:
            binding, out = _WRITING[function], "grad_input"
        name = f"{node.name}_op"
        scope[name] = binding
        arguments = [self._value(argument, scope) for argument in node.args]
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
