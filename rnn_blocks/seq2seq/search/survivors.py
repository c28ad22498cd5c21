"""Who goes on to the next step: hypotheses and sentences that have ended leave the batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rnn_blocks.engine import State

LEAVE = 8  # sentences leave when this part of the batch (1/8) has ended: dropping them copies the memory of the rest


class Survivors:
    """The hypotheses that go on, packed: best first, as many columns as the widest group of a sentence needs.

    One transfer to the host tells how many there are: the shapes of the next step depend on it.

    Args:
        log_probs: of this step's candidates, minus infinity where there is none, ``(batch, groups, candidates)``.
        stops: which of them do not go on, of the same shape or one that broadcasts to it.
        others: integers to bring to the host in the same transfer.

    Attributes:
        width: of a group at the next step; 0 where the search has ended.
        counts: live hypotheses of each group of each sentence, before sentences leave.
        others: on the host.
        picked: ``(batch', groups * width)``, places of the survivors among the flattened candidates.
        live: ``(batch', groups * width)``, their log-probabilities.

    Raises:
        FloatingPointError: where a log-probability is NaN.

    >>> log_probs = torch.tensor([[[-0.5, -1.0, -2.0]], [[-3.0, -torch.inf, -torch.inf]]])
    >>> survivors = Survivors(log_probs, log_probs == -0.5)
    >>> survivors.width, survivors.picked.tolist()
    (2, [[1, 2], [3, 4]])
    """

    def __init__(self, log_probs: Tensor, stops: Tensor, others: Sequence[Tensor] = ()) -> None:
        batch, groups, candidates = log_probs.shape
        ordered, order = log_probs.masked_fill(stops, -torch.inf).sort(dim=-1, descending=True)
        counts = (ordered != -torch.inf).sum(-1).flatten()
        broken = log_probs.isnan().any().long().view(1)
        numbers: list[int] = torch.cat([broken, counts, *(other.flatten() for other in others)]).tolist()
        if numbers[0]:
            raise FloatingPointError("a logit of the next token is NaN or infinite: the model has diverged")
        numbers = numbers[1:]
        self.counts, self.others = numbers[: batch * groups], numbers[batch * groups :]
        self.width = max(self.counts)
        picked = order[..., : self.width]
        picked = picked + torch.arange(0, log_probs.numel(), candidates, device=log_probs.device).view(batch, groups, 1)
        staying = [
            sentence for sentence in range(batch) if any(self.counts[sentence * groups : (sentence + 1) * groups])
        ]
        self.staying = None
        if staying and (batch - len(staying)) * LEAVE >= batch:
            self.staying = torch.tensor(staying, device=log_probs.device)
            self._numbers = staying
        self.picked = self.sentences(picked.flatten(1))
        self.live = self.sentences(ordered[..., : self.width].flatten(1))

    def sentences_of(self, nest: State) -> State:
        """``nest`` of tensors ``(batch, …)``, with the sentences that stay."""
        return nest if self.staying is None else _map_nest(self.sentences, nest)

    def sentences(self, tensor: Tensor) -> Tensor:
        """``tensor (batch, …)`` of the sentences that stay."""
        return tensor if self.staying is None else tensor.index_select(0, self.staying)

    def numbers(self, sentences: list[int]) -> list[int]:
        """The numbers of the sentences that stay."""
        return sentences if self.staying is None else [sentences[place] for place in self._numbers]


def select_rows(nest: State, rows: Tensor) -> State:
    """Reorder hypotheses: one copy of each tensor.

    Args:
        nest: tensors ``(batch, beam, …)``.
        rows: ``(batch', beam')``, places in the flattened batch and beam.

    >>> select_rows(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[3, 0, 0]]))
    tensor([[4, 1, 1]])
    """
    flat = rows.flatten()
    return _map_nest(lambda tensor: tensor.flatten(0, 1).index_select(0, flat).unflatten(0, rows.shape), nest)


def spread_rows(nest: State, beam: int) -> State:
    """Tensors ``(batch, …)`` as ``(batch, beam, …)``, without a copy.

    >>> spread_rows(torch.tensor([1, 2]), 2)
    tensor([[1, 1],
            [2, 2]])
    """
    return _map_nest(lambda tensor: tensor.unsqueeze(1).expand(-1, beam, *tensor.shape[1:]), nest)


def _map_nest(function: Callable[[Tensor], Tensor], nest: State) -> State:
    """As ``map_state``, and a named tuple keeps its names: it is the caller's own function that reads it."""
    if isinstance(nest, Tensor):
        return function(nest)
    parts = [_map_nest(function, part) for part in nest]
    return type(nest)(*parts) if hasattr(nest, "_fields") else tuple(parts)
