"""Penalties on what a recurrent layer gives, to be added to a loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rnn_blocks.checks import number
from rnn_blocks.layers.layer import checked_lengths


def activation_regularisation(
    outputs: Tensor, alpha: float, *, lengths: Tensor | Sequence[int] | None = None, batch_first: bool = True
) -> Tensor:
    """Activation regularisation (AR): ``alpha · mean(h²)``, for outputs that stay small.

    Merity et al. (2017), "Revisiting activation regularization for language RNNs", section 3.1. The mean is over all
    features of all the steps that count, of all sequences together: not over the sequences' own means. In AWD-LSTM
    ``h`` is the last layer's output after its dropout, and ``alpha`` is 2.

    Args:
        outputs: ``(batch, time, features)``, or time first where ``batch_first`` is false.
        alpha: the weight of the penalty.
        lengths: steps that count in each sequence, ``(batch,)``, zeros allowed; by default all.
        batch_first: see :class:`~rnn_blocks.Layer`.

    Returns:
        A scalar, at least in float32; zero where no step counts.

    Raises:
        ValueError: for outputs or lengths of another shape, or an ``alpha`` that is negative or not finite.

    >>> activation_regularisation(torch.full((1, 2, 3), 2.0), alpha=0.5)
    tensor(2.)
    >>> activation_regularisation(torch.tensor([[[1.0], [9.0]]]), alpha=2, lengths=torch.tensor([1]))
    tensor(2.)
    """
    outputs, active = _checked(outputs, lengths, batch_first, alpha=alpha)
    return alpha * _mean_of_squares(outputs, active)


def temporal_activation_regularisation(
    outputs: Tensor, beta: float, *, lengths: Tensor | Sequence[int] | None = None, batch_first: bool = True
) -> Tensor:
    """Temporal activation regularisation (TAR): ``beta · mean((h_t - h_{t-1})²)``, for outputs that change slowly.

    Merity et al. (2017), "Revisiting activation regularization for language RNNs", section 3.2. The mean is over all
    features of all pairs of successive steps that both count, of all sequences together. In AWD-LSTM ``h`` is the last
    layer's output before its dropout, and ``beta`` is 1.

    Args:
        outputs: ``(batch, time, features)``, or time first where ``batch_first`` is false.
        beta: the weight of the penalty.
        lengths: steps that count in each sequence, ``(batch,)``, zeros allowed; by default all.
        batch_first: see :class:`~rnn_blocks.Layer`.

    Returns:
        A scalar, at least in float32; zero where there is no pair of steps.

    Raises:
        ValueError: for outputs or lengths of another shape, or a ``beta`` that is negative or not finite.

    >>> temporal_activation_regularisation(torch.tensor([[[1.0], [3.0], [4.0]]]), beta=2)
    tensor(5.)
    >>> temporal_activation_regularisation(torch.tensor([[[1.0], [3.0], [4.0]]]), beta=2, lengths=torch.tensor([2]))
    tensor(8.)
    """
    outputs, active = _checked(outputs, lengths, batch_first, beta=beta)
    return beta * _mean_of_squares(outputs[1:] - outputs[:-1], None if active is None else active[1:])


def _checked(
    outputs: Tensor, lengths: Tensor | Sequence[int] | None, batch_first: bool, **weight: float
) -> tuple[Tensor, Tensor | None]:
    """The outputs with time first, and which steps count, ``(time, batch)``."""
    for name, value in weight.items():
        number(name, value)
    if outputs.dim() != 3:
        raise ValueError(f"outputs must be three-dimensional, as layers give them, got shape {tuple(outputs.shape)}")
    outputs = outputs.transpose(0, 1) if batch_first else outputs
    # sums of squares leave the range of half precision
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if lengths is None:
        return outputs, None
    time, batch = outputs.shape[:2]
    if len(lengths) != batch:
        raise ValueError(f"lengths must be {batch} integers, one a sequence, got shape ({len(lengths)},)")
    lengths = checked_lengths(lengths, time, batch, outputs.device)
    return outputs, torch.arange(time, device=outputs.device)[:, None] < lengths


def _mean_of_squares(values: Tensor, active: Tensor | None) -> Tensor:
    if active is None:
        return values.square().sum() / max(values.numel(), 1)
    count = active.sum() * values.shape[-1]
    return torch.where(active[..., None], values, 0.0).square().sum() / count.clamp(min=1)
