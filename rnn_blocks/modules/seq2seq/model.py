"""Sequence to sequence: an encoder, what it hands over, and a decoder that writes."""

import math
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn

from rnn_blocks.checks import number, whole
from rnn_blocks.engine import State, detach_state, map_state
from rnn_blocks.layers import Layer
from rnn_blocks.layers.layer import check_layer
from rnn_blocks.modules.output_layer import word_losses
from rnn_blocks.modules.scheduled_sampling import ScheduledSampling
from rnn_blocks.modules.seq2seq.parallel_batch import ParallelBatch
from rnn_blocks.modules.seq2seq.translating import Translating
from rnn_blocks.modules.seq2seq.translation_scores import TranslationScores
from rnn_blocks.modules.token_module import adam, init_tokens
from rnn_blocks.seq2seq import (
    Attention,
    Bridge,
    Decoder,
    Encoder,
    make_attention,
    make_bridge,
)
from rnn_blocks.seq2seq.attention.make import AttentionName
from rnn_blocks.seq2seq.bridge import BridgeName

Tying: TypeAlias = Literal["two-way", "three-way"]
IGNORED = -100


class Seq2Seq(Translating):
    """From a sequence to a sequence: maximises log P(y | x) over pairs (Cho et al. 2014; Sutskever et al. 2014).

    An encoder reads the source, a bridge hands over, and a decoder writes the target, reading the source by attention
    (Bahdanau et al. 2015; Luong et al. 2015) or, with ``attention=None``, knowing of it what the bridge gave alone:
    the fixed vector. Batches are :class:`~rnn_blocks.ParallelBatch`.

    The loss is the mean over the target tokens of a whole optimizer step, however they fell into micro-batches
    (``accumulate_grad_batches``) and processes.

    Logged: ``train/`` and ``val/`` (``test/``) ``loss`` and ``perplexity`` without label smoothing,
    ``throughput/tokens_per_second`` in target tokens, ``train/coverage_loss`` and ``train/true_inputs`` where there are
    such; and, where the batches have references and ids can be made text, ``bleu``, ``chrf`` and ``exact_match``
    of what the search wrote; ``bleu`` only where a reference has the four words in a row that it counts.

    Args:
        encoder: any layer; its ``input_size`` is the source embedding's. Bidirectional or not.
        decoder: any causal layer; its input holds the target embedding, the bridge's context and, with input feeding,
            ``h̃``, see :class:`~rnn_blocks.Decoder`.
        source_vocab_size: how many source tokens there are.
        target_vocab_size: how many target tokens there are.
        attention: ``"dot"``, ``"general"``, ``"concat"``, ``"additive"``, ``"multi-head"``, an
            :class:`~rnn_blocks.Attention` of your own, or ``None`` for the fixed vector.
        bridge: ``"last-state"``, ``"mean"``, ``"projected"``, or a :class:`~rnn_blocks.Bridge` of your own.
        input_feeding: whether the decoder is given what it read at the step before (Luong et al. 2015, section 3.3).
            Without it the decoder runs all steps at once, which takes a half to three quarters of the time.
        coverage: whether the attention sees what it has covered (Tu et al. 2016).
        coverage_loss: the weight of ``Σ_j min(a_j, coverage_j)`` a step in the loss (See et al. 2017, eq. 12-13).
        attentional_size: features of ``h̃``; by default those of the decoder's layer.
        reverse_source: whether the encoder reads the source from its end (Sutskever et al. 2014, section 3.3).
        tie_weights: ``"two-way"``: output and target embedding share their weights; ``"three-way"``: the source
            embedding as well, for a joint vocabulary (Press & Wolf 2017).
        dropout: the part zeroed of embeddings, of the encoder's outputs, and of ``[h; c]``.
        output_dropout: the part of ``h̃`` zeroed before the output layer.
        label_smoothing: the part of each target spread over the vocabulary, in training alone.
        scheduled_sampling: how often training feeds the decoder's own guesses; ``None`` for never.
        val_beam_size: hypotheses a sentence in validation; 1 is greedy search.
        test_beam_size: the same in test.
        length_penalty: of the searches, see :func:`~rnn_blocks.beam_search`.
        coverage_penalty: of the searches.
        max_length_ratio: translations end at this many times the source's tokens, plus 10.
        lowercase: whether BLEU and chrF are told without regard to case.
        bos: the id that targets begin with.
        eos: the id that ends sequences.
        pad: an id that is never to be written.
        init_range: all matrices start uniform within ± this, and biases, gains and decays as each part says; by default
            every part starts as it says, but embeddings within ±√3, with variance one, the output within ±0.1 with its
            bias at zero, and weights that are both within ±0.4.
        detokenize: makes text of the ids of several sentences, for the scores; by default the data module's
            ``detokenize``, if it has one.
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the learning-rate schedule from the optimizer.
        lr_interval: whether the schedule steps each ``"epoch"`` or each ``"step"``.

    Raises:
        ValueError: where sizes do not fit, or an option is not one of its choices or out of its range.

    >>> import rnn_blocks
    >>> model = Seq2Seq(rnn_blocks.GRU(8, 16, bidirectional=True), rnn_blocks.GRU(8 + 16, 16), 40, 50)
    >>> source, lengths = torch.tensor([[7, 8, 9, 2], [5, 2, 0, 0]]), torch.tensor([4, 2])
    >>> model(source, lengths, torch.tensor([[1, 4, 6], [1, 3, 0]])).shape
    torch.Size([2, 3, 50])
    >>> best, *_ = model.translate(source, lengths, beam_size=2, max_length=5)[0]
    >>> len(best.tokens) <= 5
    True
    """

    hub_parts = MappingProxyType(
        {"encoder": "encoder.layer", "decoder": "decoder.layer", "attention": "decoder.attention"}
    )
    hub_task = "translation"

    def __init__(
        self,
        encoder: Layer,
        decoder: Layer,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        attention: AttentionName | Attention | None = "additive",
        bridge: BridgeName | Bridge = "last-state",
        input_feeding: bool = True,
        coverage: bool = False,
        coverage_loss: float = 0.0,
        attentional_size: int | None = None,
        reverse_source: bool = False,
        tie_weights: Tying | None = None,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        scheduled_sampling: ScheduledSampling | None = None,
        val_beam_size: int = 1,
        test_beam_size: int = 5,
        length_penalty: float = 1.0,
        coverage_penalty: float = 0.0,
        max_length_ratio: float = 2.0,
        lowercase: bool = False,
        bos: int = 1,
        eos: int = 2,
        pad: int = 0,
        init_range: float | None = None,
        detokenize: Callable[[list[list[int]]], list[str]] | None = None,
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval)
        from_command_line = _given_hyperparameters.get() is not None
        # Names are kept: a checkpoint of another attention or bridge would not fit the model that it is loaded into.
        objects = ["encoder", "decoder", "scheduled_sampling", "optimizer", "lr_scheduler"]
        named = {"attention": attention, "bridge": bridge}
        objects += [name for name, part in named.items() if isinstance(part, nn.Module)]
        self.save_hyperparameters(ignore=["detokenize"] if from_command_line else ["detokenize", *objects])
        for layer in (encoder, decoder):
            check_layer(type(self).__name__, layer)
        number("label_smoothing", label_smoothing, high=1)
        for name, value in (
            ("coverage_loss", coverage_loss),
            ("max_length_ratio", max_length_ratio),
            ("length_penalty", length_penalty),
            ("coverage_penalty", coverage_penalty),
        ):
            number(name, value)
        if init_range is not None:
            number("init_range", init_range, above=True)
        for name, size in (("val_beam_size", val_beam_size), ("test_beam_size", test_beam_size)):
            whole(name, size)
        for name, token in (("bos", bos), ("eos", eos), ("pad", pad)):
            if not 0 <= token < target_vocab_size:
                raise ValueError(f"{name} {token} is no id of the {target_vocab_size} target tokens")
        for name, token in (("bos", bos), ("pad", pad)):
            if token == eos:
                raise ValueError(
                    f"{name} and eos are both {token}: no translation could end; give them ids of their own"
                )
        if coverage_penalty and attention is None:
            raise ValueError(f"coverage_penalty {coverage_penalty} needs an attention")
        if tie_weights not in (None, "two-way", "three-way"):
            raise ValueError(f"tie_weights must be None, 'two-way' or 'three-way', got {tie_weights!r}")
        if isinstance(attention, str):
            attention = make_attention(attention, decoder.output_size, encoder.output_size, coverage=coverage)
        elif coverage and (attention is None or not attention.coverage):
            raise ValueError("coverage needs an attention that was made with coverage=True, or the name of one")
        if coverage_loss and not (attention is not None and attention.coverage):
            raise ValueError(f"coverage_loss {coverage_loss} needs coverage=True")
        if isinstance(bridge, str):
            bridge = make_bridge(bridge, encoder, decoder)
        self.encoder = Encoder(encoder, source_vocab_size, dropout=dropout, reverse=reverse_source)
        self.bridge = bridge
        self.decoder = Decoder(
            decoder,
            target_vocab_size,
            attention=attention,
            input_feeding=input_feeding,
            context_size=bridge.context_size,
            attentional_size=attentional_size,
            dropout=dropout,
            output_dropout=output_dropout,
            tie_weights=tie_weights is not None,
        )
        if tie_weights == "three-way":
            self._tie_source()
        init_tokens(
            self,
            [self.encoder.embedding, self.decoder.embedding],
            self.decoder.output,
            init_range,
            # through encoder, attention and decoder smaller ones would pass next to nothing on to the first words
            embedding_range=math.sqrt(3),
            tied_range=0.4,
        )
        self.label_smoothing = label_smoothing
        self.coverage_loss = coverage_loss
        self.scheduled_sampling = scheduled_sampling
        self.beam_sizes = {"val": val_beam_size, "test": test_beam_size}
        self.length_penalty = length_penalty
        self.coverage_penalty = coverage_penalty
        self.max_length_ratio = max_length_ratio
        self.bos, self.eos, self.pad = bos, eos, pad
        self.detokenize = detokenize
        self._scores = nn.ModuleDict({f"{stage}_scores": TranslationScores(lowercase) for stage in self.beam_sizes})
        self._window_tokens: list[Tensor] = []  # of the micro-batches of this optimizer step, over all ranks

    def _tie_source(self) -> None:
        ours, theirs = self.encoder.embedding.weight, self.decoder.embedding.weight
        if ours.shape != theirs.shape:
            raise ValueError(
                f"three-way tying needs one vocabulary and one width for both sides, got embeddings of "
                f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
            )
        self.encoder.embedding.weight = theirs

    def encode(self, source: Tensor, lengths: Tensor | Sequence[int] | None = None) -> tuple[State, Any]:
        """Read the source: the decoder's first state, and the memory that its steps read.

        Args:
            source: ids, ``(batch, source)``.
            lengths: ``(batch,)``; by default all positions count.
        """
        encoded = self.encoder(source, lengths)
        state, context = self.bridge(encoded)
        memory = self.decoder.on(encoded.outputs, encoded.lengths, context)
        return self.decoder.start(state, memory), memory

    def forward(self, source: Tensor, lengths: Tensor | Sequence[int] | None, target_inputs: Tensor) -> Tensor:
        """Logits of the token after each target token.

        Args:
            source: ids, ``(batch, source)``.
            lengths: of the sources, ``(batch,)``; ``None`` where all positions count.
            target_inputs: ids from ``<bos>`` on, ``(batch, target)``.

        Returns:
            ``(batch, target, target_vocab_size)``.
        """
        state, memory = self.encode(source, lengths)
        features, _, _ = self.decoder(target_inputs, state, memory)
        logits: Tensor = self.decoder.output(features)
        return logits

    def _loss(self, batch: ParallelBatch, inputs: Tensor, state: State, memory: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The mean cross-entropy of the batch's tokens, what else is to be made small, and how many tokens they are."""
        features, weights, _ = self.decoder(inputs, state, memory)
        counted = batch.target_outputs != IGNORED
        targets, rows = batch.target_outputs.flatten(), features.flatten(0, 1)  # (batch * target, …)
        smoothing = self.label_smoothing if self.training else 0.0
        loss, smoothed = word_losses(self.decoder.output, rows, targets, smoothing=smoothing > 0)
        extra = smoothing * smoothed
        if self.training and self.coverage_loss:
            assert weights is not None
            before = weights.cumsum(1) - weights  # the coverage at each step
            overlap = torch.minimum(weights, before).sum(-1)  # (batch, target)
            twice = torch.where(counted, overlap, 0.0).sum() / counted.sum()
            self.log("train/coverage_loss", twice.detach())
            extra = extra + self.coverage_loss * twice
        return loss, extra, counted.sum()

    def training_step(self, batch: ParallelBatch, batch_idx: int) -> Tensor:
        """The batch's part in the mean loss of the optimizer step, in nats a target token."""
        state, memory = self.encode(batch.source, batch.source_lengths)
        inputs = batch.target_inputs
        if self.scheduled_sampling is not None:
            inputs = self._mixed_inputs(batch, state, memory)
        loss, extra, tokens = self._loss(batch, inputs, state, memory)
        self.statistics("train").update(loss, tokens)
        self.log_training()
        # Each rank's gradients are averaged over ranks: so its sum is divided by the tokens of all, times the ranks.
        tokens = tokens.to(torch.promote_types(loss.dtype, torch.float32))  # a quotient of integers would be float32
        everywhere = tokens.clone()
        if self.trainer.world_size > 1:
            everywhere = self.trainer.strategy.reduce(everywhere, reduce_op="sum")
        self._window_tokens.append(everywhere)
        return (loss + extra) * (tokens * self.trainer.world_size / self._window_tokens[0])

    def on_after_backward(self) -> None:
        """Micro-batches that were weighted by the first one's tokens: now by those of them all."""
        if self.trainer.fit_loop._should_accumulate():
            return
        window, self._window_tokens = self._window_tokens, []
        if self.trainer.accumulate_grad_batches > 1:
            factor = self.trainer.accumulate_grad_batches * window[0] / torch.stack(window).sum()
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def on_train_epoch_start(self) -> None:
        """No micro-batch is left of the epoch before."""
        self._window_tokens = []

    @torch.no_grad()
    def _mixed_inputs(self, batch: ParallelBatch, state: State, memory: Any) -> Tensor:
        """True tokens and, in the place of some, what the decoder drew after those before them.

        No gradient passes a draw, so the inputs can be drawn first and the loss taken after, at full speed.
        """
        assert self.scheduled_sampling is not None
        share = self.scheduled_sampling.true_share(self.global_step)
        self.log("train/true_inputs", share)
        if share >= 1:
            return batch.target_inputs
        state = map_state(lambda tensor: tensor.unsqueeze(1), detach_state(state))  # (batch, 1, …): one hypothesis
        memory = map_state(lambda tensor: tensor.detach(), memory)
        true = batch.target_inputs.unbind(1)
        mixed = [true[0]]
        for column in true[1:]:
            step = self.decoder.step(mixed[-1].unsqueeze(1), state, memory)
            state = step.state
            drawn = torch.multinomial(step.logits.squeeze(1).float().softmax(-1), 1).squeeze(1)
            mixed.append(torch.where(torch.rand(len(column), device=column.device) < share, column, drawn))
        return torch.stack(mixed, 1)

    def _evaluate(self, batch: ParallelBatch, stage: str) -> None:
        state, memory = self.encode(batch.source, batch.source_lengths)
        loss, _, tokens = self._loss(batch, batch.target_inputs, state, memory)
        self.statistics(stage).update(loss, tokens)
        detokenize = self._detokenizer()
        if batch.references is None or detokenize is None:
            return
        found = self._search(batch.source_lengths, state, memory, beam_size=self.beam_sizes[stage])
        self._stage_scores(stage).update(detokenize([best.tokens for best, *_ in found]), batch.references)

    def validation_step(self, batch: ParallelBatch, batch_idx: int) -> None:
        """Adds the batch to the pass's loss and scores."""
        self._evaluate(batch, "val")

    def test_step(self, batch: ParallelBatch, batch_idx: int) -> None:
        """Adds the batch to the pass's loss and scores."""
        self._evaluate(batch, "test")

    def _log_pass(self, stage: str) -> None:
        super()._log_pass(stage)
        scores = self._stage_scores(stage)
        # All ranks ask each other for their sums, those without a batch of their own as well.
        if self.trainer.strategy.reduce_boolean_decision(scores.updated, all=False):
            found = {f"{stage}/{name}": value.float() for name, value in scores.compute().items()}
            if not scores.bleu_says_something:
                del found[f"{stage}/bleu"]
            self.log_dict(found, sync_dist=True)  # the same on all ranks: it is Lightning that wants to be told
        scores.reset()

    def on_fit_start(self) -> None:
        """Notes in the run how BLEU and chrF are computed."""
        scores = self._stage_scores("val")
        for logger in self.loggers:
            logger.log_hyperparams({"bleu_signature": scores.signature, "chrf_signature": scores.chrf_signature})

    def _stage_scores(self, stage: str) -> TranslationScores:
        scores = self._scores[f"{stage}_scores"]
        assert isinstance(scores, TranslationScores)
        return scores

    def _detokenizer(self) -> Callable[[list[list[int]]], list[str]] | None:
        if self.detokenize is not None:
            return self.detokenize
        data: Any = getattr(self.trainer, "datamodule", None)
        return getattr(data, "detokenize", None)
