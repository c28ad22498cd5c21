"""A recurrent language model: predict the next token."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from rnn_blocks.checks import number, whole
from rnn_blocks.engine import State, detach_state, dropout, dropout_mask, map_state, state_tensors
from rnn_blocks.layers import (
    Layer,
    activation_regularisation,
    embedding_dropout,
    temporal_activation_regularisation,
)
from rnn_blocks.layers.layer import check_layer
from rnn_blocks.modules.language_model.chunk_rate import ChunkRate
from rnn_blocks.modules.language_model.text_batch import TextBatch
from rnn_blocks.modules.language_model.writing import Writing
from rnn_blocks.modules.output_layer import adaptive_softmax, word_logits, word_loss
from rnn_blocks.modules.token_module import STAGES, adam, init_tokens

CARRIED_STATE = "carried_state"  # the checkpoint's key


class LanguageModel(Writing):
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
        input_dropout: the part zeroed after the embedding, where it is another one.
        embedding_dropout: the part of the vocabulary that is dropped, a word at all its places at once (Gal &
            Ghahramani 2016, section 4.2).
        locked_dropout: draw the masks of both dropouts once for each lane of a chunk, the same at all its steps
            (Merity et al. 2018, section 4.2); else anew at each step.
        activation_regularisation: the weight of the squared output in training, AR in Merity et al. (2018), section
            4.6: ``α · mean(h²)`` with ``h`` the layer's output after its dropout.
        temporal_activation_regularisation: that of its change from step to step, TAR there: ``β · mean((h_{t+1} -
            h_t)²)`` with ``h`` before the dropout. Both are weighed against the mean loss of a token, and with
            ``sum_over_time`` multiplied as it is. What is logged is the loss without them.
        cutoffs: makes the softmax an adaptive one, faster and smaller for large vocabularies (Grave et al. 2017,
            "Efficient softmax approximation for GPUs"): ids below the first cutoff are the frequent words, each
            further group of ids, from one cutoff to the next, has fewer features. Ids must be ordered by frequency,
            most frequent first, as the recipe's ``word`` tokenizer orders them.
        div_value: how many times fewer features each further group has.
        sum_over_time: differentiate the loss summed over the steps of a chunk and averaged over the lanes, as Zaremba
            et al. and other early recipes do, whose learning rates and clipping thresholds are for that; by default it
            is averaged over all tokens. What is logged is the average in either case.
        init_range: all matrices start uniform within ± this, as in Zaremba et al., and biases, gains and decays as each
            part says; by default the layer starts as its cell says, the embedding and the output within ±0.1, the
            output's bias at zero.
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the learning-rate schedule from the optimizer.
        lr_interval: whether the schedule steps each ``"epoch"`` or each ``"step"``.
        lr_for_bptt: steps of a chunk that the learning rate is meant for: each update is made at the rate times its
            chunk's steps over these (Merity et al. 2018, section 5), for chunks whose lengths are drawn. With gradient
            accumulation it is the chunks' mean. Schedules, monitors and callbacks see the rate without that factor.

    Raises:
        ValueError: for a layer that looks ahead, tied weights where its sizes differ or the softmax is adaptive,
            cutoffs outside of the vocabulary, or a number out of its range.

    >>> import rnn_blocks
    >>> model = LanguageModel(rnn_blocks.LSTM(16, 16, num_layers=2), vocab_size=50, tie_weights=True)
    >>> logits, state = model(torch.tensor([[3, 1, 4, 1, 5]]))
    >>> logits.shape
    torch.Size([1, 5, 50])
    >>> model.generate([3, 1, 4], max_tokens=5, seed=0).shape
    torch.Size([1, 8])
    """

    hub_task = "text-generation"

    def __init__(
        self,
        layer: Layer,
        vocab_size: int,
        *,
        tie_weights: bool = False,
        dropout: float = 0.0,
        input_dropout: float | None = None,
        embedding_dropout: float = 0.0,
        locked_dropout: bool = False,
        activation_regularisation: float = 0.0,
        temporal_activation_regularisation: float = 0.0,
        cutoffs: list[int] | None = None,
        div_value: float = 4.0,
        sum_over_time: bool = False,
        init_range: float | None = None,
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        lr_for_bptt: int | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval)
        # A command line's checkpoints hold all arguments as it was given them and so load by themselves; objects made
        # in Python are left out, and load_from_checkpoint needs the layer again.
        from_command_line = _given_hyperparameters.get() is not None
        self.save_hyperparameters(ignore=[] if from_command_line else ["layer", "optimizer", "lr_scheduler"])
        input_dropout = dropout if input_dropout is None else input_dropout
        parts = {"dropout": dropout, "input_dropout": input_dropout, "embedding_dropout": embedding_dropout}
        for name, part in parts.items():
            number(name, part, high=1)
        penalties = {
            "activation_regularisation": activation_regularisation,
            "temporal_activation_regularisation": temporal_activation_regularisation,
        }
        for name, weight in penalties.items():
            number(name, weight)
        whole("vocab_size", vocab_size, 2)
        if init_range is not None:
            number("init_range", init_range, above=True)
        check_layer(type(self).__name__, layer)
        if not layer.causal:
            raise ValueError(
                f"a language model predicts what comes next, but this {type(layer).__name__} reads it beforehand: "
                "the layer must be causal, not bidirectional"
            )
        if tie_weights and layer.input_size != layer.output_size:
            raise ValueError(
                f"tie_weights needs a layer that gives as many features as it takes, "
                f"got input_size {layer.input_size} and output_size {layer.output_size}: make them equal, or do not tie"
            )
        if tie_weights and cutoffs is not None:
            raise ValueError("tie_weights needs a full softmax: leave out the cutoffs, or do not tie")
        self.layer = layer
        self.embedding = nn.Embedding(vocab_size, layer.input_size)
        if cutoffs is None:
            self.output = nn.Linear(layer.output_size, vocab_size)
        else:
            self.output = adaptive_softmax(layer.output_size, vocab_size, cutoffs, div_value)
        if tie_weights:
            self.output.weight = self.embedding.weight
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.embedding_dropout = embedding_dropout
        self.locked_dropout = locked_dropout
        self.activation_regularisation = activation_regularisation
        self.temporal_activation_regularisation = temporal_activation_regularisation
        self.sum_over_time = sum_over_time
        self._chunk_rate = None if lr_for_bptt is None else ChunkRate(lr_for_bptt)
        init_tokens(self, [self.embedding], self.output, init_range)
        self._carried: dict[str, State | None] = dict.fromkeys(STAGES)

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits of the token after each input; with an adaptive softmax, log-probabilities.

        Args:
            inputs: ids, ``(batch, time)``.
            state: of the layer, before the first token.

        Returns:
            ``(batch, time, vocab_size)`` and the layer's state after the last token.
        """
        hidden, state = self.hidden(inputs, state)  # (time, batch, features)
        return word_logits(self.output, hidden).transpose(0, 1), state

    def hidden(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """What the output layer reads at each input: the layer's output, in training after its dropout.

        Args:
            inputs: ids, ``(batch, time)``.
            state: of the layer, before the first token.

        Returns:
            ``(time, batch, features)``, time first, and the layer's state after the last token.
        """
        _, hidden, state = self._run(inputs, state)
        return hidden, state

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the next token, of any softmax: ``(…, features)`` to ``(…, vocab_size)``."""
        logits = word_logits(self.output, hidden)
        return logits if isinstance(self.output, nn.AdaptiveLogSoftmaxWithLoss) else logits.log_softmax(-1)

    def next_token_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the rows whose target counts.

        Args:
            hidden: ``(rows, features)``, of :meth:`hidden`.
            targets: ids, ``(rows,)``; -100 where a row does not count.

        Returns:
            A scalar in nats; ``nan`` where no row counts.
        """
        return word_loss(self.output, hidden, targets)

    def _run(self, inputs: Tensor, state: State | None) -> tuple[Tensor, Tensor, State]:
        """The layer's output before and after its dropout, ``(time, batch, features)``, and its state."""
        embedded = embedding_dropout(self.embedding, inputs.t(), self.embedding_dropout, self.training)
        embedded = self._dropped(embedded, self.input_dropout)
        if self.layer.batch_first:
            outputs, state = self.layer(embedded.transpose(0, 1), state)
            outputs = outputs.transpose(0, 1)
        else:
            outputs, state = self.layer(embedded, state)
        return outputs, self._dropped(outputs, self.dropout), state

    def _dropped(self, features: Tensor, p: float) -> Tensor:
        if self.locked_dropout and self.training and p:
            return features * dropout_mask(features.shape[1:], p, features)  # (batch, features), the same at all steps
        return dropout(features, p, self.training)

    def _penalty(self, outputs: Tensor, hidden: Tensor) -> Tensor | float:
        penalty: Tensor | float = 0.0
        if self.activation_regularisation:
            penalty = activation_regularisation(hidden, self.activation_regularisation, batch_first=False)
        if self.temporal_activation_regularisation:
            beta = self.temporal_activation_regularisation
            penalty = penalty + temporal_activation_regularisation(outputs, beta, batch_first=False)
        return penalty

    def _loss(self, batch: TextBatch | tuple[Tensor, Tensor], stage: str) -> Tensor:
        if not isinstance(batch, TextBatch):
            batch = TextBatch(*batch)
        state = None if batch.fresh else self._carried_into(stage, batch)
        outputs, hidden, state = self._run(batch.inputs, state)
        targets = batch.targets.t().flatten()  # (time * batch,)
        loss = self.next_token_loss(hidden.flatten(0, 1), targets)
        num_tokens = (targets != -100).sum()
        sound = loss.isfinite() | (num_tokens == 0)  # else the state would spoil every batch to come
        fresh = self.layer.initial_state(len(batch.inputs), self.embedding.weight)
        self._carried[stage] = detach_state(
            map_state(lambda tensor, start: torch.where(sound, tensor, start.to(tensor.dtype)), state, fresh)
        )
        self.statistics(stage).update(loss, num_tokens, batch.num_bytes)
        return loss + self._penalty(outputs, hidden) if stage == "train" else loss

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
        as_weights = not torch.is_autocast_enabled(device.type)  # under which it may have been made, before a resume

        def here(tensor: Tensor) -> Tensor:
            tensor = tensor[first : first + lanes].to(device)
            if as_weights and tensor.is_floating_point():
                tensor = tensor.to(torch.promote_types(tensor.dtype, self.embedding.weight.dtype))
            return tensor

        return map_state(here, state)

    def training_step(self, batch: TextBatch | tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch and the penalties (with ``sum_over_time``, times its steps), in nats."""
        loss = self._loss(batch, "train")
        self.log_training()
        if self._chunk_rate is not None:
            self._chunk_rate.read(batch[0].shape[1])
        return loss * batch[0].shape[1] if self.sum_over_time else loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """After the callbacks, right before the update: sets the learning rate for the chunk."""
        if self._chunk_rate is not None:
            self._chunk_rate.scale(optimizer)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Lightning's, whatever comes of it with the user's learning rate set back."""
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        finally:
            if self._chunk_rate is not None:
                self._chunk_rate.done()

    def validation_step(self, batch: TextBatch | tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds the batch to the pass's loss."""
        self._loss(batch, "val")

    def test_step(self, batch: TextBatch | tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds the batch to the pass's loss."""
        self._loss(batch, "test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state carried from batch to batch, and the loss since the last log, of all ranks."""
        super().on_save_checkpoint(checkpoint)
        state = self._carried["train"]
        if self.trainer.world_size > 1 and state is not None:
            state = map_state(self.gathered, state)
        checkpoint[CARRIED_STATE] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them back, to carry on from."""
        super().on_load_checkpoint(checkpoint)
        self._carried["train"] = checkpoint.get(CARRIED_STATE)
