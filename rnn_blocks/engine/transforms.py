"""Transforms and modes, which see what torch computes, but not what a recorded step does."""

import torch
from torch import Tensor


def is_transformed() -> bool:
    """Whether this runs under a transform of ``torch.func`` (``vmap``, ``grad``, ``jacrev``, ``jacfwd``, …), under
    forward-mode differentiation, or in a mode that sees each operator (``make_fx``, ``torch.jit.trace``, fake
    tensors, a count of flops).

    >>> torch.func.vmap(lambda x: x * is_transformed())(torch.ones(2)).tolist(), is_transformed()
    ([1.0, 1.0], False)
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return True
    return torch.autograd.forward_ad._current_level >= 0


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform hides what a tensor holds, as ``vmap`` does: numbers cannot be looked at.

    >>> torch.func.vmap(lambda x: x * is_wrapped(x))(torch.ones(2)).tolist(), is_wrapped(torch.ones(2))
    ([1.0, 1.0], False)
    """
    if torch.compiler.is_compiling():
        return False
    inside = torch._C._functorch
    return inside.is_functorch_wrapped_tensor(tensor) or inside.is_legacy_batchedtensor(tensor)  # autograd's own


def has_numbers(tensor: Tensor) -> bool:
    """Whether kernels can work on what a tensor holds: not where it is on the ``meta`` device, or a fake one.

    >>> has_numbers(torch.ones(2)), has_numbers(torch.ones(2, device="meta"))
    (True, False)
    """
    if torch.compiler.is_compiling():
        return True
    return not tensor.is_meta and not torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python)
