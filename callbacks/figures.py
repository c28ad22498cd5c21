"""Figures that callbacks draw, with matplotlib, which is asked for only when something is drawn."""

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREEN, GREY, PURPLE = "#3b6fb6", "#e07b39", "#c23b3b", "#4a8f5a", "#8a8a8a", "#7d5ba6"


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def told_without(user: str) -> str:
    """What to warn of at the start of a fit where it is not: who leaves its figures out, and what to install.

    >>> told_without("ClippingAdvisor").partition(",")[0]
    'ClippingAdvisor leaves its figures out: they are drawn with matplotlib'
    """
    return (
        f"{user} leaves its figures out: they are drawn with matplotlib, which is not installed. All else is as it "
        "would be. For figures, `pip install matplotlib`, or `pip install 'rnn-blocks[recipes]'`."
    )


def new_figure(
    title: str, xlabel: str, ylabel: str, *, size: tuple[float, float] = (8.0, 4.5)
) -> "tuple[Figure, Axes]":
    """An empty figure of `size` inches with one set of axes, of the look that all figures here share.

    It belongs to no window and no global state, so that nothing has to be closed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _label(axes, title, xlabel, ylabel)
    return figure, axes


def new_figure_with_margin(
    title: str, xlabel: str, ylabel: str, *, size: tuple[float, float] = (9.5, 4.8)
) -> "tuple[Figure, Axes, Axes]":
    """As `new_figure`, with a narrow second set of axes to the right that shares the first one's y-axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes, margin = figure.subplots(1, 2, sharey=True, width_ratios=(5, 1))
    _label(axes, title, xlabel, ylabel)
    _label(margin, "", "", "")
    margin.tick_params(labelleft=False, left=False)
    return figure, axes, margin


def _label(axes: "Axes", title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def write_out_logs(axes: "Axes") -> None:
    """Put plain numbers, 1, 2, 5, 10, on a logarithmic y-axis that shows less than two decades; leave a longer one."""
    from matplotlib.ticker import LogLocator

    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
