"""Drawing the next token."""

import operator

import torch
from torch import Tensor

from rnn_blocks.checks import is_within, number, whole


def sample_token(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a token from each row.

    Args:
        logits: ``(batch, vocabulary)``.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: only the k most probable tokens are drawn from.
        top_p: only the most probable tokens that together reach this probability (nucleus sampling, Holtzman et al.
            2020); after ``top_k`` where both are given.
        generator: where the randomness comes from.

    Returns:
        Ids, ``(batch,)``.

    Raises:
        ValueError: for a temperature that is negative or not finite, ``top_k`` below 1 or ``top_p`` outside (0, 1].
        FloatingPointError: where a logit is NaN or infinite, as those of a model that has diverged are.

    >>> sample_token(torch.tensor([[0.0, 5.0, 1.0]]), temperature=0.0)
    tensor([1])
    """
    check_sampling(temperature, top_k, top_p)
    if not bool(logits.amax(-1).isfinite().all()):  # minus infinity rules a token out
        raise FloatingPointError("a logit of the next token is NaN or infinite: the model has diverged")
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits.float() - logits.float().amax(-1, keepdim=True)) / temperature  # no overflow where it is tiny
    if top_k is not None and top_k < logits.shape[-1]:
        largest = logits.topk(top_k)  # exactly k, whichever of equal ones
        logits = torch.full_like(logits, -torch.inf).scatter(-1, largest.indices, largest.values)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p  # what comes before already reaches top_p
        logits = logits.masked_fill(outside.gather(-1, order.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


def random_generator(device: torch.device, seed: int | None) -> torch.Generator:
    """A generator for draws of a model on a device; without a seed its numbers differ each time.

    >>> random_generator(torch.device("cpu"), 7).initial_seed()
    7
    """
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(operator.index(seed))
    return generator


def check_sampling(temperature: float, top_k: int | None, top_p: float | None, seed: int | None = None) -> None:
    """Raise ValueError where a sampling option is out of its range.

    >>> check_sampling(1.0, 0, None)
    Traceback (most recent call last):
    ...
    ValueError: top_k must be at least 1, got 0
    """
    if not is_within(temperature):
        raise ValueError(f"temperature must be 0 (the most probable token) or above, got {temperature!r}")
    if top_k is not None:
        whole("top_k", top_k)
    if top_p is not None:
        number("top_p", top_p, high=1, above=True, up_to=True)
    if seed is not None and whole("seed", seed, -(2**63)) >= 2**64:
        raise ValueError(f"seed must be below 2**64, got {seed}")
