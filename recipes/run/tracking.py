"""Where the metrics of a run go: Weights & Biases or TensorBoard, and always a CSV file."""

import os
import secrets
from pathlib import Path
from typing import Any, Literal, TypeAlias

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.run.metrics_csv import MetricsCSV

LoggerChoice: TypeAlias = Literal["wandb", "tensorboard", "csv"]


def make_loggers(
    choice: LoggerChoice,
    folder: RunFolder,
    *,
    project: str,
    recipe: str,
    run_id: str | None = None,
    resume_step: int | None = None,
) -> list[Logger]:
    """The loggers of a run; the CSV file is among them whatever is chosen.

    Args:
        choice: ``"wandb"``, ``"tensorboard"`` or ``"csv"``.
        folder: the run's.
        project: of Weights & Biases.
        recipe: the recipe's name, a tag of the run.
        run_id: of the Weights & Biases run to go on with.
        resume_step: the step that the run resumes at.

    >>> import tempfile
    >>> folder = RunFolder(Path(tempfile.mkdtemp()))
    >>> [type(logger).__name__ for logger in make_loggers("csv", folder, project="p", recipe="language-model")]
    ['MetricsCSV']
    """
    loggers: list[Logger] = [MetricsCSV(folder.metrics, resume_step=resume_step)]
    if choice == "wandb":
        loggers.insert(0, _wandb_logger(folder, project, recipe, run_id))
    elif choice == "tensorboard":
        loggers.insert(0, TensorBoardLogger(folder.path, name="", version="tensorboard"))
    return loggers


def _wandb_logger(folder: RunFolder, project: str, recipe: str, run_id: str | None) -> WandbLogger:
    import wandb

    # "allow" lets the files of several processes be parts of one run
    return WandbLogger(
        name=folder.path.name,
        save_dir=str(folder.path),
        project=project,
        id=run_id or secrets.token_hex(4),
        resume="allow" if run_id else None,
        tags=[recipe],
        mode=wandb_mode(),
        settings=wandb.Settings(console="off", silent=True),
    )


def wandb_mode() -> Literal["online", "offline", "disabled", "shared"]:
    """``$WANDB_MODE`` if it is set; else online where the user is logged in, offline where not. Asks nothing."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen in ("online", "offline", "disabled", "shared"):
        return chosen  # type: ignore[return-value]
    if getattr(rank_zero_only, "rank", 0) != 0:
        return "offline"  # only the first rank opens the run
    import wandb

    return "online" if wandb.login(prompt=False) else "offline"


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

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the configuration."""
        logger = wandb_logger(trainer)
        self._run_id = None if logger is None else str(logger.version)
        if not trainer.is_global_zero:
            return
        path = self._folder.config
        if path.exists() and path.read_text() != self._config:
            number = len(list(path.parent.glob("config.before-*.yaml"))) + 1
            path.rename(path.with_name(f"config.before-{number}.yaml"))
        path.write_text(self._config)
        if logger is not None:
            logger.experiment.config.update(yaml.safe_load(self._config), allow_val_change=True)

    def state_dict(self) -> dict[str, Any]:
        """The run's id."""
        return {"wandb_run_id": self._run_id}


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
