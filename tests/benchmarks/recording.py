"""What it takes to record a step: the first call of a layer at a shape, against torch's own tracer.

Milliseconds of CPU time of one thread, contenders taken in turns, medians: to record a step and its derivative as a
graph of operators, by the engine and by torch's `make_fx` with what it needs not to make fake tensors anew (a graph of
the same operators, which is checked), and the whole first call of the recorded engine, with what comes after the graph.

    python tests/benchmarks/recording.py [--rounds 20]
"""

import argparse
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from machine import described
from recurrent_layers import medians
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import rnn_blocks as rb
from rnn_blocks.engine import State, like_state, state_tensors
from rnn_blocks.engine.recorder import recorded

CELLS: dict[str, Callable[[], rb.Cell]] = {
    "PeepholeLSTMCell": lambda: rb.PeepholeLSTMCell(64, 64),
    "LayerNormLSTMCell": lambda: rb.LayerNormLSTMCell(64, 64),
    "SLSTMCell": lambda: rb.SLSTMCell(64, 64),
    "RHNCell, depth 5": lambda: rb.RHNCell(64, 64, depth=5),
    "Mogrifier of LSTMCell": lambda: rb.Mogrifier(rb.LSTMCell(64, 64)),
}


def step_and_derivative(cell: rb.Cell, state: State) -> tuple[Callable[..., list[Any]], list[Tensor]]:
    """A pure function of an input, the state's tensors and weights, and what to call it with."""
    names = [name for name, _ in cell.named_parameters()]
    flat = [torch.randn(8, 64), *state_tensors(state), *(one.detach() for one in cell.parameters())]

    def joint(*tensors: Tensor) -> list[Any]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        before, weights = leaves[1 : -len(names)], dict(zip(names, leaves[-len(names) :], strict=True))
        with torch.enable_grad():
            output, after = functional_call(cell, weights, (leaves[0], like_state(state, before)))
            results = [output, *state_tensors(after)]
            return [*results, *torch.autograd.grad(results, leaves, [torch.ones_like(one) for one in results])]

    return joint, flat


def operators(graph: fx.Graph) -> list[Any]:
    """What is called, but for what computes nothing."""
    skipped = (operator.getitem, torch.ops.aten.detach.default)
    return [node.target for node in graph.nodes if node.op == "call_function" and node.target not in skipped]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(described())
    print(f"{'':24}{'operators':>10}{'make_fx':>10}{'recorded':>10}{'÷':>6}{'first call':>12}")
    for name, make in CELLS.items():
        cell = make()
        joint, flat = step_and_derivative(cell, cell.initial_state(8, torch.randn(8, 64)))
        inputs = torch.randn(8, 3, 64)

        def by_torch(joint: Any = joint, flat: Any = flat) -> fx.Graph:
            with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
                return make_fx(joint)(*flat).graph

        def by_the_engine(joint: Any = joint, flat: Any = flat) -> fx.Graph:
            return recorded(joint, flat).graph

        def first_call(make: Any = make, inputs: Any = inputs) -> Any:
            return rb.Recurrent(make(), engine="fused")(inputs)

        assert operators(by_torch()) == operators(by_the_engine()), name
        contenders = {"make_fx": by_torch, "recorded": by_the_engine, "first call": first_call}
        tracer, recorder, first = (1e3 * one for one in medians(contenders, options.rounds, name).values())
        count = len(operators(by_the_engine()))
        print(
            f"{name:24}{count:>10}{tracer:>10.1f}{recorder:>10.1f}{recorder / tracer:>6.2f}{first:>12.1f}", flush=True
        )


if __name__ == "__main__":
    main()
