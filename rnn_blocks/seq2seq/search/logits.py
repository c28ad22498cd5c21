"""One step's logits, of which a search wants a few: the best candidates and each row's normaliser."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 64  # tokens; the best of a vocabulary lie in the blocks with the largest maxima
CHUNK = 2**18  # logits exponentiated at a time: they stay in the second-level cache


class Forbidden:
    """Tokens that may not come next.

    Args:
        tokens: their ids.
        vocab_size: of the logits.
        device: of the logits.
    """

    def __init__(self, tokens: Sequence[int], vocab_size: int, device: torch.device) -> None:
        self.tokens = torch.tensor(sorted(set(tokens)), dtype=torch.long, device=device)
        self.mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.mask[self.tokens] = True
        self.blocks = sorted({token // BLOCK for token in tokens})

    def __bool__(self) -> bool:
        return len(self.tokens) > 0


class StepLogits:
    """Logits ``(batch, beam, vocab)`` of one step: they are read and never copied whole.

    >>> logits = StepLogits(torch.tensor([[[0.0, 2.0, 1.0]]]))
    >>> logits.normaliser()
    tensor([[2.4076]])
    >>> scores, at = logits.best(-logits.normaliser(), 1, 2, Forbidden([2], 3, torch.device("cpu")))
    >>> at.tolist()
    [[[1, 0]]]
    """

    def __init__(self, logits: Tensor) -> None:
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        self.logits = logits
        self.batch, self.beam, self.vocab_size = logits.shape
        self.blocks = -(-self.vocab_size // BLOCK)
        self.maxima = self._maxima() if self.blocks > 2 else None  # (batch, beam, blocks)
        self.places = torch.arange(BLOCK, device=logits.device)

    def _maxima(self) -> Tensor:
        whole = self.vocab_size // BLOCK * BLOCK
        maxima: Tensor = self.logits[..., :whole].unflatten(-1, (-1, BLOCK)).amax(-1)
        if whole == self.vocab_size:
            return maxima
        return torch.cat([maxima, self.logits[..., whole:].amax(-1, keepdim=True)], -1)

    def normaliser(self) -> Tensor:
        """``log Σ_v exp(logits_v)``, ``(batch, beam)``; 0 where every token is ruled out, so that it ends there."""
        total = self._log_sum()
        return total.masked_fill(total == -torch.inf, 0.0)

    def _log_sum(self) -> Tensor:
        if self.maxima is None or self.logits.device.type != "cpu" or self.logits.dtype != torch.float32:
            return self.logits.logsumexp(-1)
        # exp2 takes half of exp's time on CPU
        largest = self.maxima.amax(-1).flatten()  # (rows,)
        largest = largest.masked_fill(largest == -torch.inf, 0.0)
        rows = self.logits.flatten(0, 1)  # (rows, vocab)
        chunk = max(1, min(len(rows), CHUNK // self.vocab_size))
        powers = rows.new_empty(chunk, self.vocab_size)
        total = rows.new_empty(len(rows))
        shift = (largest * -math.log2(math.e)).unsqueeze(-1)
        for part, by, sums in zip(rows.split(chunk), shift.split(chunk), total.split(chunk), strict=True):
            power = torch.add(by, part, alpha=math.log2(math.e), out=powers[: len(part)])
            torch.sum(power.exp2_(), -1, out=sums)
        return total.log_().add_(largest).view(self.batch, self.beam)

    def of(self, tokens: Tensor) -> Tensor:
        """The logits of ``tokens (batch, beam)``, ``(batch, beam)``."""
        return self.logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def without(self, forbidden: Forbidden) -> Tensor:
        """A copy with minus infinity for forbidden tokens: for drawing, which copies anyway."""
        return self.logits.index_fill(-1, forbidden.tokens, -torch.inf) if forbidden else self.logits

    def best(self, offset: Tensor, groups: int, count: int, forbidden: Forbidden) -> tuple[Tensor, Tensor]:
        """The largest of ``offset + logits`` in each group of neighbouring hypotheses, largest first.

        Args:
            offset: what is added to all logits of a hypothesis, ``(batch, beam)``.
            groups: into how many equal parts the beam falls.
            count: how many are wanted.
            forbidden: tokens that are left out.

        Returns:
            The sums, ``(batch, groups, count)``, minus infinity where there are not so many, and where they are:
            ``hypothesis of the group * vocab + token``. The count is smaller where there are fewer candidates.
        """
        width = self.beam // groups
        logits = self.logits.reshape(self.batch, groups, width * self.vocab_size)
        if self.maxima is None or count * 4 > width * self.blocks:
            sums = (self.without(forbidden) + offset.unsqueeze(-1)).view(logits.shape)
            sums, at = sums.topk(min(count, sums.shape[-1]))
            return sums, at
        maxima = self._allowed_maxima(forbidden) + offset.unsqueeze(-1)
        in_blocks = maxima.view(self.batch, groups, width * self.blocks).topk(count, sorted=False).indices
        row = in_blocks // self.blocks  # (batch, groups, count): of the group
        token = (in_blocks - row * self.blocks).unsqueeze(-1) * BLOCK + self.places  # (batch, groups, count, block)
        outside = None
        if self.vocab_size % BLOCK:
            outside = token >= self.vocab_size
            token = token.clamp_(max=self.vocab_size - 1)
        if forbidden:
            banned = forbidden.mask.take(token)
            outside = banned if outside is None else outside.logical_or_(banned)
        at = (token + row.unsqueeze(-1) * self.vocab_size).flatten(2)  # (batch, groups, count * block)
        sums = logits.gather(-1, at).unflatten(-1, (count, BLOCK))
        sums += offset.view(self.batch, groups, width).gather(-1, row).unsqueeze(-1)
        if outside is not None:
            sums.masked_fill_(outside, -torch.inf)
        best, chosen = sums.flatten(2).topk(count)
        return best, at.gather(-1, chosen)

    def _allowed_maxima(self, forbidden: Forbidden) -> Tensor:
        """The maxima of the blocks, forbidden tokens left out."""
        assert self.maxima is not None
        if not forbidden:
            return self.maxima
        maxima = self.maxima.clone()
        for block in forbidden.blocks:
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            allowed = self.logits[..., part].masked_fill(forbidden.mask[part], -torch.inf)
            torch.amax(allowed, -1, out=maxima[..., block])
        return maxima
