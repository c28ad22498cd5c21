"""How much of a gradient is left so many steps back, measured: ``python docs/figures/gradient_flow.py``."""

from collections.abc import Callable

import torch
from draw import FAINT, INK, RED, TEAL, VIOLET, Picture
from torch import Tensor

from rnn_blocks import (
    Cell,
    ElmanCell,
    Leaky,
    LRUCell,
    LSTMCell,
    SkipThroughTime,
    State,
    init_chrono,
    init_orthogonal,
    map_state,
)

GRASS, OCHRE = "#2f7d3b", "#c9761a"
STEPS, BATCH, INPUTS, UNITS = 200, 16, 8, 64

Place = tuple[float, float, str]  # of a label: where, and which side of it is there

CELLS: dict[str, tuple[Callable[[], Cell], str, Place]] = {
    "Elman, weights × 3": (lambda: strengthened(ElmanCell(INPUTS, UNITS), 3), RED, (98, 3e4, "right")),
    "LSTM, chrono(200)": (lambda: init_chrono(LSTMCell(INPUTS, UNITS), 200), TEAL, (203, 0.35, "left")),
    "LRU, |λ| in 0.9–0.999": (lambda: LRUCell(INPUTS, UNITS, r_min=0.9, r_max=0.999), GRASS, (203, 0.06, "left")),
    "Leaky Elman, τ in 1–100": (
        lambda: Leaky(ElmanCell(INPUTS, UNITS), time_constant=(1, 100)),
        VIOLET,
        (203, 0.011, "left"),
    ),
    "Elman, skip of 20 steps": (
        lambda: SkipThroughTime(ElmanCell(INPUTS, UNITS), delay=20),
        OCHRE,
        (203, 0.001, "left"),
    ),
    "Elman, orthogonal": (lambda: init_orthogonal(ElmanCell(INPUTS, UNITS)), FAINT, (77, 3e-8, "left")),
    "LSTM": (lambda: LSTMCell(INPUTS, UNITS), "#4d9ca1", (41, 3e-8, "left")),
    "Elman": (lambda: ElmanCell(INPUTS, UNITS), INK, (28, 3e-8, "right")),
}


def strengthened(cell: ElmanCell, factor: float) -> ElmanCell:
    """The cell with its recurrent weights multiplied."""
    with torch.no_grad():
        cell.weight_hh.mul_(factor)
    return cell


def gradient_flow(cell: Cell) -> Tensor:
    """``‖∂L/∂s_t‖`` for each distance of ``s_t`` from the last step, in proportion to that at the last, ``(STEPS,)``.

    ``s`` is what the cell remembers by: an LSTM's ``c``, and ``h`` for others. ``L`` is a random sum of the last
    outputs; the inputs are normal.
    """
    inputs = torch.randn(STEPS, BATCH, INPUTS)
    steps = cell.project(inputs).unbind(0)
    state, memories = cell.initial_state(BATCH, inputs), []
    for projected in steps:
        output, state = cell.step(projected, state)
        memories.append(memory(cell, state))
    loss = (output @ torch.randn(UNITS)).sum()
    gradients = torch.stack(torch.autograd.grad(loss, memories)).flip(0)
    norms = torch.linalg.vector_norm(gradients, dim=-1).mean(1)
    return norms / norms[0]


def memory(cell: Cell, state: State) -> Tensor:
    """The tensor of a state whose gradient is followed."""
    if isinstance(cell, LSTMCell):
        return state[1]
    tensors: list[Tensor] = []
    map_state(lambda tensor: tensors.append(tensor) or tensor, state)
    return tensors[0]


def main() -> None:
    """Measure and draw."""
    picture = Picture(14.4, 7.9)
    axes = picture.inset(1.6, 1.05, 8.9, 6.4)
    for name, (make, colour, (x, y, side)) in CELLS.items():
        torch.manual_seed(2)
        axes.plot(gradient_flow(make()), color=colour, lw=1.8)
        axes.text(x, y, name, color=colour, ha=side, va="center", size=10)
    axes.set_yscale("log")
    axes.set(xlim=(0, STEPS - 1), ylim=(1e-10, 1e5), xlabel="steps back from the loss")
    axes.set_ylabel(r"$\Vert\partial L/\partial s_t\Vert$, as a part of that at the last step", size=11)
    axes.axhline(1, color=FAINT, lw=0.8, ls=(0, (3, 3)), zorder=1)
    picture.save("gradient_flow")


if __name__ == "__main__":
    main()
