"""Pascanu's penalty on gradients that vanish on their way back through time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rnn_blocks.cells import ElmanCell
from rnn_blocks.layers.layer import Layer, checked_lengths
from rnn_blocks.layers.recurrent import Recurrent
from rnn_blocks.layers.recurrent_stack import RecurrentStack


def vanishing_gradient_penalty(
    layer: Layer,
    outputs: Tensor,
    loss: Tensor,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """Ω of Pascanu, Mikolov & Bengio (2013), eq. 9: recurrent weights for which gradients keep their norm back in time.

    "On the difficulty of training recurrent neural networks". Their network is ``x_k = U σ(x_{k-1}) + W u_k + b``: the
    ``x_k`` are what :class:`~rnn_blocks.ElmanCell` applies its ``f = σ`` to, so that ``h_k = f(x_k)``, and::

        Ω = Σ_k (‖∂E/∂x_{k+1} · ∂x_{k+1}/∂x_k‖ / ‖∂E/∂x_{k+1}‖ - 1)²     with  ∂x_{k+1}/∂x_k = U · diag(f'(x_k))

    Gradients are pushed to keep their length along the directions that matter to the loss ``E``, not in all of them.
    The sum is over all pairs of successive steps of a sequence, and Ω the mean over the sequences. A step that no
    gradient reaches, or that starts afresh, does not count.

    As in the paper only the immediate derivative is taken: ``∂E/∂x_{k+1}`` and ``x_k`` are constants, so the penalty's
    gradient reaches the recurrent weights ``U`` alone. The loss itself, and its graph, are left as they are. In a
    ``training_step``::

        outputs, _ = self.layer(inputs)
        loss = self.loss(self.head(outputs), targets)
        return loss + alpha * vanishing_gradient_penalty(self.layer, outputs, loss)

    The paper holds ``alpha`` constant on synthetic tasks, and lets it fall as ``1/t`` with the training step ``t`` on
    natural ones. It goes with clipping: longer gradients explode more easily
    (:class:`~rnn_blocks.callbacks.AdaptiveGradientClipping`).

    What lies between the outputs and the loss is differentiated twice, the layer itself once more but for its weights.

    Args:
        layer: an :class:`~rnn_blocks.Elman` of one layer in one direction, or a :class:`~rnn_blocks.Recurrent` around
            an :class:`~rnn_blocks.ElmanCell`; on any engine. Of deeper networks, one penalty for each such layer.
        outputs: what the layer gave, ``(batch, time, hidden_size)``, or time first where the layer is.
        loss: a scalar that comes from ``outputs``: not from the state that the layer gave, whose counterpart is each
            sequence's last output. It must be made, with its graph, in the same step.
        lengths: as the layer got them.
        resets: as the layer got them.

    Returns:
        A scalar, at least in float32.

    Raises:
        ValueError: for another layer, outputs of another shape, or a loss that does not come from them.

    >>> import rnn_blocks
    >>> layer = rnn_blocks.Elman(3, 8)
    >>> outputs, _ = layer(torch.randn(2, 7, 3))
    >>> loss = outputs[:, -1].square().mean()
    >>> penalty = vanishing_gradient_penalty(layer, outputs, loss)
    >>> (loss + 0.1 * penalty).backward()
    """
    cell = _elman_cell(layer)
    if outputs.dim() != 3 or outputs.shape[-1] != cell.hidden_size:
        raise ValueError(
            f"outputs must be what the layer gave, three-dimensional with {cell.hidden_size} features, got a tensor of "
            f"shape {tuple(outputs.shape)}"
        )
    direct = None
    if loss.requires_grad and outputs.requires_grad:
        (direct,) = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
    if direct is None:
        raise ValueError(
            "loss must come from outputs, by operations that can be differentiated; where it comes from the layer's "
            "state, take each sequence's last output in its place"
        )
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    h, direct = (_time_first(sequence.detach(), layer).to(dtype) for sequence in (outputs, direct))
    weight = cell.weight_hh.to(dtype)
    slope = 1 - h.square() if cell.nonlinearity == "tanh" else (h > 0).to(dtype)  # f'(x)
    if lengths is not None:
        lengths = checked_lengths(lengths, h.shape[0], h.shape[1], h.device)
        active = (torch.arange(len(h), device=h.device)[:, None] < lengths)[..., None]
        direct, slope = torch.where(active, direct, 0.0), torch.where(active, slope, 0.0)
    joined = None if resets is None else ~_time_first(resets, layer)[1:].bool()
    with torch.autocast(h.device.type, enabled=False):
        later = _gradients(direct, slope, weight.detach(), joined)[1:]  # ∂E/∂x_{k+1}: (time - 1, batch, hidden_size)
        # Only the direction counts. Gradients that have almost vanished are brought to a size whose square is a number.
        largest = later.abs().amax(-1, keepdim=True)
        direction = later / torch.where(largest > 0, largest, 1.0)
        norm, norm_before = (
            torch.linalg.vector_norm(gradient, dim=-1) for gradient in (direction, direction @ weight * slope[:-1])
        )
        counts = largest.squeeze(-1) > 0
        if joined is not None:
            counts = counts & joined
        squares = (norm_before / torch.where(counts, norm, 1.0) - 1).square()
        return torch.where(counts, squares, 0.0).sum() / max(h.shape[1], 1)


@torch.no_grad()
def _gradients(direct: Tensor, slope: Tensor, weight: Tensor, joined: Tensor | None) -> Tensor:
    """``∂E/∂x_k`` at all steps from what the loss takes from each ``h_k`` directly; time first."""
    gradients = []
    from_later = torch.zeros_like(direct[0])
    for t in reversed(range(len(direct))):
        gradients.append((direct[t] + from_later) * slope[t])
        from_later = gradients[-1] @ weight
        if joined is not None and t:
            from_later = torch.where(joined[t - 1, :, None], from_later, 0.0)
    return torch.stack(gradients[::-1])


def _time_first(sequence: Tensor, layer: Layer) -> Tensor:
    return sequence.transpose(0, 1) if layer.batch_first else sequence


def _elman_cell(layer: Layer) -> ElmanCell:
    inner: object = layer
    if isinstance(layer, RecurrentStack) and len(layer.layers) == 1 and layer.paths is None:
        inner = layer.layers[0]
    if type(inner) is Recurrent and isinstance(inner.cell, ElmanCell) and _steps_as_elman(inner.cell):
        return inner.cell
    raise ValueError(
        "layer must be an Elman of one layer in one direction, or a Recurrent around an ElmanCell, got "
        f"{type(layer).__name__}"
        + (f" of {len(layer.layers)} layers" if isinstance(layer, RecurrentStack) else "")
        + "; of deeper networks, each layer's own outputs are needed"
    )


def _steps_as_elman(cell: ElmanCell) -> bool:
    """Whether the step is the class's, and not that of a subclass, or a method put on the cell."""
    return all(
        getattr(getattr(cell, name), "__func__", None) is getattr(ElmanCell, name) for name in ("step", "advance")
    )
