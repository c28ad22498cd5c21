"""Leaky units: their wiring, and what is left of a pulse. ``python docs/figures/leaky.py``."""

from itertools import pairwise

import torch
from draw import BLUE, GREEN, GREY, RED, TEAL, VIOLET, Picture, Place

from rnn_blocks import LeakyIntegratorCell, Recurrent


def pulse_responses(time_constants: list[float], steps: int) -> list[torch.Tensor]:
    """What a unit of each time constant holds after an input of 1 at step 0 and none after it, ``(steps,)`` each."""
    pulse = torch.zeros(1, steps, 1)
    pulse[0, 0] = 1
    responses = []
    for tau in time_constants:
        cell = LeakyIntegratorCell(1, 1, time_constant=tau)
        with torch.no_grad():
            cell.weight_ih.fill_(1)
            cell.bias.zero_()
            responses.append(Recurrent(cell)(pulse)[0][0, :, 0])
    return responses


def main() -> None:
    """Draw both parts."""
    picture = Picture(16.4, 5.7)
    picture.title(0.5, 5.25, "Leaky(cell), unrolled")
    columns = [2.2, 4.5, 6.8]
    states: list[Place] = []
    for k, c in enumerate(columns):
        x = picture.box(c, 0.8, _at("x", k), GREY)
        cell = picture.box(c, 2.1, "cell", BLUE, width=1.05)
        plus = picture.sign(c, 3.35, "+")
        picture.arrow(x, cell)
        picture.arrow(cell, plus)
        picture.arrow(plus, picture.box(c, 4.5, _at("h", k), GREEN))
        picture.text(c - 0.12, 2.78, r"$1/\tau$", size=11, align="right")
        states.append(plus)
    for old, new in pairwise([(0.6, 3.35), *states, (8.2, 3.35)]):
        picture.arrow(old, new, colour=RED, width=1.7)
    for c in columns:  # what is remembered is what the cell reads
        picture.route([(c - 1.4, 3.35), (c - 1.4, 2.1), (c - 0.54, 2.1)])
    for left, right in pairwise([0.2, *columns]):
        picture.text((left + right) / 2 + 0.12, 3.66, r"$1 - 1/\tau$", size=11, colour=RED)

    picture.title(9.0, 5.25, "what is left of a pulse")
    axes = picture.inset(9.85, 1.05, 6.0, 3.8)
    for response, tau, colour in zip(pulse_responses([2, 10, 50], 60), [2, 10, 50], [TEAL, VIOLET, RED], strict=True):
        axes.plot(response / response[0], color=colour, lw=1.8, label=rf"$\tau$ = {tau}")
    axes.set(xlim=(0, 59), ylim=(0, 1.03), xlabel="steps since the pulse", ylabel="of its first value")
    axes.legend(frameon=False)
    picture.save("leaky")


def _at(letter: str, k: int) -> str:
    return f"${letter}_{{t{k - 1:+d}}}$" if k != 1 else f"${letter}_t$"


if __name__ == "__main__":
    main()
