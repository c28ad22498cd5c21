"""All of Lightning that the callbacks know: its classes, its loggers, its strategies, and its state."""

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from rnn_blocks.callbacks.trainer.callback import Callback
from rnn_blocks.callbacks.trainer.loggers import (
    is_logging_step,
    log_figure,
    log_histogram,
    log_metrics,
    logged_step,
    logs_steps,
    logs_this_step,
    metric_suffix,
)
from rnn_blocks.callbacks.trainer.namespaces import (
    LightningModule,
    MisconfigurationException,
    Trainer,
    is_overridden,
)
from rnn_blocks.callbacks.trainer.others import (
    averages_weights,
    callbacks_of,
    go_around,
    go_first,
    may_change_gradients,
)
from rnn_blocks.callbacks.trainer.state import (
    gradient_scaler,
    index_of,
    is_fitting,
    makes_step,
    note_backward,
    trained_parameters,
)
from rnn_blocks.callbacks.trainer.steps import UnseenSteps
from rnn_blocks.callbacks.trainer.strategies import (
    refuse_sharded_parameters,
    refuse_unsupported_optimizer,
    refuse_unsupported_strategy,
)

__all__ = [
    "Callback",
    "LightningModule",
    "MisconfigurationException",
    "Trainer",
    "UnseenSteps",
    "averages_weights",
    "callbacks_of",
    "go_around",
    "go_first",
    "gradient_scaler",
    "index_of",
    "is_fitting",
    "is_logging_step",
    "is_overridden",
    "log_figure",
    "log_histogram",
    "log_metrics",
    "logged_step",
    "logs_steps",
    "logs_this_step",
    "makes_step",
    "may_change_gradients",
    "metric_suffix",
    "note_backward",
    "rank_zero_info",
    "rank_zero_warn",
    "refuse_sharded_parameters",
    "refuse_unsupported_optimizer",
    "refuse_unsupported_strategy",
    "trained_parameters",
]
