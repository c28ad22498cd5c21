"""Diagonal nonlinear recurrences by Newton's method, all steps at once, against recorded steps one after the other.

Newton's method on the states of all steps (Lim et al. 2024, "Parallelizing non-linear sequential models over the
sequence length"; Danieli et al. 2025, "ParaRNN") linearises every step around the last guess and solves the linear
recurrence that comes of it by a scan, until no state differs from its step by more than rounding does. Its gradient is
one scan more, backwards. CPU time of one thread, forward and backward, contenders taken in turns, medians; both begin
with the same projected inputs and end with the same gradients, which is checked.

    python tests/benchmarks/parallel_in_time.py [--rounds 5] [--steps 1024 4096]
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from machine import described
from recurrent_layers import medians
from torch import Tensor

import rnn_blocks as rb
from rnn_blocks.engine import State, linear_scan, run_fused, state_tensors

MOST = 100  # iterations
SIZES = [(1, 64), (4, 256), (16, 256)]  # (batch, width)


class DiagonalSLSTM(rb.SLSTMCell):
    """An sLSTM each unit of which reads its own ``h`` alone."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size, num_heads=size)

    def _recurrent(self, hidden: Tensor) -> Tensor:
        return (hidden[:, None] * self.weight_hh.view(4, -1)).flatten(1)


def shifted(states: Tensor, first: Tensor) -> Tensor:
    """The states before each step."""
    return torch.cat([first[None], states[:-1]])


def newton(step: Callable[[Tensor], tuple[Tensor, Tensor]], solve: Callable[..., Tensor], first: Tensor, steps: int):
    """The states of all steps, how often they were guessed, and the largest residual.

    Args:
        step: states before each step to those after it, and the derivative of each by its own.
        solve: ``(derivative, drive, first)`` to the states of the linear recurrence.
        first: the state before the first step.
        steps: how many.
    """
    with torch.no_grad():
        guess, derivative = step(first.expand(steps, *first.shape).clone())
        count = 0
        while count < MOST:
            count += 1
            before = shifted(guess, first)
            after, derivative = step(before)
            residual = (after - guess).abs().max()
            if residual <= 4 * torch.finfo(after.dtype).eps * after.abs().max():
                break
            guess = solve(derivative, after - product(derivative, before), first)
    return guess, derivative, count, residual.item()


def product(derivative: Tensor, states: Tensor) -> Tensor:
    """Of numbers, or of a matrix for each unit, which stand before batch and width."""
    return derivative * states if derivative.dim() == states.dim() else (derivative * states[:, None]).sum(2)


def solve_blocks(derivative: Tensor, drive: Tensor, first: Tensor) -> Tensor:
    """``s_t = J_t s_{t-1} + b_t``, with ``J`` (time, 3, 3, batch, width)."""
    states = torch.empty_like(drive)
    for jacobian, b, out in zip(derivative.unbind(0), drive.unbind(0), states.unbind(0), strict=True):
        first = torch.add((jacobian * first).sum(1), b, out=out)
    return states


def indrnn(cell: rb.IndRNNCell, projected: Tensor, state: State) -> tuple[Tensor, int]:
    """The outputs, differentiably: after the last guess one more linear recurrence, of which autograd knows."""
    (first,), u = state_tensors(state), cell.u

    def step(before: Tensor) -> tuple[Tensor, Tensor]:
        after = torch.addcmul(projected, u, before)
        after = after.tanh_() if cell.nonlinearity == "tanh" else after.relu_()
        return after, (1 - after * after) * u if cell.nonlinearity == "tanh" else (after > 0) * u

    guess, derivative, count, _ = newton(step, linear_scan, first, len(projected))
    before = shifted(guess, first)
    after = torch.addcmul(projected, u, before)
    after = after.tanh() if cell.nonlinearity == "tanh" else after.relu()
    return linear_scan(derivative, after - derivative * before, first), count


def slstm_guesses(cell: DiagonalSLSTM, projected: Tensor, state: State) -> int:
    """How many guesses the states take; without gradients."""
    first = torch.stack(state_tensors(state))  # (3, batch, width)

    def all_steps(before: Tensor) -> Tensor:
        h, c, m = (part.flatten(0, 1) for part in before.unbind(1))
        _, after = cell.advance(projected.flatten(0, 1), (h, c, m), h)
        return torch.stack([part.unflatten(0, projected.shape[:2]) for part in state_tensors(after)], 1)

    def step(before: Tensor) -> tuple[Tensor, Tensor]:
        columns = []
        for k in range(3):
            tangent = torch.zeros_like(before)
            tangent[:, k] = 1
            after, column = torch.func.jvp(all_steps, (before,), (tangent,))
            columns.append(column)
        return after, torch.stack(columns, 2)  # (time, 3, 3, batch, width)

    return newton(step, solve_blocks, first, len(projected))[2]


def gradients(run: Callable[[], Tensor], wanted: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """By ``wanted`` of a weighted sum of the outputs."""
    return torch.autograd.grad((run() * weights).sum(), wanted)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[1024, 4096])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(described())
    print(f"{'':20}{'time':>6}{'batch':>6}{'width':>6}{'recorded':>11}{'Newton':>11}{'÷':>6}{'guesses':>9}")
    for steps in options.steps:
        for batch, width in SIZES:
            cells: dict[str, rb.Cell] = {
                f"IndRNN, {f}": rb.IndRNNCell(width, width, nonlinearity=f) for f in ("tanh", "relu")
            }
            cells["sLSTM, forward alone"] = DiagonalSLSTM(width)
            for name, cell in cells.items():
                projected = torch.randn(steps, batch, width * cell.num_gates, requires_grad=True)
                state = cell.initial_state(batch, projected)
                weights = torch.randn(steps, batch, width)
                counts: list[int] = []

                def recorded(cell=cell, projected=projected, state=state) -> Tensor:
                    return run_fused(cell, projected, state)[0]

                def parallel(cell=cell, projected=projected, state=state, counts=counts) -> Tensor:
                    outputs, count = indrnn(cell, projected, state)
                    counts.append(count)
                    return outputs

                if isinstance(cell, DiagonalSLSTM):

                    def guess(cell=cell, projected=projected, state=state, counts=counts) -> None:
                        counts.append(slstm_guesses(cell, projected.detach(), state))

                    def forward(recorded=recorded) -> None:
                        with torch.no_grad():
                            recorded()

                    found = medians({"recorded": forward, "newton": guess}, options.rounds, name)
                else:
                    wanted = [projected, cell.u]
                    torch.testing.assert_close(
                        gradients(parallel, wanted, weights), gradients(recorded, wanted, weights), rtol=1e-3, atol=1e-4
                    )
                    found = medians(
                        {
                            "recorded": lambda r=recorded, w=wanted, v=weights: gradients(r, w, v),
                            "newton": lambda r=parallel, w=wanted, v=weights: gradients(r, w, v),
                        },
                        options.rounds,
                        name,
                    )
                ours, theirs = found["recorded"] * 1e3, found["newton"] * 1e3
                print(f"{name:20}{steps:6}{batch:6}{width:6}", end="")
                print(f"{ours:8.1f} ms{theirs:8.1f} ms{theirs / ours:6.2f}{counts[-1]:9}", flush=True)


if __name__ == "__main__":
    main()
