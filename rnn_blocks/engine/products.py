"""Products with one factor packed once and used many times."""

import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

Product = Callable[..., Tensor]


def packed_product(weight: Tensor, *, rows: int = 1024) -> Product:
    """A function ``inputs -> inputs @ weight.T`` with ``weight`` packed for oneDNN where that is possible.

    In bfloat16 oneDNN would otherwise put the factor into the units' order at every call. The two operators are torch's
    private ones (its compiler uses them), so a torch without them falls back to ``linear``.
    No gradient flows through the product: it is for the inside of hand-written derivatives.

    Args:
        weight: ``(out, in)``.
        rows: about how many rows the inputs will have.

    >>> product = packed_product(torch.eye(2))
    >>> product(torch.tensor([[1.0, 2.0]])).tolist()
    [[1.0, 2.0]]
    """
    weight = weight.detach()
    if not (can_pack(weight) or packing_pays(weight)):
        return lambda inputs: linear(inputs.detach(), weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    return lambda inputs: torch.ops.mkldnn._linear_pointwise(inputs.detach(), packed, None, "none", [], "")


def can_pack(weight: Tensor) -> bool:
    """Whether :func:`packed_product` can pack float32: on CPU, with the operators at hand.

    >>> can_pack(torch.eye(2, dtype=torch.float64))
    False
    """
    return weight.dtype == torch.float32 and _has_operators(weight)


def _has_operators(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.numel() > 0
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def packing_pays(weight: Tensor) -> bool:
    """Whether the products of single steps are faster with a packed factor: in bfloat16, on CPUs with units for it.

    Not in float32: there a call takes some 25 µs before it multiplies, and what it gains on the widest weights (1,150
    units, AVX-512) the packing takes again.

    >>> packing_pays(torch.eye(2))
    False
    """
    return weight.dtype == torch.bfloat16 and has_bfloat16_units() and _has_operators(weight)


def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself: AMX or AVX512_BF16.

    >>> has_bfloat16_units() in (False, True)
    True
    """
    return _cpu_has("_is_amx_tile_supported") or _cpu_has("_is_avx512_bf16_supported")


def multiplies_slowly(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of ``dtype`` take far longer than those of float32: bfloat16 on x86 without units for it.

    There torch multiplies number by number, three to fifty times as long; in float32 the same products are exact, and
    sums of them at least as good.

    >>> multiplies_slowly(torch.float32, torch.device("cpu"))
    False
    """
    slow = dtype == torch.bfloat16 and device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    return slow and not has_bfloat16_units()


def _cpu_has(check: str) -> bool:
    return bool(getattr(torch.cpu, check, bool)())  # torch's own, and private


class _InputProduct(torch.autograd.Function):
    """``linear`` whose weight gradient is :func:`sum_of_products`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(inputs, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, inputs: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        given, factor = ctx.saved_tensors
        parts = [] if inputs is None else [linear(inputs, factor)]
        parts += [] if weight is None else [linear(given, weight)]
        parts += [] if bias is None else [bias.expand(*given.shape[:-1], -1)]
        return sum(parts[1:], parts[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        need_inputs, need_weight, need_bias = ctx.needs_input_grad
        flat, rows = grad.reshape(-1, grad.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
        with torch.autocast(grad.device.type, enabled=False):  # in the precision of the product itself
            return (
                grad @ weight if need_inputs else None,
                sum_of_products(flat, rows) if need_weight else None,
                flat.sum(0) if need_bias else None,
            )


def input_product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``inputs @ weight.T + bias`` for all steps at once: ``linear`` with a faster weight gradient on CPU.

    Args:
        inputs: ``(time, batch, in)``.
        weight: ``(out, in)``.
        bias: ``(out,)``.

    >>> input_product(torch.ones(5, 1, 2), torch.ones(3, 2)).shape
    torch.Size([5, 1, 3])
    """
    if inputs.device.type != "cpu" or torch.compiler.is_compiling():
        return linear(inputs, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        if not multiplies_slowly(dtype, inputs.device) or inputs.dtype == torch.float64:
            return linear(inputs, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return input_product(inputs.float(), weight.float(), None if bias is None else bias.float()).to(dtype)
    if not torch.is_grad_enabled():
        return linear(inputs, weight, bias)
    product: Product = _InputProduct.apply
    return product(inputs, weight, bias)


def sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """``leftᵀ right``: a weight's gradient over all steps, ``(rows, m)`` and ``(rows, n)`` to ``(m, n)``.

    >>> sum_of_products(torch.ones(5, 2), torch.ones(5, 3)).tolist()
    [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]
    """
    # the wider factor goes to the right: libraries multiply such products up to a third faster
    return left.t() @ right if left.shape[1] <= right.shape[1] else (right.t() @ left).t()
