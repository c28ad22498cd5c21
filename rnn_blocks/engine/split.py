"""The graph of a recorded step and its derivative, split into what runs when.

Each node belongs to one of four programs:

- *invariant*: depends on weights alone, or on parts of the state that no step changes; runs once a sequence;
- *forward*: what the outputs need, runs at each step, and keeps what the derivative will ask for;
- *backward*: the gradients of state and inputs, runs at each step from the last to the first;
- *gather*: the gradients of weights, runs once for all steps with time folded into the batch. A weight whose gradient
  cannot be had so is added up step by step.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, fx

from rnn_blocks.engine.compile import Flat, Like, StepSource
from rnn_blocks.engine.fold import Folding
from rnn_blocks.engine.graph import ancestors, aten, cat_dim, is_call, is_random, meta
from rnn_blocks.engine.products import packing_pays
from rnn_blocks.engine.program import Program, Slot, Source
from rnn_blocks.engine.recorder import Recording
from rnn_blocks.engine.write import Writer, can_write

Put = Callable[[Flat, Flat | None], Program]
Compiler = Callable[[StepSource, Put], Program]
"""Takes what can be compiled and what makes a program of the compiled steps, and gives a program."""


class Splitter:
    """Sorts the nodes of a joint graph into the four programs.

    Args:
        recording: of ``(*projected, *masks, *state, *constants, *tangents)`` to the results of a step and the
            gradients of its inputs.
        groups: how many of each there are.
        num_results: how many results, the output and the state's tensors.
        needs: which inputs take a gradient.
    """

    def __init__(self, recording: Recording, groups: Sequence[int], num_results: int, needs: Sequence[bool]) -> None:
        self.recording, self.graph = recording, recording.graph
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
        self.passed = [k for k, (old, new) in enumerate(zip(self.state, self.state_after, strict=True)) if old is new]
        self.given = [*self.constants, *(self.state[k] for k in self.passed)]
        self._classify()
        self.carried = next((k for k, node in enumerate(self.state_after) if node is self.output), None)
        if self.output not in self.forward:  # an input, or made of weights alone: not made in the outputs' buffer
            self.carried = None
        self._fold()

    def _classify(self) -> None:
        steps = {*self.projected, *self.masks, *self.state} - {*self.given}
        varying, derivative = set(steps), {*self.tangents}
        order = [node for node in self.graph.nodes if node.op in ("call_function", "get_attr")]
        for node in order:
            if any(i in derivative for i in node.all_input_nodes):
                derivative.add(node)
            elif any(i in varying for i in node.all_input_nodes) or is_random(node):
                varying.add(node)
        needed = ancestors([self.output, *self.state_after])
        needed |= {node for node in varying if node.target is operator.getitem and node.args[0] in needed}
        self.invariant = [n for n in order if n not in varying and n not in derivative]
        self.kept = [n for n in self.invariant if not isinstance(n.meta.get("val"), tuple | list)]
        self.forward = [n for n in order if n in varying and n in needed]
        self.rest = [n for n in order if n in derivative or (n in varying and n not in needed)]
        self.stepwise = {*self.forward, *steps}

    def _fold(self) -> None:
        """Part the derivative into what runs at each step and what runs once, and find where the latter takes from."""
        passed = {self.state[k] for k in self.passed}
        batched = {n for n in (*passed, *self.invariant) if ancestors([n]) & passed}
        steady = {*self.constants, *self.invariant} - batched
        folding = Folding([*(n for n in self.stepwise if n.op == "placeholder"), *self.tangents], steady, batched)
        self.totals = [n for n in self.constant_grads if n is not None and not folding.is_sum(n)]
        step_results = [n for n in (*self.projected_grads, *self.state_grads, *self.totals) if n is not None]
        core = ancestors(step_results) | self.stepwise
        tail: set[fx.Node] = set()
        leaves: list[fx.Node] = []
        for node in self.constant_grads:
            if node is not None and node not in self.totals:
                inside, taken = folding.tail(node, core | set(self.tangents))
                tail.update(inside)
                leaves += [leaf for leaf in taken if leaf not in leaves]
        core |= ancestors(leaves)
        self.backward = [node for node in self.rest if node in core]
        self.gather = [node for node in self.rest if node in tail]
        self.slots: list[fx.Node] = []
        self.saved: list[fx.Node] = []
        self.projected_slots = tuple(None if n is None else _index(self.slots, n) for n in self.projected_grads)
        self.leaves = leaves
        for leaf in leaves:
            self._source(leaf)
        used = {*step_results, *self.slots, *(i for node in self.backward for i in node.all_input_nodes)}
        for node in self.graph.nodes:
            if node in self.stepwise and node in used and self._from_outputs(node) is None:
                _index(self.saved, node)
        written = {*self.forward} - {self.output}  # which is written to the outputs
        self.stacked = [node for node in self.saved if node in written and can_write(node)]
        self.loose = [node for node in self.saved if node not in self.stacked]
        self.saved = [*self.stacked, *self.loose]
        self.sources = tuple(self._source(leaf) for leaf in leaves)

    def _from_outputs(self, node: fx.Node) -> Source | None:
        if self.carried is None or node not in (self.output, self.state[self.carried]):
            return None
        return Source("output" if node is self.output else "before")

    def _source(self, node: fx.Node) -> Source:
        if node in self.stepwise:
            return self._from_outputs(node) or Source("saved", _index(self.saved, node))
        for number, slot in enumerate(self.slots):
            if node in (pieces := self._pieces(slot)):
                return Source("slot", number, pieces.index(node))
        return Source("slot", _index(self.slots, node))

    def _packed(self, steady: Sequence[fx.Node]) -> list[fx.Node]:
        """The right factors of the steps' products, where it pays to pack them once a sequence."""
        found: list[fx.Node] = []
        for node in (*self.forward, *self.backward):
            if is_call(node, aten.mm.default, aten.addmm.default):
                right: Any = node.args[-1]
                if right in steady and packing_pays(right.meta["val"]):
                    _index(found, right)
        return found

    def _stacks(self) -> dict[fx.Node, str]:
        return {node: f"stack{number}" for number, node in enumerate(self.stacked)}

    def _pieces(self, node: fx.Node) -> list[fx.Node]:
        """What lies side by side in a slot, where that is how its value is made."""
        if not is_call(node, aten.cat.default) or cat_dim(node) != len(meta(node)[0]) - 1:
            return []
        parts: Any = node.args[0]
        pieces: list[fx.Node] = list(parts)
        fitting = all(piece in self.backward and meta(piece)[1] == meta(node)[1] for piece in pieces)
        return pieces if fitting and len(set(pieces)) == len(pieces) else []

    def _gather(self, writer: Writer, given: Sequence[str]) -> Callable[..., Any]:
        gather: Callable[..., Any] = writer.function(
            "gather",
            ["take", *(writer.names[node] for node in self.totals), *given],
            self.gather,
            writer.listing(self.constant_grads),
            taken=self.leaves,
        )
        return gather

    def compiled(
        self,
        program: Program,
        varying: Sequence[Tensor],
        state: Sequence[Tensor],
        constants: Sequence[Tensor],
        compiler: Compiler,
    ) -> Program:
        """What ``compiler`` makes of the forward and backward steps, and of how to put them into the program."""
        writer = Writer(self.recording)
        names = writer.names
        given = [names[node] for node in (*self.given, *self.kept)]
        old = ["_" + names[node] if k in self.passed else names[node] for k, node in enumerate(self.state)]
        wanted = [*self.state_after, *self.loose]
        stacks = self._stacks()
        forward = writer.function(
            "forward",
            [*(names[node] for node in (*self.projected, *self.masks)), *old, *given, "out", *stacks.values()],
            self.forward,
            writer.listing(wanted),
            {self.output: ["out"], **{node: [name] for node, name in stacks.items()}},
            copied=True,
        )
        gradients = [node for node in (*self.state_grads, *self.totals) if node is not None]
        before = "before" if self.carried is None else names[self.state[self.carried]]
        now = "now" if self.carried is None else names[self.output]
        slots = {node: [f"slot{number}"] for number, node in enumerate(self.slots)}
        backward = writer.function(
            "backward",
            [
                *(names[node] for node in self.saved),
                *(name for name in (before, now) if self.carried is not None),
                *(names[node] for node in self.tangents),
                *given,
                *(f"slot{number}" for number in range(len(self.slots))),
            ],
            self.backward,
            writer.listing(gradients),
            slots,
            copied=True,
        )
        # compiled for tensors laid out as those that will come: the backward step takes what the forward step gave
        like = [tensor.contiguous() for tensor in varying]
        start = [tensor.contiguous() for tensor in state]
        kept = [*(start[k] for k in program.passed)]
        kept += program.invariant(*constants, *kept)
        device = start[0].device if start else torch.device("cpu")
        out = _like(*program.output, device)
        stacked = [_like(shape, dtype, device) for shape, dtype in program.stacked]
        first = len(like) + len(start)
        source = StepSource(
            writer.written(forward),
            writer.written(backward) if gradients or self.slots else None,
            (*map(Like.of, (*like, *start, *constants, *kept)), out, *stacked),
            (first, first + len(constants) + len(kept)),
            len(start),
            self.carried is not None,
            tuple(gradient is not None for gradient in self.state_grads),
            tuple(_like(slot.shape, slot.dtype, device) for slot in program.slots),
        )
        program = replace(program, gather=self._gather(writer, given), compiled=True, packed=())
        sizes = len(self.state_after), len(self.saved)

        def put(forward: Flat, backward: Flat | None) -> Program:
            done = replace(program, forward=_nested(forward, sizes[0]))
            if backward is None:
                return done
            return replace(done, backward=_with_gaps(backward, sizes[1], source.around, source.present))

        return compiler(source, put)

    def program(self) -> Program:
        """The four programs as plain Python."""
        writer = Writer(self.recording)
        names = writer.names
        steady = [*self.given, *self.kept]
        packed = self._packed(steady)
        writer.products = {node: f"product{k}" for k, node in enumerate(packed)}
        given = [*(names[node] for node in steady), *writer.products.values()]
        state = ["_" + names[node] if k in self.passed else names[node] for k, node in enumerate(self.state)]
        invariant = writer.function(
            "invariant", [names[node] for node in self.given], self.invariant, writer.listing(self.kept)
        )
        stacks = self._stacks()
        forward = writer.function(
            "forward",
            [*(names[node] for node in (*self.projected, *self.masks)), *state, *given, "out", *stacks.values()],
            self.forward,
            f"{writer.listing(self.state_after)}, {writer.listing(self.loose)}",
            {self.output: ["out"], **{node: [name] for node, name in stacks.items()}},
        )
        gather = self._gather(writer, given)
        slots: list[Slot] = []
        arguments: list[str] = []
        targets: dict[fx.Node, list[str]] = {}
        for number, node in enumerate(self.slots):
            pieces = self._pieces(node)
            slots.append(Slot(*meta(node), tuple(meta(piece)[0][-1] for piece in pieces)))
            arguments += [f"slot{number}", *(f"slot{number}_{k}" for k in range(len(pieces)))]
            for k, piece in enumerate(pieces):
                targets.setdefault(piece, []).append(f"slot{number}_{k}")
            targets.setdefault(node, []).append(f"slot{number}")
            if pieces:
                writer.in_place[node] = f"slot{number}"
        before = "before" if self.carried is None else names[self.state[self.carried]]
        now = "now" if self.carried is None else names[self.output]
        backward = writer.function(
            "backward",
            [*(names[n] for n in self.saved), before, now, *(names[n] for n in self.tangents), *given, *arguments],
            self.backward,
            f"{writer.listing(self.state_grads)}, {writer.listing(self.totals)}",
            targets,
        )
        return Program(
            invariant,
            forward,
            backward,
            gather,
            meta(self.output),
            tuple(steady.index(node) for node in packed),
            self.carried,
            tuple(self.passed),
            tuple(meta(node) for node in self.stacked),
            tuple(slots),
            self.projected_slots,
            self.sources,
            "\n".join(writer.sources),
        )


def _like(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Like:
    return Like.of(torch.empty(shape, dtype=dtype, device="meta"))._replace(device=device)


def _nested(flat: Flat, num_state: int) -> Callable[..., Any]:
    def forward(*tensors: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        results = flat(*tensors)
        return results[:num_state], results[num_state:]

    return forward


def _with_gaps(flat: Flat, num_saved: int, carried: bool, present: Sequence[bool]) -> Callable[..., Any]:
    def backward(*tensors: Tensor | None) -> tuple[Sequence[Tensor | None], Sequence[Tensor]]:
        if not carried:
            tensors = (*tensors[:num_saved], *tensors[num_saved + 2 :])
        results = iter(flat(*tensors))
        state = [next(results) if there else None for there in present]
        return state, list(results)

    return backward


def _index(nodes: list[fx.Node], node: fx.Node) -> int:
    """The place of ``node``, put at the end if it is not there."""
    if node not in nodes:
        nodes.append(node)
    return nodes.index(node)
