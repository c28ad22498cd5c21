"""The picture of a comparison: what is solved over the length, and beside it how far back gradients reach."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from rnn_blocks.recipes.long_range.comparison.settings import Result
from rnn_blocks.recipes.long_range.tasks import make_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = tuple[str, str]  # cell, clipping
LEAST_LOSS = 1e-3
FARTHEST, NEAREST = -8.0, 2.0  # decades of the gradient, relative to the last step's
INK, PALE, MISSING = "#222222", "#ffffff", "#eeeeee"


def comparison_figure(results: Sequence[Result]) -> "Figure":
    """Rows are cells (and clippings, where there are several). On the left a tile for each length, whose colour is the
    loss as a multiple of a guess's; solved ones have a tick, and say after how many steps. On the right, at the longest
    length, a strip for each cell: ``‖∂L/∂h_t‖`` over ``t`` relative to the last step's, before and after training.

    With several seeds a tile is their median, and a strip that of the first.

    Args:
        results: of one task, at least one.

    >>> from rnn_blocks.recipes.long_range.comparison.settings import Settings
    >>> result = Result(Settings("copy", 10, "gru"), 8, 400, 0.7, loss=0.5, flow_at_start=[0.1, 1.0])
    >>> len(comparison_figure([result]).axes)
    5
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = sorted({result.settings.length for result in results})
    found: list[Row] = list(dict.fromkeys((result.settings.cell, result.settings.clipping) for result in results))
    width = 0.85 * max(3, len(lengths))  # inches; room for the title over few tiles
    figure = Figure(figsize=(8.4 + width, 1.9 + 0.42 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    tiles, start, end = figure.subplots(1, 3, sharey=True, width_ratios=(width, 2.6, 2.6))
    loss_colours = _draw_tiles(tiles, results, found, lengths)
    flow_colours: Any = None
    for axes, name, title in (
        (start, "flow_at_start", "before training"),
        (end, "flow_at_end", "after training"),
    ):
        flow_colours = _draw_strips(axes, results, found, lengths[-1], name)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    several = len({clipping for _, clipping in found}) > 1
    tiles.set_yticks(range(len(found)), [_row_name(row, several) for row in found])
    tiles.set_ylim(len(found) - 0.5, -0.5)
    task = results[0].settings.task
    what = {"adding": "Adding problem", "copy": "Copy memory"}[task]
    figure.suptitle(
        f"{what}: what is learnt over $T$ steps, and how far back "
        r"$\Vert\partial L/\partial h_t\Vert$ reaches at $T$ = "
        f"{lengths[-1]}",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    bar = figure.colorbar(loss_colours, ax=tiles, location="bottom", shrink=0.9, aspect=30, pad=0.02)
    bar.set_label("loss ÷ loss of a guess")
    bar.outline.set_visible(False)
    bar = figure.colorbar(
        flow_colours, ax=[start, end], location="bottom", shrink=0.9, aspect=50, pad=0.02, extend="both"
    )
    bar.set_label(r"$\log_{10}\;\Vert\partial L/\partial h_t\Vert \,/\, \Vert\partial L/\partial h_{last}\Vert$")
    bar.outline.set_visible(False)
    return figure


def draw_comparison(results: Sequence[Result], path: Path) -> None:
    """Write the picture as PNG, beside its place and then renamed."""
    partial = path.with_name(f".{path.name}.tmp")
    comparison_figure(results).savefig(partial, dpi=150, format="png")
    partial.replace(path)


def tile(results: Sequence[Result]) -> tuple[float, str, bool]:
    """The colour's value, the text and whether it is solved, of a tile's trainings.

    >>> from rnn_blocks.recipes.long_range.comparison.settings import Settings
    >>> result = Result(Settings("copy", 10, "gru"), 8, 400, 0.7, loss=7e-4, steps=1400, solved=True)
    >>> tile([result])
    (0.001, '1.4k', True)
    """
    solved = [result for result in results if result.solved]
    relative = [math.inf if result.diverged else result.relative_loss for result in results]
    value = median(relative)
    share = f"\n{len(solved)} of {len(results)}" if len(results) > 1 else ""
    if 2 * len(solved) > len(results):
        return value, _thousands(median(result.steps for result in solved)) + share, True
    return value, ("diverged" if math.isinf(value) else f"{value:.2f}") + share, False


def _draw_tiles(axes: "Axes", results: Sequence[Result], found: list[Row], lengths: list[int]) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    values = np.full((len(found), len(lengths)), np.nan)
    norm, colours = LogNorm(LEAST_LOSS, 1.0, clip=True), colormaps["YlGnBu_r"].with_extremes(bad=MISSING)
    for row, which in enumerate(found):
        for column, length in enumerate(lengths):
            here = [r for r in results if (r.settings.cell, r.settings.clipping, r.settings.length) == (*which, length)]
            if not here:
                continue
            value, text, solved = tile(here)
            values[row, column] = min(value, 1.0)
            dark = float(norm(max(value, LEAST_LOSS))) < 0.55
            axes.text(
                column,
                row,
                f"✓ {text}" if solved else text,
                ha="center",
                va="center",
                fontsize=8.5,
                color=PALE if dark else INK,
                fontweight="bold" if solved else "normal",
            )
    edges = np.arange(len(lengths) + 1) - 0.5, np.arange(len(found) + 1) - 0.5
    mesh = axes.pcolormesh(*edges, values, cmap=colours, norm=norm, edgecolors="white", linewidth=2)
    axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
    axes.set_xlabel("$T$, steps to remember over")
    any_solved = any(text.get_text().startswith("✓") for text in axes.texts)
    title = "✓ steps to solve it, else the loss" if any_solved else "the loss, nothing is solved"
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    _bare(axes)
    return mesh


def _draw_strips(axes: "Axes", results: Sequence[Result], found: list[Row], length: int, name: str) -> Any:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    mesh: Any = None
    steps = 1
    for row, which in enumerate(found):
        here = [r for r in results if (r.settings.cell, r.settings.clipping, r.settings.length) == (*which, length)]
        norms = np.array(getattr(here[0], name) if here else [], dtype=float)
        steps = _steps(here[0]) if here else steps
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log10(norms / norms[-1])[None] if len(norms) else np.full((1, 1), np.nan)
        mesh = axes.pcolormesh(
            np.linspace(0, steps, logs.shape[1] + 1),
            [row - 0.4, row + 0.4],
            np.nan_to_num(logs, nan=np.nan, neginf=FARTHEST - 1, posinf=NEAREST + 1),
            cmap=colormaps["inferno"].with_extremes(bad=MISSING),
            vmin=FARTHEST,
            vmax=NEAREST,
            rasterized=True,
        )
    axes.set_xlim(0, steps)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, prune="upper"))  # beside the next strip's 0
    axes.set_xlabel("$t$, step of the sequence")
    _bare(axes)
    return mesh


def _steps(result: Result) -> int:
    return make_task(result.settings.task, result.settings.length).steps


def _bare(axes: "Axes") -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, bottom=False)


def _row_name(row: Row, several: bool) -> str:
    cell, clipping = row
    if not several:
        return cell
    return f"{cell}, {'not clipped' if clipping == 'none' else f'clipped: {clipping}'}"


def _thousands(steps: float) -> str:
    return f"{steps / 1000:.3g}k" if steps >= 1000 else f"{steps:.0f}"
