"""All of Lightning that the callbacks know: its classes, its loggers, its strategies, and its state."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden

from rnn_blocks.callbacks.trainer.loggers import (
    is_logging_step,
    log_figure,
    log_histogram,
    log_metrics,
    logged_step,
    metric_suffix,
)
from rnn_blocks.callbacks.trainer.others import AVERAGING, callbacks_of, go_first, go_last
from rnn_blocks.callbacks.trainer.state import gradient_scaler, parameter_names
from rnn_blocks.callbacks.trainer.strategies import (
    refuse_sharded_parameters,
    refuse_unsupported_optimizer,
    refuse_unsupported_strategy,
)

__all__ = [
    "AVERAGING",
    "Callback",
    "LightningModule",
    "MisconfigurationException",
    "Trainer",
    "TrainerFn",
    "callbacks_of",
    "go_first",
    "go_last",
    "gradient_scaler",
    "is_logging_step",
    "is_overridden",
    "log_figure",
    "log_histogram",
    "log_metrics",
    "logged_step",
    "metric_suffix",
    "parameter_names",
    "rank_zero_info",
    "rank_zero_warn",
    "refuse_sharded_parameters",
    "refuse_unsupported_optimizer",
    "refuse_unsupported_strategy",
]
