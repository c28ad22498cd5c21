"""What a search is asked for, checked before its first step."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from rnn_blocks.checks import whole
from rnn_blocks.engine import State, state_tensors
from rnn_blocks.seq2seq.search.logits import Forbidden
from rnn_blocks.seq2seq.search.step import Step


class LimitOptions(TypedDict):
    """The options of :class:`Limits`, to whoever hands them to it."""

    bos: int
    eos: int
    max_length: int | Tensor
    min_length: NotRequired[int]
    prefixes: NotRequired[Sequence[Sequence[int]] | None]
    banned: NotRequired[Sequence[int]]


class Limits:
    """Which tokens may come where, and how long a hypothesis may grow.

    Args:
        state: every tensor ``(batch, …)``.
        memory: every tensor ``(batch, …)``.
        bos: id of the token that every hypothesis starts from; it is no part of what is found.
        eos: id of the token that ends a hypothesis.
        max_length: the most tokens, ``<eos>`` counted: for all sentences, or ``(batch,)``.
        min_length: the fewest tokens, ``<eos>`` counted.
        prefixes: for each sentence the ids that its hypotheses begin with, perhaps none.
        banned: ids that are never chosen, save in a prefix. Log-probabilities stay those of the whole distribution.

    Raises:
        ValueError: where one of these is out of its range.
    """

    def __init__(
        self,
        state: State,
        memory: State,
        *,
        bos: int,
        eos: int,
        max_length: int | Tensor,
        min_length: int = 0,
        prefixes: Sequence[Sequence[int]] | None = None,
        banned: Sequence[int] = (),
    ) -> None:
        tensors = state_tensors((state, memory))
        if not tensors:
            raise ValueError("neither state nor memory holds a tensor: the number of sentences is unknown")
        self.batch, self.device = len(tensors[0]), tensors[0].device
        if any(len(tensor) != self.batch for tensor in tensors):
            sizes = sorted({len(tensor) for tensor in tensors})
            raise ValueError(
                f"the tensors of state and memory must all be (batch, …), but their first sizes are {sizes}"
            )
        for name, token in (("bos", bos), ("eos", eos)):
            if token < 0:
                raise ValueError(f"{name} must be an id, 0 or above, got {token}")
        self.bos, self.eos, self.min_length = bos, eos, min_length
        lengths = self._lengths(max_length)
        self.longest = max(lengths, default=0)
        self.max_length = torch.tensor(lengths, dtype=torch.long, device=self.device)  # (batch,)
        if whole("min_length", min_length, 0) and lengths and min_length > self.longest:
            raise ValueError(f"min_length must be from 0 to max_length ({self.longest}), got {min_length}")
        self.banned = list(banned)
        if eos in self.banned:
            raise ValueError(f"eos ({eos}) is among the banned tokens, so that no hypothesis could end")
        if any(token < 0 for token in self.banned):
            raise ValueError(f"banned must hold ids, 0 or above, got {min(self.banned)}")
        self.prefixes = self._prefixes(prefixes, lengths)
        self._forbidden: tuple[Forbidden, Forbidden] | None = None

    def _lengths(self, max_length: int | Tensor) -> list[int]:
        if isinstance(max_length, Tensor):
            if max_length.shape != (self.batch,) or max_length.is_floating_point():
                raise ValueError(
                    f"max_length must be a number or integers of shape ({self.batch},), one for each sentence, got "
                    f"{max_length.dtype} of shape {tuple(max_length.shape)}"
                )
            lengths: list[int] = max_length.tolist()
        else:
            lengths = [whole("max_length", max_length)] * self.batch
        if lengths and min(lengths) < 1:
            raise ValueError(f"max_length must be at least 1, got {min(lengths)}")
        return lengths

    def _prefixes(self, prefixes: Sequence[Sequence[int]] | None, lengths: list[int]) -> Tensor | None:
        """``(batch, longest prefix)``, -1 where the choice is free."""
        if prefixes is None:
            return None
        if len(prefixes) != self.batch:
            raise ValueError(f"prefixes must hold one list for each of the {self.batch} sentences, got {len(prefixes)}")
        for number, (prefix, length) in enumerate(zip(prefixes, lengths, strict=True)):
            if len(prefix) > length:
                raise ValueError(
                    f"the prefix of sentence {number} has {len(prefix)} tokens, more than its max_length ({length})"
                )
            if self.eos in prefix or any(token < 0 for token in prefix):
                raise ValueError(
                    f"the prefix of sentence {number} must hold ids, 0 or above, without eos ({self.eos}), got "
                    f"{list(prefix)}"
                )
        longest = max(map(len, prefixes), default=0)
        if longest == 0:
            return None
        padded = [[*prefix, *[-1] * (longest - len(prefix))] for prefix in prefixes]
        return torch.tensor(padded, device=self.device)

    def check_step(self, step: Step, beam: int, *, attention: bool) -> None:
        """Raise ValueError where the first step lacks what a search needs, or an id is not of its vocabulary."""
        shape = tuple(step.logits.shape)
        if len(shape) != 3 or shape[:2] != (self.batch, beam):
            raise ValueError(f"the step's logits must be of shape ({self.batch}, {beam}, vocab), got {shape}")
        if attention and step.attention is None:
            raise ValueError("return_attention and coverage_penalty need a step that gives attention weights, got None")
        largest = max([self.bos, self.eos, *self.banned])
        if self.prefixes is not None:
            largest = max(largest, int(self.prefixes.max()))
        if largest >= shape[-1]:
            raise ValueError(
                f"id {largest} (of bos, eos, banned or a prefix) is outside the vocabulary of {shape[-1]} tokens"
            )
        with_eos = [*self.banned, self.eos]
        self._forbidden = (
            Forbidden(self.banned, shape[-1], self.device),
            Forbidden(with_eos, shape[-1], self.device),
        )

    def forbidden(self, length: int) -> Forbidden:
        """What may not be the token that makes hypotheses ``length`` long; known after :meth:`check_step`."""
        assert self._forbidden is not None
        return self._forbidden[length < self.min_length]


def check_source_lengths(lengths: Tensor | None, batch: int) -> None:
    """Raise ValueError where source lengths are given, but not one for each sentence.

    >>> check_source_lengths(torch.tensor([3, 4]), 3)
    Traceback (most recent call last):
    ...
    ValueError: source_lengths must be of shape (3,), one for each sentence, got (2,)
    """
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(
            f"source_lengths must be of shape ({batch},), one for each sentence, got {tuple(lengths.shape)}"
        )
