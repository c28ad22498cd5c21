"""Loss, perplexity and bits per byte, weighted by tokens."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenLoss(Metric):
    """Sums losses over tokens, so that means and perplexities do not depend on how the tokens were batched.

    Perplexity is the exponential of the token-weighted mean cross-entropy; bits per byte divides the sum by the bytes
    of text that the tokens stand for, which makes models with different vocabularies comparable.

    >>> metric = TokenLoss()
    >>> metric.update(torch.tensor(math.log(2.0)), torch.tensor(8), num_bytes=4.0)
    >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
    {'loss': 0.6931, 'perplexity': 2.0, 'bits_per_byte': 2.0}
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nats", "tokens", "bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean_loss: Tensor, num_tokens: Tensor, num_bytes: float = 0.0) -> None:
        """Add a batch.

        Args:
            mean_loss: mean cross-entropy of the batch's tokens, in nats, a scalar.
            num_tokens: how many tokens that is the mean of, a scalar; of 0 the loss is not looked at.
            num_bytes: bytes of text they stand for; 0 where it is not known.
        """
        nats = mean_loss.detach().double() * num_tokens
        self.nats += torch.where(num_tokens > 0, nats, 0.0)
        self.tokens += num_tokens
        self.bytes += num_bytes

    def sums(self) -> Tensor:
        """What was added up on this rank since the last reset: nats, tokens and bytes, ``(3,)``, float64."""
        return torch.stack([self.nats, self.tokens, self.bytes])

    def add_sums(self, sums: Tensor) -> None:
        """Add what :meth:`sums` gave, of a checkpoint say."""
        nats, tokens, num_bytes = sums.to(self.nats)
        self.nats += nats
        self.tokens += tokens
        self.bytes += num_bytes

    def compute(self) -> dict[str, Tensor]:
        """``loss`` (nats a token), ``perplexity`` and, where the bytes are known, ``bits_per_byte``."""
        loss = self.nats / self.tokens
        metrics = {"loss": loss, "perplexity": loss.exp()}
        if self.bytes > 0:
            metrics["bits_per_byte"] = self.nats / (math.log(2) * self.bytes)
        return metrics
