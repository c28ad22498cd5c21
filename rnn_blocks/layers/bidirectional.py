"""Past and future: one layer from each end of the sequence."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rnn_blocks.engine import State
from rnn_blocks.layers.layer import Layer, check_layer
from rnn_blocks.layers.redrawn import redrawn

Merge: TypeAlias = Literal["concat", "sum", "mean"]
MERGES: tuple[Merge, ...] = ("concat", "sum", "mean")


class Bidirectional(Layer):
    """Two layers, one from each end of the sequence (Schuster & Paliwal 1997; Goodfellow et al., fig. 10.11).

    ``y_t = merge(forward(x_1 … x_t), backward(x_T … x_t))``. The backward layer starts at each sequence's own last
    step, whatever its length. A reset before step ``t`` cuts the sequence there for both: the forward layer starts
    afresh at ``t``, the backward one at ``t - 1``.

    The state is the pair of the forward and the backward layer's. The backward state that goes in is the one from
    beyond a sequence's last step; the one that comes out is the one after its first step, where the backward layer
    ends. So such a layer is not :attr:`~rnn_blocks.Layer.causal`: it has no single steps, and its chunks do not add up
    to the whole. To go through a long sequence in chunks all the same, carry the forward state alone::

        outputs, (ahead, _) = layer(chunk, (ahead, layer.backward_layer.initial_state(len(chunk), chunk)))

    Args:
        forward: reads from the first step on.
        backward: reads from the last step back; by default a copy of the forward layer with weights of its own: every
            part of it that has a ``reset_parameters`` draws them anew.
        merge: what is made of the two outputs: ``"concat"``, forward first, ``"sum"`` or ``"mean"``.

    Raises:
        ValueError: for another ``merge``, or layers that differ in ``input_size``, ``batch_first`` or, where they are
            added up, ``output_size``.

    >>> import torch, rnn_blocks
    >>> layer = Bidirectional(rnn_blocks.GRU(3, 4))
    >>> outputs, (ahead, back) = layer(torch.randn(2, 7, 3), lengths=torch.tensor([7, 5]))
    >>> outputs.shape, layer.causal
    (torch.Size([2, 7, 8]), False)
    """

    causal = False

    def __init__(self, forward: Layer, backward: Layer | None = None, *, merge: Merge = "concat") -> None:
        if merge not in MERGES:
            raise ValueError(f"merge must be one of {', '.join(map(repr, MERGES))}, got {merge!r}")
        for layer in (forward, backward):
            if layer is not None:
                check_layer("Bidirectional", layer)
        if backward is None:
            backward = redrawn(forward)
        shared = ["input_size", "batch_first"] if merge == "concat" else ["input_size", "batch_first", "output_size"]
        for name in shared:
            ahead, back = getattr(forward, name), getattr(backward, name)
            if ahead != back:
                raise ValueError(f"both directions must have the same {name}, got {ahead} forward and {back} backward")
        width = forward.output_size + (backward.output_size if merge == "concat" else 0)
        super().__init__(forward.input_size, width, batch_first=forward.batch_first)
        self.forward_layer = forward
        self.backward_layer = backward
        self.merge = merge

    def initial_state(self, batch_size: int, like: Tensor) -> tuple[State, State]:
        """The forward layer's and the backward layer's."""
        return self.forward_layer.initial_state(batch_size, like), self.backward_layer.initial_state(batch_size, like)

    def run(self, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """Both ways; time first."""
        ahead, back = state
        outputs, ahead = self.forward_layer.call(inputs, ahead, lengths, resets)
        marks = None if resets is None else _resets_from_the_end(resets, lengths)
        mirrored, back = self.backward_layer.call(reverse_time(inputs, lengths), back, lengths, marks)
        others = reverse_time(mirrored, lengths)
        if self.merge == "concat":
            return torch.cat([outputs, others], dim=-1), (ahead, back)
        total = outputs + others
        return (total if self.merge == "sum" else total / 2), (ahead, back)

    def extra_repr(self) -> str:
        """How the two outputs are merged."""
        return f"merge={self.merge!r}"


def reverse_time(sequence: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Each sequence backwards, its padding left at the end.

    Args:
        sequence: ``(time, batch, …)``.
        lengths: steps that count in each sequence, ``(batch,)``, zeros allowed; by default all.

    >>> reverse_time(torch.tensor([[1, 1], [2, 2], [3, 3]]), torch.tensor([3, 2])).t().tolist()
    [[3, 2, 1], [2, 1, 3]]
    """
    if lengths is None:
        return sequence.flip(0)
    step = torch.arange(sequence.shape[0], device=sequence.device)[:, None]
    source = torch.where(step < lengths, lengths - 1 - step, step)  # (time, batch)
    return sequence.gather(0, source.view(*source.shape, *[1] * (sequence.dim() - 2)).expand_as(sequence))


def _resets_from_the_end(resets: Tensor, lengths: Tensor | None) -> Tensor:
    """The same cuts for the reversed order: what is before step ``t`` one way is before step ``t - 1`` the other way.

    The last step itself never starts afresh: what lies beyond it is the state that goes in.
    """
    return torch.cat([torch.zeros_like(resets[:1]), reverse_time(resets, lengths)[:-1]])
