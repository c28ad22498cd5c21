"""A model that fills in blanks, from what stands before and after them."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric

from rnn_blocks.checks import number, whole
from rnn_blocks.engine import dropout
from rnn_blocks.layers import Layer
from rnn_blocks.layers.layer import check_layer, checked_lengths, without_padding
from rnn_blocks.modules.cloze.batch import ClozeBatch
from rnn_blocks.modules.output_layer import word_loss
from rnn_blocks.modules.token_module import TokenModule, adam, init_tokens

IGNORED = -100


class Filled(NamedTuple):
    """What belongs into each blank, the most probable first.

    Attributes:
        places: row and step of each blank, ``(blanks, 2)``, in reading order.
        tokens: candidates' ids, ``(blanks, top_k)``.
        probabilities: theirs, ``(blanks, top_k)``.

    >>> filled = Filled(torch.tensor([[0, 2]]), torch.tensor([[7, 5]]), torch.tensor([[0.9, 0.1]]))
    >>> filled.tokens[0, 0].item()
    7
    """

    places: Tensor
    tokens: Tensor
    probabilities: Tensor


class ClozeModel(TokenModule):
    """Fill in blanks from both sides: embedding, any recurrent layer, softmax at the blanks (Taylor 1953; Devlin 2019).

    Batches are :class:`~rnn_blocks.ClozeBatch`. At each blank the model reads the mask's id in place of the token, also
    where a batch forgot to put it there: what is to be predicted is nowhere in the input, so no layer, however deep and
    from whichever side it reads, can hand a token to itself. Of several blanks in one sequence each is predicted with
    the others blank too. The loss is the mean over the blanks alone.

    A layer that reads both ways (``Bidirectional``, a ``Stack`` of them) sees all of the sentence around a blank; a
    causal one predicts it from what stands before.

    Logged: ``train/`` and ``val/`` (``test/``) ``loss`` and ``perplexity`` of the blanks, ``val/accuracy``
    (``test/accuracy``), and ``throughput/tokens_per_second``, in which blanks are what counts.

    Args:
        layer: any layer, e.g. ``rnn_blocks.LSTM(128, 128, num_layers=2, bidirectional=True)``.
        vocab_size: how many ids there are, the mask's included.
        mask_id: the id that stands for a blank; it is never a candidate.
        tie_weights: whether the output's weights are the embedding's (Inan et al. 2017; Press & Wolf 2017); where the
            layer gives more or fewer features than it takes, a linear projection comes between.
        dropout: the part zeroed after the embedding and before the output.
        init_range: all matrices start uniform within ± this, and biases, gains and decays as each part says; by default
            the layer starts as its cell says, the embedding and the output within ±0.1, the output's bias at zero.
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the learning-rate schedule from the optimizer.
        lr_interval: whether the schedule steps each ``"epoch"`` or each ``"step"``.

    Raises:
        ValueError: for a mask outside of the vocabulary, or a number out of its range.

    >>> import rnn_blocks
    >>> model = ClozeModel(rnn_blocks.Bidirectional(rnn_blocks.GRU(16, 16)), vocab_size=50, mask_id=49)
    >>> filled = model.fill(torch.tensor([[3, 1, 49, 1, 5]]), top_k=3)
    >>> filled.places.tolist(), filled.tokens.shape
    ([[0, 2]], torch.Size([1, 3]))
    """

    hub_task = "fill-mask"

    def __init__(
        self,
        layer: Layer,
        vocab_size: int,
        mask_id: int,
        *,
        tie_weights: bool = False,
        dropout: float = 0.0,
        init_range: float | None = None,
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval)
        # A command line's checkpoints hold all arguments as it was given them and so load by themselves; objects made
        # in Python are left out, and load_from_checkpoint needs the layer again.
        from_command_line = _given_hyperparameters.get() is not None
        self.save_hyperparameters(ignore=[] if from_command_line else ["layer", "optimizer", "lr_scheduler"])
        number("dropout", dropout, high=1)
        whole("vocab_size", vocab_size, 2, ", a token and the mask")
        if not 0 <= mask_id < vocab_size:
            raise ValueError(f"mask_id must be an id of the vocabulary, from 0 to {vocab_size - 1}, got {mask_id}")
        if init_range is not None:
            number("init_range", init_range, above=True)
        check_layer(type(self).__name__, layer)
        self.layer = layer
        self.mask_id = mask_id
        self.dropout = dropout
        self.embedding = nn.Embedding(vocab_size, layer.input_size)
        width = layer.input_size if tie_weights else layer.output_size
        self.projection = nn.Linear(layer.output_size, width) if width != layer.output_size else nn.Identity()
        self.output = nn.Linear(width, vocab_size)
        if tie_weights:
            self.output.weight = self.embedding.weight
        init_tokens(self, [self.embedding], self.output, init_range)
        self._accuracy = nn.ModuleDict({f"{stage}_accuracy": MeanMetric() for stage in ("val", "test")})

    def forward(self, inputs: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Logits at every place, blank or not; a token that is not blank sees itself.

        Args:
            inputs: ids, ``(batch, time)``, the mask's at blanks.
            lengths: ``(batch,)``; by default all.

        Returns:
            ``(batch, time, vocab_size)``.
        """
        logits: Tensor = self.output(self._features(inputs, lengths))
        return logits

    def _features(self, inputs: Tensor, lengths: Tensor | Sequence[int] | None, places: Tensor | None = None) -> Tensor:
        """What the output reads, ``(batch, time, width)``, or at some places alone, row by row, ``(places, width)``."""
        if lengths is not None:
            lengths = checked_lengths(lengths, inputs.shape[1], inputs.shape[0], inputs.device)
            inputs = without_padding(inputs, lengths)
        embedded = dropout(self.embedding(inputs), self.dropout, self.training)  # (batch, time, input)
        if self.layer.batch_first:
            hidden, _ = self.layer(embedded, lengths=lengths)
        else:
            hidden = self.layer(embedded.transpose(0, 1), lengths=lengths)[0].transpose(0, 1)
        return dropout(self.projection(hidden if places is None else hidden[places]), self.dropout, self.training)

    def _blanks(self, batch: ClozeBatch) -> tuple[Tensor, Tensor]:
        """Features and targets of a batch's blanks."""
        blank = batch.targets != IGNORED
        inputs = batch.inputs.masked_fill(blank, self.mask_id)
        targets = batch.targets[blank]
        if len(targets) == 0:
            raise ValueError(f"a batch of {len(inputs)} sequences has no blank: its targets are all {IGNORED}")
        return self._features(inputs, batch.lengths, blank), targets

    def training_step(self, batch: ClozeBatch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch's blanks, in nats."""
        features, targets = self._blanks(ClozeBatch(*batch))
        loss = word_loss(self.output, features, targets)
        self.statistics("train").update(loss, torch.full_like(loss, len(targets)).detach())
        self.log_training()
        return loss

    def validation_step(self, batch: ClozeBatch, batch_idx: int) -> None:
        """Adds the batch to the pass's loss and accuracy."""
        self._evaluate(ClozeBatch(*batch), "val")

    def test_step(self, batch: ClozeBatch, batch_idx: int) -> None:
        """Adds the batch to the pass's loss and accuracy."""
        self._evaluate(ClozeBatch(*batch), "test")

    def _evaluate(self, batch: ClozeBatch, stage: str) -> None:
        features, targets = self._blanks(batch)
        logits = self.output(features)  # (blanks, vocab_size)
        loss = cross_entropy(logits, targets)
        self.statistics(stage).update(loss, torch.full_like(loss, len(targets)))
        accuracy = self._accuracy_of(stage)
        accuracy.update((logits.argmax(1) == targets).float())

    def _accuracy_of(self, stage: str) -> MeanMetric:
        accuracy = self._accuracy[f"{stage}_accuracy"]
        assert isinstance(accuracy, MeanMetric)
        return accuracy

    def on_validation_epoch_end(self) -> None:
        """Logs the pass's loss and accuracy."""
        super().on_validation_epoch_end()
        self.log("val/accuracy", self._accuracy_of("val"))

    def on_test_epoch_end(self) -> None:
        """Logs the pass's loss and accuracy."""
        super().on_test_epoch_end()
        self.log("test/accuracy", self._accuracy_of("test"))

    def predict_step(self, batch: Any, batch_idx: int = 0) -> Filled:
        """The five best candidates of each blank of a :class:`~rnn_blocks.ClozeBatch`; its targets are not read."""
        inputs, _, lengths = ClozeBatch(*batch)
        return self.fill(inputs, lengths=lengths)

    @torch.no_grad()
    def fill(self, inputs: Tensor, *, lengths: Tensor | Sequence[int] | None = None, top_k: int = 5) -> Filled:
        """The best candidates of every blank, without dropout.

        Of several blanks in one sequence each is predicted with the others blank: the best of each do not have to go
        together.

        Args:
            inputs: ids, ``(batch, time)``, the mask's at blanks.
            lengths: ``(batch,)``; by default all.
            top_k: how many candidates; the whole vocabulary where it has fewer.

        Returns:
            The candidates, whose probabilities are those among all tokens but the mask.

        Raises:
            ValueError: where no id is the mask's, one is outside of the vocabulary, or ``top_k`` is below 1.
        """
        whole("top_k", top_k)
        vocab_size = self.embedding.num_embeddings
        blank = inputs == self.mask_id
        if lengths is not None:
            lengths = checked_lengths(lengths, inputs.shape[1], inputs.shape[0], inputs.device)
            inputs = without_padding(inputs, lengths)
            blank &= torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]
        if not bool(blank.any()):
            raise ValueError(f"there is no blank to fill in: none of the ids is the mask's, {self.mask_id}")
        low, high = int(inputs.min()), int(inputs.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"the inputs hold token {low if low < 0 else high}, the vocabulary has {vocab_size}")
        with self.evaluating():
            logits = self.output(self._features(inputs, lengths, blank))  # (blanks, vocab_size)
        logits[:, self.mask_id] = -torch.inf
        probabilities, tokens = logits.softmax(1).topk(min(top_k, vocab_size - 1))
        return Filled(blank.nonzero(), tokens, probabilities)
