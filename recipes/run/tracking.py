"""Where the metrics of a run go: Weights & Biases or TensorBoard, and always a CSV file."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from rnn_blocks.recipes.run.folder import RunFolder, write_whole
from rnn_blocks.recipes.run.metrics import read_metrics
from rnn_blocks.recipes.run.metrics_csv import MetricsCSV
from rnn_blocks.recipes.run.weights_and_biases.logger import WandbRun
from rnn_blocks.recipes.run.weights_and_biases.mode import wandb_mode
from rnn_blocks.recipes.run.weights_and_biases.summaries import Best, BestValues, directions

LoggerChoice: TypeAlias = Literal["wandb", "tensorboard", "csv"]


def make_loggers(
    choice: LoggerChoice,
    folder: RunFolder,
    *,
    project: str,
    recipe: str,
    named: bool = False,
    run_id: str | None = None,
    resume_step: int | None = None,
    monitors: Mapping[str, Best] | None = None,
) -> list[Logger]:
    """The loggers of a run; the CSV file is among them whatever is chosen.

    Args:
        choice: ``"wandb"``, ``"tensorboard"`` or ``"csv"``.
        folder: the run's.
        project: of Weights & Biases.
        recipe: the recipe's name, a tag of the run.
        named: whether the user named the folder: ``$WANDB_NAME`` then names nothing.
        run_id: of the Weights & Biases run to go on with.
        resume_step: the step that the run resumes at.
        monitors: what the recipe can choose its best checkpoint by.

    >>> import tempfile
    >>> folder = RunFolder(Path(tempfile.mkdtemp()))
    >>> [type(logger).__name__ for logger in make_loggers("csv", folder, project="p", recipe="language-model")]
    ['MetricsCSV']
    """
    loggers: list[Logger] = [MetricsCSV(folder.metrics, resume_step=resume_step)]
    if choice == "wandb":
        best = BestValues(directions(monitors or {}))
        for row in read_metrics(folder.metrics) if folder.metrics.is_file() else []:
            best.add(row)
        loggers.insert(0, _wandb_logger(folder, project, recipe, named, run_id, best))
    elif choice == "tensorboard":
        loggers.insert(0, TensorBoardLogger(folder.path, name="", version="tensorboard"))
    return loggers


def _wandb_logger(
    folder: RunFolder, project: str, recipe: str, named: bool, run_id: str | None, best: BestValues
) -> WandbLogger:
    import wandb

    mode = wandb_mode()
    tags = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    # What is not given here is of W&B's environment: WANDB_ENTITY, WANDB_RUN_GROUP, … "allow" lets the files of several
    # processes be parts of one run.
    return WandbRun(
        mode,
        best,
        name=folder.path.name if named or not os.environ.get("WANDB_NAME") else None,
        save_dir=str(folder.path),
        project=project,
        id=run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
        resume="allow" if run_id else None,
        tags=list(dict.fromkeys([recipe, *tags])),
        settings=wandb.Settings(console="off", silent=True),
    )


def wandb_logger(trainer: pl.Trainer) -> WandbLogger | None:
    """The trainer's Weights & Biases logger, if it has one.

    >>> wandb_logger(pl.Trainer(logger=False, enable_checkpointing=False)) is None
    True
    """
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)


class TrackedRun(Callback):
    """Puts the run's id into the checkpoint, and the resolved configuration into the run and its folder.

    Args:
        folder: the run's.
        config: the resolved configuration, as YAML.

    >>> TrackedRun(RunFolder(Path("run")), "seed_everything: 1").state_dict()
    {'wandb_run_id': None}
    """

    def __init__(self, folder: RunFolder, config: str) -> None:
        self._folder = folder
        self._config = config
        self._run_id: str | None = None
        self._restored = False
        self._writes = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the configuration."""
        logger = wandb_logger(trainer)
        self._run_id = None if logger is None else str(logger.version)
        if not trainer.is_global_zero:
            return
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # a trial of a few steps leaves no run
            if self._folder.config.exists():  # what goes on may be refused yet: the run stays as it was until it does
                self._writes = True
            else:
                self._write(self._folder.config)
        if logger is not None:
            logger.experiment.config.update(yaml.safe_load(self._config), allow_val_change=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the configuration of a training that was at its end already; one that is refused does not come here."""
        self._write_if_due()

    def _write_if_due(self) -> None:
        if self._writes:
            self._writes = False
            self._write(self._folder.config)

    def _write(self, path: Path) -> None:
        before = path.read_bytes() if path.exists() else None
        if before == self._config.encode():
            return
        if before is not None:
            number = len(list(path.parent.glob("config.before-*.yaml"))) + 1
            path.with_name(f"config.before-{number}.yaml").write_bytes(before)
        write_whole(path, self._config)

    def state_dict(self) -> dict[str, Any]:
        """The run's id."""
        return {"wandb_run_id": self._run_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know that the training goes on with a checkpoint."""
        self._restored = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the configuration of a training that goes on, and number the rows by the steps.

        For from a checkpoint of a validation's step Lightning may go on one too far.
        """
        self._write_if_due()
        if self._restored:
            self._restored = False
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See that the rows of the steps before are kept: whoever goes on from the checkpoint does not make them."""
        logger = wandb_logger(trainer)
        if isinstance(logger, WandbRun):
            logger.end_row(before=trainer.global_step - 1)


def tracked_run_id(checkpoint: dict[str, Any]) -> str | None:
    """The id of the Weights & Biases run that wrote a checkpoint.

    >>> tracked_run_id({"callbacks": {"TrackedRun": {"wandb_run_id": "abc"}}})
    'abc'
    """
    state = checkpoint.get("callbacks", {}).get(TrackedRun.__qualname__, {})
    run_id = state.get("wandb_run_id")
    return None if run_id is None else str(run_id)


def offline_runs(folder: RunFolder) -> list[Path]:
    """The folders of offline Weights & Biases runs, oldest first.

    >>> offline_runs(RunFolder(Path("no-such-folder")))
    []
    """
    return sorted((folder.path / "wandb").glob("offline-run-*"))
