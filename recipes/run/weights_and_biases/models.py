"""A run's best and last checkpoint in Weights & Biases, as versions of one artifact."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from rnn_blocks.recipes.run.weights_and_biases.logger import WandbRun
from rnn_blocks.recipes.run.weights_and_biases.mode import first_line

FILE = "model.ckpt"  # in the artifact, as Lightning names it
WAITING = "models"  # in W&B's folder of the run: what is to be uploaded


class LoggedModels(Callback):
    """Logs checkpoints as versions of the artifact ``model-RUN_ID``, of the type ``model``.

    Each has its name, ``best`` or ``last``, and ``step-N`` among its aliases. The best is uploaded whenever there is a
    new one, the last when the training ends, be it by a signal or an error. At the end of a training versions that
    others have replaced are deleted. Offline both wait in W&B's folder of the run for ``wandb sync``. Whatever goes
    wrong is told in one line: it is not worth the training.

    Args:
        best: where the best checkpoint is written.
        last: where the last one is.
        told: what is in the metadata beside step, epoch and metrics.
        metrics: the metrics at a step.

    >>> LoggedModels(Path("best.ckpt"), Path("last.ckpt"), {}, lambda step: {}).state_key
    'LoggedModels'
    """

    def __init__(
        self,
        best: Path,
        last: Path,
        told: Mapping[str, Any],
        metrics: Callable[[int], dict[str, float]],
    ) -> None:
        self._paths = {"best": best, "last": last}
        self._told = dict(told)
        self._metrics = metrics
        self._written: dict[str, int] = {}  # when what was logged had been written
        self._logged: list[Any] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Upload a new best one."""
        run = _run(trainer)
        if run is not None and run.mode != "offline" and trainer.state.fn == TrainerFn.FITTING:
            self._log(trainer, run, ["best"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log what there is, and clear up."""
        run = _run(trainer)
        if run is None:
            return
        self._log(trainer, run, ["best", "last"])
        if run.mode != "offline":
            self._clear_up(run)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Log what there is; whoever ends a training early does not wait."""
        run = _run(trainer)
        if run is not None:
            self._log(trainer, run, ["best", "last"])

    def _log(self, trainer: pl.Trainer, run: WandbRun, names: list[str]) -> None:
        try:
            for logger in trainer.loggers:
                logger.save()  # the metrics
            new = [name for name in names if self._is_new(name)]
            for name in new:
                self._log_one(run.experiment, name)
        except Exception as error:
            _say(f"the model could not be logged: {first_line(error)}")
            return
        if new and run.mode == "offline":
            artifact, place = f"model-{run.experiment.id}", Path(run.experiment.dir).parent
            _say(f"{' and '.join(new)} will be uploaded as {artifact} by: wandb sync {quote(str(place))}")

    def _is_new(self, name: str) -> bool:
        path = self._paths[name]
        return path.is_file() and path.stat().st_mtime_ns != self._written.get(name)

    def _log_one(self, run: Any, name: str) -> None:
        import wandb

        path = self._paths[name]
        written = path.stat().st_mtime_ns
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        step, metrics = held["global_step"], self._metrics(held["global_step"])
        metadata = {"step": step, "epoch": held["epoch"], "metrics": metrics, **self._told}
        artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
        kept = _keep(path, Path(run.dir).parent / WAITING / f"{name}-{step:06d}.ckpt")
        artifact.add_file(str(kept), name=FILE, policy="immutable", skip_cache=True)
        self._logged.append(run.log_artifact(artifact, aliases=[name, f"step-{step}"]))
        self._written[name] = written

    def _clear_up(self, run: WandbRun) -> None:
        import wandb

        try:
            for artifact in self._logged:
                artifact.wait()
            if self._logged:
                experiment = run.experiment
                for waiting in Path(experiment.dir).parents[1].glob(f"run-*/{WAITING}"):  # offline runs' are needed
                    shutil.rmtree(waiting)
                place = f"{experiment.entity}/{experiment.project}/model-{experiment.id}"
                delete_replaced(wandb.Api().artifacts("model", place))
        except Exception as error:
            _say(f"models that were replaced could not be deleted: {first_line(error)}")


def delete_replaced(versions: Any) -> None:
    """Delete the versions of an artifact that are neither the best nor the last any more.

    Args:
        versions: all of them. One with an alias that somebody gave it stays.
    """
    for version in list(versions):
        if set(version.aliases) <= {"latest", f"step-{version.metadata.get('step')}"}:
            version.delete(delete_aliases=True)


def _run(trainer: pl.Trainer) -> WandbRun | None:
    """The run that a model goes to, on the rank that logs it."""
    if trainer.sanity_checking or not trainer.is_global_zero:
        return None
    return next((own for own in trainer.loggers if isinstance(own, WandbRun) and own.mode != "disabled"), None)


def _keep(path: Path, place: Path) -> Path:
    """The file as it is now, under another name: it takes no room until it is written again."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        os.link(path, place)
    except OSError:  # of a file system without links
        shutil.copyfile(path, place)
    return place.resolve()


def _say(what: str) -> None:
    sys.stderr.write(f"Weights & Biases: {what}\n")
