"""Figures that callbacks draw: where they go, and matplotlib, which is asked for only when something is drawn."""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREEN, GREY = "#3b6fb6", "#e07b39", "#c23b3b", "#4a8f5a", "#8a8a8a"
FOLDER = "plots"


def require_matplotlib(user: str) -> None:
    """Raise `ModuleNotFoundError`, naming what wants to draw and what to install, if matplotlib is not there.

    To be called at the start of a fit: at its end the error would come too late.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            f"{user} draws with matplotlib, which is not installed: `pip install matplotlib`, or "
            "`pip install 'rnn-blocks[recipes]'`."
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


def log_figure(trainer: Trainer, name: str, figure: "Figure", *, folder: Path | None = None) -> Path | None:
    """Write a figure below the run's log folder, and hand it to every logger that takes pictures.

    Those are Weights & Biases' and any other logger with its ``log_image(key, images, step=)``, and TensorBoard's.
    Ranks but the first do nothing, and nothing is waited for: it may be called by the first rank alone, and when a
    training broke off. A file that cannot be written is warned about: it is not worth the training.

    Args:
        trainer: whose loggers and log folder to use.
        name: of the figure, as a metric's; a slash makes a folder of the file's name.
        figure: matplotlib's.
        folder: for the file, in place of the log folder's ``plots``.

    Returns:
        The file, ``<log folder>/plots/<name>.png``, always replaced as a whole; None on other ranks, or if it could not
        be written.
    """
    if not trainer.is_global_zero:
        return None
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    path: Path | None = (folder or _log_folder(trainer) / FOLDER) / f"{name}.png"
    try:
        _write(figure, cast(Path, path))
    except OSError as error:
        rank_zero_warn(f"The figure {name!r} could not be written to {path}: {error}")
        path = None
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, global_step=step, close=False)
        elif path is not None and callable(log_image := getattr(logger, "log_image", None)):
            log_image(key=name, images=[str(path)], step=step)
    return path


def _log_folder(trainer: Trainer) -> Path:
    # As `trainer.log_dir`, which is a broadcast: it would wait for ranks that have nothing to draw, or have failed.
    folder: str | None = None
    if trainer.loggers:
        logger = trainer.loggers[0]
        folder = logger.log_dir if isinstance(logger, TensorBoardLogger | CSVLogger) else logger.save_dir
    return Path(folder or trainer.default_root_dir)


def _write(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(partial, dpi=130, format="png")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
