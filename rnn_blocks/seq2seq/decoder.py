"""The decoder: a recurrent layer that writes the target, reading the source as it goes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rnn_blocks.cells.settled import settled
from rnn_blocks.checks import number, whole
from rnn_blocks.engine import State, dropout, dropout_mask, hidden_of, map_state, run_loop, state_tensors
from rnn_blocks.layers import Layer, Recurrent
from rnn_blocks.layers.recurrent import Engine
from rnn_blocks.seq2seq.attention import Attention
from rnn_blocks.seq2seq.decoder_cell import DecoderCell, DecoderMemory
from rnn_blocks.seq2seq.encoder import vectors_of
from rnn_blocks.seq2seq.search import Step


class Decoder(nn.Module):
    """Writes the target one token after the other: embedding, :class:`~rnn_blocks.DecoderCell`, output layer.

    ``p(y_t) = softmax(W_o h̃_t + b)``, where ``h̃_t`` is the cell's output after ``y_{t-1}``.

    Nothing is kept on the module: the source is projected once by :meth:`on`, and what that gives is handed to every
    call. Whole targets go through :meth:`forward`: with input feeding or coverage over the recorded steps of the
    engine, without them as one run of the layer and one batched attention for all steps. Single steps, of one or of
    many hypotheses a sentence, go through :meth:`step`.

    Args:
        layer: any causal layer. Its input holds the embedding, the bridge's context and, with input feeding, ``h̃``:
            the embedding has the features that the others leave.
        vocab_size: how many target tokens there are.
        attention: how the source is read; ``None`` for the bridge's context or state alone.
        input_feeding: whether ``h̃`` is given to the next step (Luong et al. 2015, section 3.3).
        context_size: features of the bridge's context vector, 0 where it gives none.
        attentional_size: features of ``h̃``; by default those of the layer's output.
        dropout: the part zeroed of the embeddings, and of ``[h; c]`` before ``h̃`` is made of it.
        output_dropout: the part of ``h̃`` zeroed before the output layer; what is fed back stays whole.
        tie_weights: whether the output's weights are the embedding's (Press & Wolf 2017).
        engine: what runs the steps of a decoder with input feeding or coverage, see :class:`~rnn_blocks.Recurrent`.

    Raises:
        ValueError: where sizes do not fit or a number is out of its range.

    >>> import rnn_blocks
    >>> attention = rnn_blocks.AdditiveAttention(16, 12)
    >>> decoder = Decoder(rnn_blocks.GRU(8 + 16, 16), 50, attention=attention, input_feeding=True)
    >>> memory = decoder.on(torch.randn(2, 5, 12), torch.tensor([5, 3]))
    >>> state = decoder.start(decoder.layer.initial_state(2, torch.zeros(1)), memory)
    >>> features, weights, state = decoder(torch.tensor([[1, 4, 7], [1, 9, 0]]), state, memory, need_weights=True)
    >>> decoder.output(features).shape, weights.shape
    (torch.Size([2, 3, 50]), torch.Size([2, 3, 5]))
    """

    def __init__(
        self,
        layer: Layer,
        vocab_size: int,
        *,
        attention: Attention | None = None,
        input_feeding: bool = False,
        context_size: int = 0,
        attentional_size: int | None = None,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        tie_weights: bool = False,
        engine: Engine = "auto",
    ) -> None:
        super().__init__()
        for name, part in (("dropout", dropout), ("output_dropout", output_dropout)):
            number(name, part, high=1)
        whole("vocab_size", vocab_size, 2)
        cell = DecoderCell(
            layer,
            attention,
            input_feeding=input_feeding,
            context_size=context_size,
            attentional_size=attentional_size,
            dropout=dropout,
        )
        if tie_weights and cell.input_size != cell.hidden_size:
            raise ValueError(
                f"tied weights need embeddings as wide as what the output layer takes, got {cell.input_size} and "
                f"{cell.hidden_size}; the layer's input_size and attentional_size decide on them"
            )
        self.recurrent = Recurrent(cell, engine=engine, batch_first=False)
        self.embedding = nn.Embedding(vocab_size, cell.input_size)
        self.output = nn.Linear(cell.hidden_size, vocab_size)
        if tie_weights:
            self.output.weight = self.embedding.weight
        self.dropout = dropout
        self.output_dropout = output_dropout

    @property
    def cell(self) -> DecoderCell:
        """One step."""
        cell = self.recurrent.cell
        assert isinstance(cell, DecoderCell)
        return cell

    @property
    def layer(self) -> Layer:
        """The recurrent layer."""
        return self.cell.layer

    @property
    def attention(self) -> Attention | None:
        """The attention, if there is one."""
        return self.cell.attention

    def on(
        self, outputs: Tensor, lengths: Tensor | Sequence[int] | None = None, context: Tensor | None = None
    ) -> DecoderMemory:
        """What every step reads of the source, projected once.

        Args:
            outputs: the encoder's, ``(batch, source, features)``.
            lengths: ``(batch,)``; by default all positions count.
            context: the bridge's context vector, ``(batch, context_size)``; ``None`` where there is none.

        Raises:
            ValueError: where a shape does not fit, or there is a context and should be none, or none and should be one.
        """
        shape = (outputs.shape[0], self.cell.context_size)
        if (context is not None) != bool(shape[1]) or (context is not None and context.shape != shape):
            given = "none" if context is None else f"a tensor of shape {tuple(context.shape)}"
            wanted = f"a context of shape {shape}" if shape[1] else "no context"
            raise ValueError(f"this decoder was made for {wanted}, got {given}")
        attended: State = () if self.attention is None else tuple(self.attention.on(outputs, lengths))
        return attended, () if context is None else context

    def start(self, state: State, memory: State) -> State:
        """The state before the first step: ``h̃`` of zeros, the layer's ``state``, and nothing covered."""
        like = hidden_of(state)
        real = like.dtype.to_real()  # a linear recurrent unit's h is complex
        fed: State = like.new_zeros(like.shape[0], self.cell.hidden_size, dtype=real) if self.cell.input_feeding else ()
        covers = self.attention is not None and self.attention.coverage
        if not covers:
            return fed, state, ()
        _, _, bias = state_tensors(memory[0])
        return fed, state, torch.zeros_like(bias)

    def forward(
        self, inputs: Tensor, state: State, memory: State, *, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None, State]:
        """Read whole targets, as in training.

        Args:
            inputs: ids, ``(batch, target)``.
            state: of :meth:`start`, or of an earlier call.
            memory: of :meth:`on`.
            need_weights: whether the attention's weights are wanted; with input feeding they cost the fast engine.

        Returns:
            ``h̃`` ``(batch, target, features)``, for the output layer; the weights, ``(batch, target, source)``, or
            ``None`` where there is no attention or they were not to be had for nothing; and the state after the last
            step.

        Raises:
            ValueError: where a shape does not fit, or (on a CPU) an id is not in the vocabulary.
        """
        batch = hidden_of(state[1]).shape[0]
        if inputs.dim() != 2 or inputs.is_floating_point() or inputs.shape[0] != batch or not inputs.shape[1]:
            raise ValueError(
                f"inputs must be ids (batch, target) of at least one step, for the {batch} sentences of the state, got "
                f"{inputs.dtype} of shape {tuple(inputs.shape)}"
            )
        vectors = vectors_of(self.embedding, inputs.t(), "the target")  # (target, batch, embedding)
        embedded = dropout(vectors, self.dropout, self.training)
        if self.cell.sequential:
            features, weights, state = self._in_sequence(embedded, state, memory, need_weights)
        else:
            features, weights, state = self._at_once(embedded, state, memory)
        return dropout(features, self.output_dropout, self.training), weights, state

    def _in_sequence(
        self, embedded: Tensor, state: State, memory: State, need_weights: bool
    ) -> tuple[Tensor, Tensor | None, State]:
        cell = self.cell
        given: State = (*state, memory)
        covers = cell.attention is not None and cell.attention.coverage
        if need_weights and not covers:
            cell, embedded, given = settled(cell, embedded, given)

            def step(projected: State, before: State) -> tuple[Tensor, State]:
                attentional, weights, after = cell.read(projected, before)
                return torch.cat([attentional, weights], -1), after

            outputs, after = run_loop(step, cell.project(embedded), given)
        else:
            outputs, after = self.recurrent.call(embedded, given, None, None)
        outputs = outputs.transpose(0, 1)  # (batch, target, features and weights)
        state = tuple(after[:-1])
        if not covers and not need_weights:
            return outputs, None, state
        features, weights = outputs.split([cell.hidden_size, outputs.shape[-1] - cell.hidden_size], -1)
        return features, weights, state

    def _at_once(self, embedded: Tensor, state: State, memory: State) -> tuple[Tensor, Tensor | None, State]:
        fed, before, coverage = state
        context = memory[1]
        if isinstance(context, Tensor):
            embedded = torch.cat([embedded, context.expand(len(embedded), -1, -1)], -1)
        hidden, after = self.layer.call(embedded, before, None, None)
        hidden = hidden.transpose(0, 1)  # (batch, target, hidden)
        mask: State = ()
        if self.dropout and self.training:
            mask = dropout_mask((*hidden.shape[:2], self.cell.merged_size), self.dropout, hidden)
        read, weights = self.cell.look(hidden, memory)
        features = self.cell.merge(hidden, read, mask)
        return features, weights if self.attention is not None else None, (fed, after, coverage)

    def step(self, tokens: Tensor, state: State, memory: State) -> Step:
        """One step of several hypotheses a sentence, as a search asks for.

        Args:
            tokens: the last token of each, ``(batch, beam)``.
            state: with every tensor ``(batch, beam, …)``.
            memory: of :meth:`on`, one a sentence: it is not copied for the hypotheses.
        """
        batch, beam = tokens.shape
        context = memory[1]
        fed, before, coverage = state
        spread: State = context.unsqueeze(1).expand(-1, beam, -1) if isinstance(context, Tensor) else ()
        parts = [self.embedding(tokens), spread, fed]
        inputs = torch.cat([part for part in parts if isinstance(part, Tensor)], -1).flatten(0, 1)
        hidden, after = self.layer.step(inputs, map_state(lambda tensor: tensor.flatten(0, 1), before))
        hidden = hidden.unflatten(0, (batch, beam))
        covered = coverage if isinstance(coverage, Tensor) else None
        read, weights = self.cell.look(hidden, memory, covered)
        features = self.cell.merge(hidden, read)
        after = map_state(lambda tensor: tensor.unflatten(0, (batch, beam)), after)
        new: State = (
            features if self.cell.input_feeding else (),
            after,
            () if covered is None else covered + weights,
        )
        return Step(self.output(features), new, weights if self.attention is not None else None)
