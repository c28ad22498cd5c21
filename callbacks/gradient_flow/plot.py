"""The picture of a training's gradient flow: training step × distance in time, the norm as the colour."""

from typing import TYPE_CHECKING

import numpy

from rnn_blocks.callbacks.figures import new_figure
from rnn_blocks.callbacks.gradient_flow.history import FlowHistory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECADES = 12
LEAST_DECADES = 6


def flow_figure(name: str, history: FlowHistory) -> "Figure":
    """A heat map of `history`, of the recurrence called `name`.

    The colour is the logarithm to base 10 of the norm, over six to twelve decades below the largest: what is dark has
    next to nothing left, in every picture. What is below those, or exactly 0, is darkest. A distance that no sequence
    had is left white.

    >>> history = FlowHistory()
    >>> for step in range(3):
    ...     history.add(step, [1.0, 0.1, 0.01])
    >>> len(flow_figure("encoder", history).axes)
    2
    """
    from matplotlib.ticker import MaxNLocator

    steps = history.steps
    farthest = max(int(distances[-1]) for distances in history.distances)
    table = numpy.full((farthest + 1, len(steps)), numpy.nan)
    for column, (distances, norms) in enumerate(zip(history.distances, history.norms, strict=True)):
        with numpy.errstate(divide="ignore"):
            logs = numpy.log10(norms.double().numpy())
        reached = numpy.arange(int(distances[-1]) + 1)
        logs[~numpy.isfinite(logs)] = numpy.where(norms.numpy()[~numpy.isfinite(logs)] == 0, -400.0, 400.0)
        table[: len(reached), column] = numpy.interp(reached, distances.numpy(), logs)
    measured = table[numpy.isfinite(table) & (numpy.abs(table) < 400)]
    top = float(measured.max()) if measured.size else 0.0
    bottom = max(float(measured.min()) if measured.size else -1.0, top - DECADES)
    bottom = min(bottom, top - LEAST_DECADES)

    figure, axes = new_figure(
        f"Gradient flow through {name}", "training step", "distance from the sequence's end, steps", size=(8.0, 4.5)
    )
    axes.grid(visible=False)
    edges = _edges(steps)
    mesh = axes.pcolormesh(
        edges, numpy.arange(farthest + 2) - 0.5, table, cmap="viridis", vmin=bottom, vmax=top, rasterized=True
    )
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(-0.5, farthest + 0.5)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, extend="min" if (table < bottom).any() else "neither")
    bar.set_label(r"$\log_{10}\;\Vert\partial L/\partial h_t\Vert$")
    bar.outline.set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _edges(steps: list[int]) -> "numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]":
    """Borders of the columns: halfway between their steps."""
    if len(steps) == 1:
        return numpy.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (numpy.array(steps[1:]) + numpy.array(steps[:-1])) / 2
    return numpy.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])
