"""What the trainings that predict tokens share: losses weighted by tokens, throughput, optimizer and schedule."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn

from rnn_blocks.cells.settled import writable
from rnn_blocks.modules.hub import Pretrained
from rnn_blocks.modules.token_loss import TokenLoss

LOSS_SINCE_LOG = "loss_since_log"  # the checkpoint's key
STAGES = ("train", "val", "test")


def adam(params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Adam with a learning rate of 0.001: the default optimizer.

    >>> adam([torch.zeros(1, requires_grad=True)]).param_groups[0]["lr"]
    0.001
    """
    return torch.optim.Adam(params, lr=1e-3)


class _Shared:
    """What copies of a module share: the command line's functions hold its parser, which cannot be copied."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, argument: Any) -> Any:
        return self.function(argument)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


class TokenModule(pl.LightningModule, Pretrained):
    """A training on tokens: a module adds its batches to :meth:`statistics` and calls :meth:`log_training`.

    Logged: ``train/`` and ``val/`` (``test/``) ``loss``, ``perplexity`` and, where bytes are known,
    ``bits_per_byte``, each over all tokens since the last log or of the pass, and ``throughput/tokens_per_second``.

    Args:
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the learning-rate schedule from the optimizer.
        lr_interval: whether the schedule steps each ``"epoch"`` or each ``"step"``.

    Raises:
        ValueError: for another interval.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        lr_interval: Literal["epoch", "step"],
    ) -> None:
        super().__init__()
        if lr_interval not in ("epoch", "step"):
            raise ValueError(f"lr_interval must be 'epoch' or 'step', got {lr_interval!r}")
        self._make_optimizer = _Shared(optimizer)
        self._make_lr_scheduler = None if lr_scheduler is None else _Shared(lr_scheduler)
        self._lr_interval: str = lr_interval
        self._statistics = nn.ModuleDict({f"{stage}_loss": TokenLoss() for stage in STAGES})
        self._last_log = self._validation_began = time.perf_counter()

    def statistics(self, stage: str) -> TokenLoss:
        """The sums of a stage."""
        statistics = self._statistics[f"{stage}_loss"]
        assert isinstance(statistics, TokenLoss)
        return statistics

    def log_training(self) -> None:
        """Log the training's loss since the last log, where the trainer logs."""
        # while gradients accumulate, Lightning drops what is logged
        if not self.trainer._logger_connector.should_update_logs or self.trainer.fit_loop._should_accumulate():
            return
        statistics = self.statistics("train")
        now = time.perf_counter()
        tokens = statistics.tokens * self.trainer.world_size
        metrics = {f"train/{name}": value for name, value in statistics.compute().items()}
        metrics["throughput/tokens_per_second"] = tokens / (now - self._last_log)
        self._last_log = now
        statistics.reset()
        self.log_dict({name: value.float() for name, value in metrics.items()})

    def _log_pass(self, stage: str) -> None:
        statistics = self.statistics(stage)
        metrics = statistics.compute()
        statistics.reset()
        self.log_dict({f"{stage}/{name}": value.float() for name, value in metrics.items()}, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Logs the pass's loss."""
        self._log_pass("val")

    def on_test_epoch_end(self) -> None:
        """Logs the pass's loss."""
        self._log_pass("test")

    def on_train_start(self) -> None:
        """Starts the clock of the throughput."""
        self._last_log = time.perf_counter()
        if self.trainer.global_step == 0:  # a new training from a checkpoint's weights
            self.statistics("train").reset()

    def on_validation_start(self) -> None:
        """Stops the clock of the throughput."""
        self._validation_began = time.perf_counter()

    def on_validation_end(self) -> None:
        """Lets the clock of the throughput go on."""
        self._last_log += time.perf_counter() - self._validation_began

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the loss since the last log, of all ranks."""
        sums = self.statistics("train").sums()
        checkpoint[LOSS_SINCE_LOG] = self.gathered(sums[None]).sum(0) if self.trainer.world_size > 1 else sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it back, to carry on from."""
        if LOSS_SINCE_LOG in checkpoint and self.global_rank == 0:  # the sum over ranks must count it once
            self.statistics("train").add_sums(checkpoint[LOSS_SINCE_LOG])

    def gathered(self, tensor: Tensor) -> Tensor:
        """The rows of all ranks, ``(ranks * rows, …)``."""
        rows = self.all_gather(tensor)
        assert isinstance(rows, Tensor)
        return rows.flatten(0, 1)

    def configure_optimizers(self) -> Any:
        """The optimizer and, where there is one, the schedule."""
        optimizer = self._make_optimizer(self.parameters())
        if self._make_lr_scheduler is None:
            return optimizer
        scheduler = self._make_lr_scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": self._lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}

    def evaluating(self) -> AbstractContextManager[None]:
        """In evaluation mode, and each part back to its mode before: some may be frozen in evaluation mode."""
        return evaluating(self.modules())


def init_tokens(
    module: nn.Module,
    embeddings: Sequence[nn.Embedding],
    output: nn.Module,
    init_range: float | None,
    *,
    embedding_range: float = 0.1,
    tied_range: float = 0.1,
) -> None:
    """How a model over tokens starts.

    Args:
        module: the whole model; with ``init_range`` its matrices start uniform within ± that. Vectors stay: biases, but
            also gains of a normalisation and decays of a linear recurrence, which are not made to start near zero; and
            so does what starts at zero, such as a learned first state.
        embeddings: those of the model.
        output: its output layer, whose bias starts at zero; one that is not linear starts as it says itself.
        init_range: see ``module``. Without one the output starts uniform within ±0.1, and all but the embeddings as it
            says itself.
        embedding_range: without ``init_range``, embeddings start uniform within ± this. Larger than 0.1, a language
            model of words begins faster and ends worse.
        tied_range: the same of weights that are the output's as well.

    >>> words, output = nn.Embedding(9, 4), nn.Linear(4, 9)
    >>> init_tokens(nn.ModuleList([words, output]), [words], output, None)
    >>> words.weight.abs().max().item() <= 0.1, output.bias.abs().max().item()
    (True, 0.0)
    """
    if isinstance(output, nn.Linear):
        nn.init.zeros_(output.bias)
    if init_range is not None:
        with torch.no_grad(), writable(module) as plain:
            for parameter in plain.parameters():
                if parameter.dim() > 1 and (parameter.is_meta or parameter.any()):
                    parameter.uniform_(-init_range, init_range)
        return
    for embedding in embeddings:
        nn.init.uniform_(embedding.weight, -embedding_range, embedding_range)
    if isinstance(output, nn.Linear):
        bound = tied_range if any(embedding.weight is output.weight for embedding in embeddings) else 0.1
        nn.init.uniform_(output.weight, -bound, bound)


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Those modules in evaluation mode, and each back to its mode before.

    >>> layer = nn.Dropout()
    >>> with evaluating([layer]):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
