"""Where each regulariser acts, and what its noise is the same over: ``python docs/figures/regularisation.py``."""

from itertools import pairwise

import torch
from draw import BLUE, CARD, GREEN, GREY, INK, ORANGE, RED, TEAL, VIOLET, Picture
from matplotlib.colors import ListedColormap
from torch import Tensor

from rnn_blocks import Cell, GRUCell, Layer, Recurrent, Stack, State, VariationalDropout, WeightDrop, Zoneout

OCHRE, GRASS = "#b96a10", "#2f7d3b"
UNITS, CHUNK = 8, 8


class Passing(Cell):
    """Gives what it takes."""

    def step(self, projected: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step."""
        return projected, state


class Showing(Cell):
    """Gives its weights, a row of them a step."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.weight_hh = torch.nn.Parameter(torch.ones(hidden_size, hidden_size))

    def step(self, projected: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step; the state counts them."""
        return self.weight_hh[int(state[0, 0]) % self.hidden_size][None], state + 1


def two_chunks(layer: Layer, inputs: Tensor) -> Tensor:
    """The outputs for one sequence, ``(2 * CHUNK, UNITS)``, the state carried between its chunks."""
    outputs, state = [], None
    for chunk in inputs.split(CHUNK, dim=1):
        output, state = layer(chunk, state)
        outputs.append(output)
    return torch.cat(outputs, dim=1)[0].detach()


def patterns() -> dict[str, tuple[str, Tensor]]:
    """By name: a colour, and what was dropped or kept, ``(UNITS, 2 * CHUNK)``."""
    torch.manual_seed(4)
    ones = torch.ones(1, 2 * CHUNK, UNITS)
    plain = Stack([Recurrent(Passing(UNITS, UNITS)), Recurrent(Passing(UNITS, UNITS))], dropout=0.4)
    dropped = WeightDrop(Recurrent(Showing(UNITS, UNITS), engine="loop"), 0.4)
    zoned = two_chunks(Recurrent(Zoneout(GRUCell(UNITS, UNITS), 0.4)), torch.randn(1, 2 * CHUNK, UNITS))
    stayed = torch.cat([torch.zeros(1, UNITS, dtype=torch.bool), zoned[1:] == zoned[:-1]])
    return {
        "dropout: each step anew": (TEAL, two_chunks(plain, ones).T == 0),
        "variational, recurrent: all steps": (RED, two_chunks(VariationalDropout(UNITS, 0.4), ones).T == 0),
        "zoneout: each step anew": (VIOLET, stayed.T),
        "weight drop: one matrix a call": (OCHRE, two_chunks(dropped, ones).T == 0),
    }


def main() -> None:
    """Draw both parts."""
    picture = Picture(17.6, 7.3)
    picture.title(0.5, 6.85, "where")
    columns = [1.1, 3.0, 4.9]
    rows = [("w", 0.85, "white"), ("x", 2.1, GREY), ("h", 3.35, BLUE), ("z", 4.6, ORANGE), ("y", 5.85, GREEN)]
    between = [GRASS, TEAL, TEAL, TEAL]
    towers = [[picture.box(c, y, _at(name, k), colour) for name, y, colour in rows] for k, c in enumerate(columns)]
    for tower in towers:
        for (below, above), colour in zip(pairwise(tower), between, strict=True):
            picture.arrow(below, above, colour=colour, width=1.7)
    for old, new in pairwise(towers):
        for layer in (2, 3):
            picture.arrow(old[layer], new[layer], colour=RED, width=1.7)
    legend = [
        (5.85, "AR, TAR: a penalty on y", INK),
        (5.22, "dropout, VariationalDropout", TEAL),
        (4.6, "Zoneout: the units", VIOLET),
        (3.97, "RecurrentDropout: what is read", RED),
        (3.35, "WeightDrop: the weights", OCHRE),
        (1.47, "EmbeddingDropout: words", GRASS),
    ]
    for y, label, colour in legend:
        picture.text(5.65, y, label, size=10, colour=colour, align="left")

    picture.title(10.0, 6.85, "what is left out, unit by unit")
    for number, (name, (colour, pattern)) in enumerate(patterns().items()):
        left, bottom = 10.0 + 3.75 * (number % 2), 3.95 - 3.0 * (number // 2)
        axes = picture.inset(left, bottom, 3.3, 1.95)
        axes.imshow(pattern, cmap=ListedColormap([CARD, colour]), vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(torch.arange(2 * CHUNK + 1).numpy() - 0.5, [])
        axes.set_yticks(torch.arange(UNITS + 1).numpy() - 0.5, [])
        axes.grid(color="#d5dae0", lw=0.6)
        axes.tick_params(length=0)
        axes.axvline(CHUNK - 0.5, color=INK, lw=1.4)
        for spine in axes.spines.values():
            spine.set(visible=True, color="#d5dae0")
        picture.text(left, bottom + 2.17, name, size=9.5, colour=colour, align="left")
    picture.text(
        10.0,
        0.55,
        "from left to right steps, or rows of U; at the line one chunk ends",
        size=9.5,
        align="left",
    )
    picture.save("regularisation")


def _at(letter: str, k: int) -> str:
    return f"${letter}_{{t{k - 1:+d}}}$" if k != 1 else f"${letter}_t$"


if __name__ == "__main__":
    main()
