"""A recurrent language model: predict the next token."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn
from torch.nn.functional import dropout

from rnn_blocks.engine import State, detach_state, map_state, state_tensors
from rnn_blocks.layers import Layer
from rnn_blocks.modules.generation import check_sampling, sample_token, stream_tokens
from rnn_blocks.modules.linear_cross_entropy import linear_cross_entropy
from rnn_blocks.modules.text_batch import TextBatch
from rnn_blocks.modules.token_loss import TokenLoss

CARRIED_STATE, LOSS_SINCE_LOG = "carried_state", "loss_since_log"  # the checkpoint's keys


def adam(params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Adam with a learning rate of 0.001: the default optimizer.

    >>> adam([torch.zeros(1, requires_grad=True)]).param_groups[0]["lr"]
    0.001
    """
    return torch.optim.Adam(params, lr=1e-3)


class LanguageModel(pl.LightningModule):
    """Predict the next token of a stream: embedding, any recurrent layer, softmax.

    Batches are :class:`~rnn_blocks.TextBatch`: chunks of streams read side by side. The state is carried from a batch
    to the next and detached (truncated BPTT under automatic optimisation), starts afresh where the batch says
    ``fresh``, is kept apart for validation, and is saved in the checkpoint. A plain pair ``(inputs, targets)`` is a
    batch of its own, without a state carried in.

    Logged: ``train/`` and ``val/`` (``test/``) ``loss``, ``perplexity`` and ``bits_per_byte``, and
    ``throughput/tokens_per_second``.

    Args:
        layer: any layer, e.g. ``rnn_blocks.LSTM(200, 200, num_layers=2)``.
        vocab_size: how many tokens there are.
        tie_weights: whether the output's weights are the embedding's (Inan et al. 2017; Press & Wolf 2017).
        dropout: the part zeroed after the embedding and before the output, as in Zaremba et al. (2014), who put the
            same between layers: that place is the layer's own ``dropout``.
        sum_over_time: differentiate the loss summed over the steps of a chunk and averaged over the lanes, as Zaremba
            et al. and other early recipes do, whose learning rates and clipping thresholds are for that; by default it
            is averaged over all tokens. What is logged is the average in either case.
        init_range: all weights start uniform within ± this, as in Zaremba et al.; by default the layer's start as its
            cell says, the embedding and the output within ±0.1, the output's bias at zero.
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the learning-rate schedule from the optimizer.
        lr_interval: whether the schedule steps each ``"epoch"`` or each ``"step"``.

    Raises:
        ValueError: for a layer that looks ahead, tied weights where its sizes differ, or a number out of its range.

    >>> import rnn_blocks
    >>> model = LanguageModel(rnn_blocks.LSTM(16, 16, num_layers=2), vocab_size=50, tie_weights=True)
    >>> logits, state = model(torch.tensor([[3, 1, 4, 1, 5]]))
    >>> logits.shape
    torch.Size([1, 5, 50])
    >>> model.generate([3, 1, 4], max_tokens=5, seed=0).shape
    torch.Size([1, 8])
    """

    def __init__(
        self,
        layer: Layer,
        vocab_size: int,
        *,
        tie_weights: bool = False,
        dropout: float = 0.0,
        sum_over_time: bool = False,
        init_range: float | None = None,
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        # A command line's checkpoints hold all arguments as it was given them and so load by themselves; objects made
        # in Python are left out, and load_from_checkpoint needs the layer again.
        from_command_line = _given_hyperparameters.get() is not None
        self.save_hyperparameters(ignore=[] if from_command_line else ["layer", "optimizer", "lr_scheduler"])
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        if vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, got {vocab_size}")
        if init_range is not None and not 0 < init_range < math.inf:
            raise ValueError(f"init_range must be above 0, got {init_range}")
        if lr_interval not in ("epoch", "step"):
            raise ValueError(f"lr_interval must be 'epoch' or 'step', got {lr_interval!r}")
        if not layer.causal:
            raise ValueError(
                f"a language model predicts what comes next, but this {type(layer).__name__} reads it beforehand: "
                "the layer must be causal, not bidirectional"
            )
        if tie_weights and layer.input_size != layer.output_size:
            raise ValueError(
                f"tie_weights needs a layer that gives as many features as it takes, "
                f"got input_size {layer.input_size} and output_size {layer.output_size}"
            )
        self.layer = layer
        self.embedding = nn.Embedding(vocab_size, layer.input_size)
        self.output = nn.Linear(layer.output_size, vocab_size)
        if tie_weights:
            self.output.weight = self.embedding.weight
        self.dropout = dropout
        self.sum_over_time = sum_over_time
        self._initialise(init_range)
        self._make_optimizer = optimizer
        self._make_lr_scheduler = lr_scheduler
        self._lr_interval: str = lr_interval
        self._carried: dict[str, State | None] = {"train": None, "val": None, "test": None}
        self._statistics = nn.ModuleDict({f"{stage}_loss": TokenLoss() for stage in self._carried})
        self._last_log = self._validation_began = time.perf_counter()

    def _initialise(self, init_range: float | None) -> None:
        if init_range is not None:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -init_range, init_range)
            return
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits of the token after each input.

        Args:
            inputs: ids, ``(batch, time)``.
            state: of the layer, before the first token.

        Returns:
            ``(batch, time, vocab_size)`` and the layer's state after the last token.
        """
        hidden, state = self._hidden(inputs, state)  # (time, batch, features)
        return self.output(hidden).transpose(0, 1), state

    def _hidden(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        embedded = dropout(self.embedding(inputs.t()), self.dropout, self.training)  # (time, batch, features)
        if self.layer.batch_first:
            hidden, state = self.layer(embedded.transpose(0, 1), state)
            hidden = hidden.transpose(0, 1)
        else:
            hidden, state = self.layer(embedded, state)
        return dropout(hidden, self.dropout, self.training), state

    def _loss(self, batch: TextBatch | tuple[Tensor, Tensor], stage: str) -> Tensor:
        if not isinstance(batch, TextBatch):
            batch = TextBatch(*batch)
        state = None if batch.fresh else self._carried_into(stage, batch)
        hidden, state = self._hidden(batch.inputs, state)
        targets = batch.targets.t().flatten()  # (time * batch,)
        loss = linear_cross_entropy(hidden.flatten(0, 1), self.output.weight, self.output.bias, targets)
        num_tokens = (targets != -100).sum()
        sound = loss.isfinite() | (num_tokens == 0)  # else the state would spoil every batch to come
        self._carried[stage] = map_state(lambda tensor: torch.where(sound, tensor, 0.0), detach_state(state))
        self._stage_statistics(stage).update(loss, num_tokens, batch.num_bytes)
        return loss

    def _stage_statistics(self, stage: str) -> TokenLoss:
        statistics = self._statistics[f"{stage}_loss"]
        assert isinstance(statistics, TokenLoss)
        return statistics

    def _carried_into(self, stage: str, batch: TextBatch) -> State | None:
        state = self._carried[stage]
        if state is None:
            return None
        lanes, carried = len(batch.inputs), len(state_tensors(state)[0])
        first = 0
        if carried != lanes:  # read from a checkpoint, which holds the lanes of all ranks
            if carried != lanes * self.trainer.world_size:
                raise ValueError(
                    f"the state to carry on from is of {carried} lanes, but this run has {lanes} in each of "
                    f"{self.trainer.world_size} processes: resume with the batch size of the run that wrote it"
                )
            first = self.trainer.global_rank * lanes
        device = batch.inputs.device
        return map_state(lambda tensor: tensor[first : first + lanes].to(device), state)

    def training_step(self, batch: TextBatch | tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch (with ``sum_over_time``, times its steps), in nats."""
        loss = self._loss(batch, "train")
        # while gradients accumulate, Lightning drops what is logged
        if self.trainer._logger_connector.should_update_logs and not self.trainer.fit_loop._should_accumulate():
            self._log_training()
        return loss * batch[0].shape[1] if self.sum_over_time else loss

    def _log_training(self) -> None:
        statistics = self._stage_statistics("train")
        now = time.perf_counter()
        tokens = statistics.tokens * self.trainer.world_size
        metrics = {f"train/{name}": value for name, value in statistics.compute().items()}
        metrics["throughput/tokens_per_second"] = tokens / (now - self._last_log)
        self._last_log = now
        statistics.reset()
        self.log_dict({name: value.float() for name, value in metrics.items()})

    def validation_step(self, batch: TextBatch | tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds the batch to the pass's loss."""
        self._loss(batch, "val")

    def test_step(self, batch: TextBatch | tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds the batch to the pass's loss."""
        self._loss(batch, "test")

    def _log_pass(self, stage: str) -> None:
        statistics = self._stage_statistics(stage)
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
            self._stage_statistics("train").reset()

    def on_validation_start(self) -> None:
        """Stops the clock of the throughput."""
        self._validation_began = time.perf_counter()

    def on_validation_end(self) -> None:
        """Lets the clock of the throughput go on."""
        self._last_log += time.perf_counter() - self._validation_began

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state carried from batch to batch, and the loss since the last log, of all ranks."""
        state = self._carried["train"]
        sums = self._stage_statistics("train").sums()
        if self.trainer.world_size > 1:
            state = None if state is None else map_state(lambda tensor: self._gathered(tensor), state)
            sums = self._gathered(sums[None]).sum(0)
        checkpoint[CARRIED_STATE] = state
        checkpoint[LOSS_SINCE_LOG] = sums

    def _gathered(self, tensor: Tensor) -> Tensor:
        lanes = self.all_gather(tensor)
        assert isinstance(lanes, Tensor)
        return lanes.flatten(0, 1)  # (ranks, lanes, …) -> (all lanes, …)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back, to carry on from."""
        self._carried["train"] = checkpoint.get(CARRIED_STATE)
        if LOSS_SINCE_LOG in checkpoint and self.global_rank == 0:  # the sum over ranks must count it once
            self._stage_statistics("train").add_sums(checkpoint[LOSS_SINCE_LOG])

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

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor | Sequence[int],
        max_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Continue a prompt.

        The prompt runs through the layer once; from there on each token is one step of the state.

        Args:
            prompt: ids, ``(batch, time)``, or one list of ids; at least one.
            max_tokens: how many tokens are drawn.
            temperature: divides the logits; 0 takes the most probable token.
            top_k: only the k most probable tokens are drawn from.
            top_p: only the most probable tokens that together reach this probability are drawn from.
            seed: makes the draw repeatable.

        Returns:
            Prompt and continuation, ``(batch, time + max_tokens)``.

        Raises:
            ValueError: for an empty prompt, an id outside the vocabulary, or an option out of its range.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        prompt = torch.as_tensor(prompt, dtype=torch.int64, device=self.device)
        prompt = prompt if prompt.dim() == 2 else prompt.view(1, -1)
        stream = self.stream(prompt, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        return torch.cat([prompt, *(next(stream)[:, None] for _ in range(max_tokens))], dim=1)

    @torch.no_grad()  # as a decorator: a `with` around a yield would switch the caller's gradients off, too
    def stream(
        self,
        prompt: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[Tensor]:
        """The tokens that :meth:`generate` would append, one by one without end, ``(batch,)`` each.

        Its arguments are those of :meth:`generate`; ``prompt`` is ``(batch, time)``.
        """
        check_sampling(temperature, top_k, top_p)
        if prompt.shape[1] == 0:
            raise ValueError("the prompt is empty: give at least one token to start from")
        low, high = int(prompt.min()), int(prompt.max())
        if low < 0 or high >= self.embedding.num_embeddings:
            bad = low if low < 0 else high
            raise ValueError(f"the prompt holds token {bad}, the vocabulary has {self.embedding.num_embeddings}")
        generator = torch.Generator(self.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)

        def step(ids: Tensor, state: State) -> tuple[Tensor, State]:
            with self._evaluating():
                hidden, state = self.layer.step(self.embedding(ids), state)
                return self.output(hidden), state

        def draw(logits: Tensor) -> Tensor:
            return sample_token(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)

        with self._evaluating():
            hidden, state = self._hidden(prompt, None)
            logits = self.output(hidden[-1])
        yield from stream_tokens(step, logits, state, draw)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)
