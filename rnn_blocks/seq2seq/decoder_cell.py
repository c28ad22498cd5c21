"""One step of a decoder: a recurrent layer, what it reads of the source, and what goes back into the next step."""

from typing import TypeAlias

import torch
from torch import Tensor, nn

from rnn_blocks.cells import Cell
from rnn_blocks.engine import State, dropout_mask
from rnn_blocks.layers import Layer
from rnn_blocks.layers.layer import check_layer
from rnn_blocks.seq2seq.attention import Attention

DecoderMemory: TypeAlias = tuple[State, State]
"""What an attention projected of the source, and a bridge's context vector; ``()`` where there is none."""


class DecoderCell(Cell):
    """A step of a decoder's layer, reading the source by attention or through one vector.

    ::

        h_t = layer([x_t; c; h̃_{t-1}])       c: a bridge's context; h̃_{t-1}: with input feeding
        c_t, a_t = attention(h_t, memory)     or the bridge's context again
        h̃_t = tanh(W_c [h_t; c_t])            (Luong et al. 2015, eq. 5 and section 3.3); h_t where nothing is read

    Being a cell, it runs on every engine. The memory is a part of the state that no step changes: nothing is kept on
    the module, and its gradient comes back as that of any other state.

    The state is ``(h̃, layer's, coverage, memory)``, with ``()`` for ``h̃`` without input feeding and for the coverage,
    the sum of the weights so far, where the attention does not cover. The output is ``h̃``, with the weights behind it
    where the attention covers.

    Args:
        layer: any causal layer; it takes the input, the context and, with input feeding, ``h̃``.
        attention: reads the memory with the layer's output.
        input_feeding: whether ``h̃`` is given to the next step.
        context_size: features of the bridge's context vector, 0 where there is none.
        attentional_size: features of ``h̃``; by default those of the layer's output.
        dropout: the part zeroed of ``[h; c]``, of ``h`` where nothing is read.

    Raises:
        ValueError: where sizes do not fit.

    >>> import rnn_blocks
    >>> cell = DecoderCell(rnn_blocks.GRU(8 + 16, 16), rnn_blocks.DotAttention(16, 16), input_feeding=True)
    >>> cell.input_size, cell.hidden_size
    (8, 16)
    """

    def __init__(
        self,
        layer: Layer,
        attention: Attention | None = None,
        *,
        input_feeding: bool = False,
        context_size: int = 0,
        attentional_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        check_layer(type(self).__name__, layer)
        read = context_size if attention is None else attention.output_size
        if input_feeding and attention is None:
            raise ValueError("input_feeding gives back what attention read: it needs an attention")
        if attentional_size is not None and not read:
            raise ValueError(f"attentional_size {attentional_size} needs attention, or a bridge that gives a context")
        if not layer.causal:
            raise ValueError(f"a decoder writes from left to right, but this {type(layer).__name__} is not causal")
        if attention is not None and attention.query_size != layer.output_size:
            raise ValueError(
                f"the attention is asked with {attention.query_size} features, but the decoder's layer gives "
                f"{layer.output_size}"
            )
        features = attentional_size or layer.output_size
        fed = features if input_feeding else 0
        if layer.input_size <= context_size + fed:
            parts = [f"the bridge's context of {context_size}"] if context_size else []
            parts += [f"the {fed} features that input feeding gives back"] if fed else []
            raise ValueError(
                f"the decoder's layer takes {layer.input_size} features, which leaves none for the embedding beside "
                f"{' and '.join(parts)}: its input_size is the sum of them all"
            )
        super().__init__(layer.input_size - context_size - fed, features)
        self.layer = layer
        self.attention = attention
        self.merged_size = layer.output_size + read
        self.combine = nn.Linear(self.merged_size, features) if read else None
        self.input_feeding = input_feeding
        self.context_size = context_size
        self.dropout = dropout
        self.fusable = all(part.fusable for part in layer.modules() if isinstance(part, Cell))

    @property
    def sequential(self) -> bool:
        """Whether what is read at a step depends on what was read before: else all steps can read at once."""
        return self.input_feeding or (self.attention is not None and self.attention.coverage)

    def project(self, inputs: Tensor) -> State:
        """The inputs, and what ``[h; c]`` is multiplied with at each step to drop parts of it."""
        if not (self.dropout and self.training):
            return inputs, ()
        return inputs, dropout_mask((*inputs.shape[:2], self.merged_size), self.dropout, inputs)

    def step(self, projected: State, state: State) -> tuple[Tensor, State]:
        """One step."""
        attentional, weights, after = self.read(projected, state)
        covers = self.attention is not None and self.attention.coverage
        return torch.cat([attentional, weights], -1) if covers else attentional, after

    def read(self, projected: State, state: State) -> tuple[Tensor, Tensor, State]:
        """One step with the weights apart: ``h̃`` ``(batch, features)``, ``a`` ``(batch, source)`` and the state."""
        inputs, mask = projected
        fed, before, coverage, memory = state
        parts = [part for part in (inputs, memory[1], fed) if isinstance(part, Tensor)]
        hidden, after = self.layer.step(torch.cat(parts, -1) if len(parts) > 1 else parts[0], before)
        covered = coverage.unsqueeze(1) if isinstance(coverage, Tensor) else None
        context, weights = self.look(hidden.unsqueeze(1), memory, covered)
        weights = weights.squeeze(1)
        attentional = self.merge(hidden, context.squeeze(1), mask)
        fed = attentional if self.input_feeding else ()
        return attentional, weights, (fed, after, coverage + weights if isinstance(coverage, Tensor) else (), memory)

    def look(self, hidden: Tensor, memory: State, coverage: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What is read with ``h`` ``(batch, target, …)``: ``c`` ``(batch, target, …)`` and the weights.

        The weights are ``(batch, target, source)``, or, where there is no attention, of no position.
        """
        attended, context = memory
        if self.attention is not None:
            found: tuple[Tensor, Tensor] = self.attention(hidden, attended, coverage)
            return found
        nothing = hidden.new_zeros(*hidden.shape[:2], 0)
        if not isinstance(context, Tensor):
            return nothing, nothing
        return context.unsqueeze(1).expand(-1, hidden.shape[1], -1), nothing

    def merge(self, hidden: Tensor, context: Tensor, mask: State = ()) -> Tensor:
        """``h̃`` of ``h`` and ``c``, both ``(…, features)``; ``h`` itself where nothing is read."""
        both = hidden if self.combine is None else torch.cat([hidden, context], -1)  # (…, merged_size)
        both = both * mask if isinstance(mask, Tensor) else both
        return both if self.combine is None else torch.tanh(self.combine(both))

    def initial_state(self, batch_size: int, like: Tensor) -> State:
        """That of a source without positions: what shapes are told by. :meth:`Decoder.start` gives the one to use."""
        fed = like.new_zeros(batch_size, self.hidden_size) if self.input_feeding else ()
        return fed, self.layer.initial_state(batch_size, like), (), ((), ())
