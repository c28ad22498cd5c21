"""What goes to a trainer's loggers, and when: metrics, histograms, figures."""

import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from rnn_blocks.callbacks.trainer.namespaces import LightningModule, Trainer, is_lightnings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "plots"
_failed: "WeakKeyDictionary[Trainer, set[str]]" = WeakKeyDictionary()  # loggers that did not take metrics
_without_loggers: "WeakKeyDictionary[Trainer, str]" = WeakKeyDictionary()  # where a trainer's figures go


def is_logging_step(trainer: Trainer) -> bool:
    """Whether the trainer logs at the end of this training batch; the same answer all through the batch."""
    return trainer._logger_connector.should_update_logs


def logs_steps(trainer: Trainer) -> bool:
    """Whether the trainer logs any training step at all."""
    return bool(cast(Any, trainer).log_every_n_steps)


def logs_this_step(trainer: Trainer, module: LightningModule) -> bool:
    """Whether an optimizer step that is about to be made may be logged, now or at the end of a later batch.

    Under automatic optimisation what is logged is the step of a batch that logs. Under manual optimisation an optimizer
    may step when nothing is logged, and not when something is: what is logged is its last step.
    """
    return is_logging_step(trainer) or not module.automatic_optimization


def logged_step(trainer: Trainer) -> int:
    """The training metrics' step number."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_metrics(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Hand metrics to every logger under the training metrics' step number, and to `trainer.callback_metrics`.

    A logger that fails is warned about, once a trainer: a measurement is not worth the training.
    """
    if not metrics:
        return
    trainer.callback_metrics.update({name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()})
    for logger in trainer.loggers:
        try:
            logger.log_metrics(dict(metrics), step=logged_step(trainer))
        except Exception as error:
            kind, failed = type(logger).__name__, _failed.setdefault(trainer, set())
            if kind not in failed:
                failed.add(kind)
                rank_zero_warn(f"{kind} did not take {', '.join(metrics)}: {type(error).__name__}: {error}")


def metric_suffix(trainer: Trainer, optimizer_index: int) -> str:
    """What is added to metric names to tell several optimizers apart; empty where there is one."""
    return f"/optimizer_{optimizer_index}" if len(trainer.optimizers) > 1 else ""


def log_histogram(trainer: Trainer, name: str, values: list[float]) -> None:
    """Hand a histogram of values to the trainer's Weights & Biases and TensorBoard loggers; no values, no histogram."""
    if not trainer.is_global_zero or not values:
        return
    step = logged_step(trainer)
    for logger in trainer.loggers:
        if is_lightnings(logger, "WandbLogger"):
            import wandb

            histogram: Any = wandb.Histogram(values)
            logger.log_metrics({name: histogram}, step=step)
        elif is_lightnings(logger, "TensorBoardLogger"):
            cast(Any, logger).experiment.add_histogram(name, torch.tensor(values), global_step=step)


def log_figure(trainer: Trainer, name: str, figure: "Figure", *, folder: Path | None = None) -> Path | None:
    """Write a figure below the run's log folder, and hand it to every logger that takes pictures.

    Those are Weights & Biases' and any other logger with its ``log_image(key, images, step=)``, and TensorBoard's.
    Ranks but the first do nothing, and nothing is waited for: it may be called by the first rank alone, and when a
    training broke off. A file that cannot be written, and a logger that does not take the figure, are warned about:
    they are not worth the training.

    Args:
        trainer: whose loggers and log folder to use.
        name: of the figure, as a metric's; a slash makes a folder of the file's name.
        figure: matplotlib's.
        folder: for the file, in place of the log folder's ``plots``.

    Returns:
        The file, ``<log folder>/plots/<name>.png``, always replaced as a whole (without a logger in the first of
        ``plots``, ``plots-1``, … that is not there when the trainer draws first); None on other ranks, under
        ``fast_dev_run`` where no folder is given, if it could not be written, or if the log folder is a URL.
    """
    if not trainer.is_global_zero or (folder is None and getattr(trainer, "fast_dev_run", False)):
        return None
    place = str(folder) if folder else _plots(trainer)
    if "://" not in place:
        return _hand_out(trainer, name, figure, Path(place) / f"{name}.png")
    from fsspec.core import url_to_fs  # which Lightning brings

    with TemporaryDirectory() as passing:
        path = _hand_out(trainer, name, figure, Path(passing) / f"{name}.png")
        try:
            files, root = url_to_fs(f"{place}/{name}.png")
            files.makedirs(files._parent(root), exist_ok=True)
            files.put_file(str(path), root)
        except OSError as error:
            rank_zero_warn(f"The figure {name!r} could not be written to {place}: {error}")
    return None


def _hand_out(trainer: Trainer, name: str, figure: "Figure", file: Path) -> Path | None:
    step = logged_step(trainer)
    path: Path | None = file
    try:
        _write(figure, file)
    except OSError as error:
        rank_zero_warn(f"The figure {name!r} could not be written to {path}: {error}")
        path = None
    for logger in trainer.loggers:
        try:
            if is_lightnings(logger, "TensorBoardLogger"):
                cast(Any, logger).experiment.add_figure(name, figure, global_step=step, close=False)
            elif path is not None and callable(log_image := getattr(logger, "log_image", None)):
                log_image(key=name, images=[str(path)], step=step)
        except Exception as error:  # whatever a logger of somebody's own takes for a picture
            rank_zero_warn(f"{type(logger).__name__} did not take the figure {name!r}: {error}")
    return path


def _plots(trainer: Trainer) -> str:
    place = f"{_log_folder(trainer)}/{FOLDER}"
    if trainer.loggers or "://" in place:
        return place
    if trainer not in _without_loggers:  # somebody's folder, or another training's, stays as it is
        numbered = (place if number == 0 else f"{place}-{number}" for number in count())
        _without_loggers[trainer] = next(path for path in numbered if not os.path.lexists(path))
        rank_zero_info(f"There is no logger: figures are written to {_without_loggers[trainer]}")
    return _without_loggers[trainer]


def _log_folder(trainer: Trainer) -> str:
    # As `trainer.log_dir`, which is a broadcast: it would wait for ranks that have nothing to draw, or have failed.
    folder: str | None = None
    if trainer.loggers:
        logger = trainer.loggers[0]
        folder = logger.log_dir if is_lightnings(logger, "TensorBoardLogger", "CSVLogger") else logger.save_dir
    return str(folder or trainer.default_root_dir)


def _write(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(partial, dpi=130, format="png")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
