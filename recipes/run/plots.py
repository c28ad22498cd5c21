"""Pictures of a run: its loss, its gradient norm with the threshold, and BLEU where translations are scored."""

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback

from rnn_blocks.callbacks.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, new_figure
from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.run.metrics import read_metrics
from rnn_blocks.recipes.run.tracking import wandb_logger

REASONS = {"outlier": PURPLE, "promise": GREEN}  # of `Auto`, in its metrics' names
# Of a word on the lines: it can be read over them.
ON_LINES = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
Series = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class RunPlots(Callback):
    """Draws ``loss.png``, ``gradient_norm.png`` and ``scores.png`` from the metrics when training ends, or breaks off.

    Args:
        folder: the run's.

    >>> RunPlots(RunFolder(Path("run"))).state_key
    'RunPlots'
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        self._draw(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Draw what there is; what goes wrong with that is told, and does not take the place of the exception."""
        try:
            self._draw(trainer)
        except Exception as error:  # a full disk's, above all
            sys.stderr.write(f"{self._folder.plots}: the run could not be drawn ({error})\n")

    def _draw(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        paths = draw_run(self._folder)
        tracker = wandb_logger(trainer)
        if tracker is not None and paths:
            tracker.log_image("plots", [str(path) for path in paths], caption=[path.stem for path in paths])


def draw_run(folder: RunFolder) -> list[Path]:
    """Draw a run's plots from its ``metrics.csv``.

    Returns:
        The pictures; none where nothing was logged yet.

    >>> draw_run(RunFolder(Path("no-such-folder")))
    []
    """
    if not folder.metrics.is_file():
        return []
    rows = read_metrics(folder.metrics)
    folder.plots.mkdir(exist_ok=True)
    paths = []
    for name, draw in (("loss", _draw_loss), ("gradient_norm", _draw_gradient_norm), ("scores", _draw_scores)):
        figure = draw(rows)
        if figure is not None:
            path = folder.plots / f"{name}.png"
            figure.savefig(path, dpi=130)
            paths.append(path)
    return paths


def _series(rows: list[dict[str, str]], name: str) -> Series:
    points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps), np.array(values)


def _draw_loss(rows: list[dict[str, str]]) -> Any | None:
    steps, loss = _series(rows, "train/loss")
    val_steps, val_loss = _series(rows, "val/loss")
    if not len(steps) and not len(val_steps):
        return None
    tokens = any(row.get("val/perplexity") for row in rows) or not len(val_steps)
    figure, axes = new_figure("Loss", "step", "cross-entropy, nats a token" if tokens else "loss")
    alone = "o" if len(loss) == 1 else None  # a line of one point is none
    axes.plot(steps, loss, color=BLUE, alpha=0.25 if len(loss) > 50 else 0.9, linewidth=1, marker=alone, markersize=4)
    if len(loss) > 50:
        window = max(5, len(loss) // 50)
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=BLUE, label=f"train (mean of {window} logged)")
    elif len(loss):
        axes.lines[0].set_label("train")
    if len(val_loss):
        with np.errstate(over="ignore"):  # of a run that diverged: inf
            last = f"a perplexity of {np.exp(val_loss[-1]):.4g}" if tokens else f"{val_loss[-1]:.3g}"
        axes.plot(val_steps, val_loss, color=ORANGE, marker="o", markersize=4, label=f"validation, at last {last}")
    every = np.concatenate([loss, val_loss])
    every = every[np.isfinite(every)]
    if len(every):
        low, high = every.min(), np.quantile(every, 0.99)
        axes.set_ylim(low - 0.05 * (high - low + 1e-3), high + 0.15 * (high - low + 1e-3))
    axes.legend(frameon=False)
    return figure


def _draw_gradient_norm(rows: list[dict[str, str]]) -> Any | None:
    steps, norms = _series(rows, "grad_norm/total")
    if not len(steps):
        return None
    figure, axes = new_figure("Gradient norm", "step", "norm")
    axes.plot(steps, norms, color=BLUE, linewidth=1, alpha=0.8, label="gradient norm, before clipping")
    limit_steps, limits = _series(rows, "grad_clip/threshold")
    if len(limits):
        axes.plot(limit_steps, limits, color=ORANGE, linewidth=1.5, label="threshold")
    clip_steps, coefficients = _series(rows, "grad_clip/coefficient")
    norm_at = dict(zip(steps.tolist(), norms.tolist(), strict=True))
    clipped = [step for step, c in zip(clip_steps.tolist(), coefficients.tolist(), strict=True) if c < 1]
    clipped = [step for step in clipped if step in norm_at]
    if clipped:
        label = f"clipped ({len(clipped)} of {len(steps)} logged steps)"
        axes.scatter(clipped, [norm_at[step] for step in clipped], color=RED, s=10, zorder=3, label=label)
    axes.set_yscale("log")
    _draw_clipped_shares(axes, rows)
    axes.legend(frameon=False)
    return figure


def _draw_clipped_shares(axes: Any, rows: list[dict[str, str]]) -> None:
    """Behind the norms, how many steps were clipped: why, one above the other, where the policy has reasons."""
    steps, fractions = _series(rows, "grad_clip/clipped_fraction")
    if not fractions.any():
        return
    reasons = {name: _series(rows, f"grad_clip/{name}_fraction")[1] for name in REASONS}
    reasons = {name: values for name, values in reasons.items() if len(values) == len(steps)}
    share = axes.twinx()
    begin = max(2 * steps[0] - steps[1], 0) if len(steps) > 1 else 0
    edges, bottom = np.insert(steps, 0, begin), np.zeros(len(steps) + 1)
    for name, values in (reasons or {"": fractions}).items():
        colour, top = REASONS.get(name, GREY), bottom + 100 * np.insert(values, 0, values[0])
        share.fill_between(edges, bottom, top, color=colour, alpha=0.25, linewidth=0, step="pre")
        if name and values.any():
            axes.fill_between([], [], color=colour, alpha=0.25, label=f"share clipped: {name}s")
        bottom = top
    share.set_ylim(0, 100)
    share.set_ylabel("steps clipped since the last log, %", color=GREY)
    share.spines[["top"]].set_visible(False)
    axes.set_zorder(share.get_zorder() + 1)
    axes.patch.set_visible(False)


def _draw_scores(rows: list[dict[str, str]]) -> Any | None:
    names = {"val/bleu": ("BLEU", BLUE), "val/chrf": ("chrF", ORANGE), "val/exact_match": ("exactly right", GREY)}
    drawn = {name: series for name in names if len((series := _series(rows, name))[0])}
    if not drawn:
        return None
    figure, axes = new_figure("Translation quality on the validation split", "step", "percent")
    for name, (steps, scores) in drawn.items():
        label, colour = names[name]
        axes.plot(steps, scores, color=colour, marker="o", markersize=4, label=label)
    first, (steps, scores) = next(iter(drawn.items()))
    best = int(scores.argmax())
    axes.annotate(
        f"{scores[best]:.2f}",
        (steps[best], scores[best]),
        textcoords="offset points",
        xytext=(0, 8),
        ha="center",
        color=names[first][1],
        bbox=ON_LINES,
    )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure
