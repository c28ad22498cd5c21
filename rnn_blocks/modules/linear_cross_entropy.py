"""The output layer and its cross-entropy in one, for large vocabularies."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, linear

from rnn_blocks.engine import is_transformed
from rnn_blocks.engine.products import multiplies_slowly

TILE = 1024  # words of the vocabulary a tile: with a few hundred rows it stays in the caches
ROWS = 1024  # rows at a time: bounds what is held at once to ROWS x vocabulary
LARGEST_LOSS = 60.0  # nats of a row: exp(60) times rows, weights and vocabulary stays far from float32's end, exp(88)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    ignore_index: int = -100,
) -> Tensor:
    """Mean cross-entropy of ``softmax(hidden @ weight.T + bias)``: ``cross_entropy`` of a ``linear``, faster on CPU.

    In float32 on CPU the vocabulary is walked in tiles: the logits of a tile less the target's own, their exponential
    and its product with the weights happen while the tile is in the caches, so memory is crossed once where autograd
    crosses it eight times, and the gradients are ready when the loss is. Elsewhere (GPU, other dtypes, autocast, under
    `torch.func`) it is the plain pair of operations.

    Args:
        hidden: ``(rows, features)``.
        weight: ``(vocabulary, features)``.
        bias: ``(vocabulary,)`` or ``None``.
        targets: ids, ``(rows,)``; ``ignore_index`` where a row does not count.
        ignore_index: the target that does not count.

    Returns:
        The mean over the rows that count, in nats, a scalar; ``nan`` where none does.

    Raises:
        IndexError: where a target is not an id of the vocabulary.
        RuntimeError: where the tiled way is differentiated twice.

    >>> hidden, weight = torch.randn(4, 3), torch.randn(9, 3)
    >>> targets = torch.tensor([1, 8, -100, 0])
    >>> loss = linear_cross_entropy(hidden, weight, None, targets)
    >>> torch.testing.assert_close(loss, cross_entropy(linear(hidden, weight), targets))
    """
    tensors = [hidden, weight] if bias is None else [hidden, weight, bias]
    recorded = torch.compiler.is_compiling() or is_transformed()
    if torch.is_autocast_enabled("cpu") and not recorded and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
        if multiplies_slowly(dtype, hidden.device):  # the same numbers, multiplied in float32
            with torch.autocast("cpu", enabled=False):
                hidden, weight = hidden.to(dtype).float(), weight.to(dtype).float()
                bias = None if bias is None else bias.to(dtype).float()
                return linear_cross_entropy(hidden, weight, bias, targets, ignore_index=ignore_index)
    fits = all(t.dtype == torch.float32 and t.device.type == "cpu" and t.numel() > 0 for t in tensors)
    if recorded or torch.is_autocast_enabled("cpu") or not fits:
        hidden = torch.where((targets != ignore_index).unsqueeze(-1), hidden, 0.0)  # what does not count may be NaN
        return cross_entropy(linear(hidden, weight, bias), targets, ignore_index=ignore_index)
    counted = targets != ignore_index
    if not bool(counted.all()):
        hidden, targets = hidden[counted], targets[counted]
    if len(targets) == 0:
        return sum((tensor[:0].sum() for tensor in tensors), hidden.new_full((), torch.nan))  # with a graph of them all
    low, high = targets.aminmax()
    if low < 0 or high >= len(weight):
        bad = int(low if low < 0 else high)
        raise IndexError(f"target {bad} is out of bounds for a vocabulary of {len(weight)}")
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    tiled_cross_entropy: Callable[..., Tensor] = _TiledCrossEntropy.apply
    pieces = -(-len(targets) // ROWS)  # of about one size: products with few rows are slow
    losses = [
        tiled_cross_entropy(rows, weight, bias, wanted, len(targets))
        for rows, wanted in zip(hidden.chunk(pieces), targets.chunk(pieces), strict=True)
    ]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def smoothing_term(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, ignore_index: int = -100
) -> Tensor:
    """What label smoothing adds to the cross-entropy, per unit of ε (Szegedy et al. 2016, section 7).

    With logits ``l`` and the target ``y`` of a row, cross-entropy against targets of which a part ε is spread evenly
    over the vocabulary is ``(log Σ_v exp l_v - l_y) + ε (l_y - mean_v l_v)``. The mean logit is the product with the
    mean weights, so that no logits are made for it.

    Args:
        hidden: ``(rows, features)``.
        weight: ``(vocabulary, features)``.
        bias: ``(vocabulary,)`` or ``None``.
        targets: ids, ``(rows,)``; ``ignore_index`` where a row does not count.
        ignore_index: the target that does not count.

    Returns:
        The mean over the rows that count of ``l_y - mean_v l_v``, a scalar; ``nan`` where none does.

    >>> hidden, weight, targets = torch.randn(4, 3), torch.randn(9, 3), torch.tensor([1, 8, 3, 0])
    >>> loss = linear_cross_entropy(hidden, weight, None, targets) + 0.1 * smoothing_term(hidden, weight, None, targets)
    >>> torch.testing.assert_close(loss, cross_entropy(linear(hidden, weight), targets, label_smoothing=0.1))
    """
    counted = targets != ignore_index
    targets, hidden = torch.where(counted, targets, 0), torch.where(counted.unsqueeze(-1), hidden, 0.0)
    per_row = (hidden * (embedding(targets, weight) - weight.mean(0))).sum(1)
    if bias is not None:
        per_row = per_row + bias[targets] - bias.mean()
    return torch.where(counted, per_row, 0.0).sum() / counted.sum()


class _TiledCrossEntropy(torch.autograd.Function):
    """With ``e_nv = exp(l_nv - l_ny)``, row n's loss is ``log Σ_v e_nv``, its gradient ``e_nv / Σ_v e_nv - [v = y]``.

    Measured from the target's logit rather than from the largest, nothing has to be known of the other tiles when one
    is made. A row whose loss is past ``LARGEST_LOSS`` could overflow: such batches take the plain way.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, all_rows: int
    ) -> Tensor:
        need_hidden, need_weight, need_bias, *_ = ctx.needs_input_grad
        rows = len(targets)
        hidden = hidden.contiguous()
        target_weight = weight[targets]  # (rows, features)
        offset = (hidden * target_weight).sum(1)  # the target's logit, (rows,)
        if bias is not None:
            offset = offset + bias[targets]
        transposed = hidden.t()
        total = hidden.new_zeros(rows)
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        tiles = []
        for start in range(0, len(weight), TILE):
            tile_weight = weight[start : start + TILE]
            tile = tile_weight @ transposed  # (tile, rows)
            tile -= offset
            if bias is not None:
                tile += bias[start : start + TILE, None]
            tile.exp_()
            total += tile.sum(0)
            if grad_hidden is not None:
                grad_hidden.addmm_(tile.t(), tile_weight)
            if need_weight or need_bias:
                tiles.append(tile)
        losses = total.log()
        if not bool((losses <= LARGEST_LOSS).all()):  # nan too
            return _plain_with_gradients(ctx, hidden, weight, bias, targets, all_rows)
        scale = 1 / (all_rows * total)  # (rows,)
        grad_weight = grad_bias = None
        if grad_hidden is not None:
            grad_hidden.mul_(scale[:, None]).sub_(target_weight, alpha=1 / all_rows)
        if need_weight:
            scaled = hidden * scale[:, None]
            grad_weight = torch.empty_like(weight)
            for start, tile in zip(range(0, len(weight), TILE), tiles, strict=True):
                torch.mm(tile, scaled, out=grad_weight[start : start + TILE])
            grad_weight.index_add_(0, targets, hidden, alpha=-1 / all_rows)
        if need_bias:
            grad_bias = torch.cat([tile @ scale for tile in tiles])
            grad_bias.index_add_(0, targets, hidden.new_ones(rows), alpha=-1 / all_rows)
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        return losses.sum() / all_rows

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        if torch.is_grad_enabled():  # create_graph: what was made in forward would pass for a constant
            raise RuntimeError("linear_cross_entropy has no second derivative: use cross_entropy(linear(...)) for that")
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradients of linear_cross_entropy were already used: it cannot be differentiated twice"
            )
        factor = float(grad_loss)
        gradients, ctx.gradients = ctx.gradients, None
        if factor != 1.0:
            gradients = tuple(None if gradient is None else gradient.mul_(factor) for gradient in gradients)
        return (*gradients, None, None)


def _plain_with_gradients(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, all_rows: int
) -> Tensor:
    need_hidden, need_weight, need_bias, *_ = ctx.needs_input_grad
    hidden = hidden.detach().requires_grad_(need_hidden)
    weight = weight.detach().requires_grad_(need_weight)
    bias = None if bias is None else bias.detach().requires_grad_(need_bias)
    with torch.enable_grad():
        loss = cross_entropy(linear(hidden, weight, bias), targets, reduction="sum") / all_rows
    if loss.requires_grad:
        loss.backward()
    ctx.gradients = (hidden.grad, weight.grad, None if bias is None else bias.grad)
    return loss.detach()
