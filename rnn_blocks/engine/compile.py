"""Recorded programs through torch's compiler: a step's small operators become one kernel, C++ on CPU, Triton on GPU."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Flat = Callable[..., Sequence[Tensor]]


class CompilerError(RuntimeError):
    """A step that torch's compiler cannot compile here: no C++ compiler, no Triton, or another torch."""


def compile_flat(function: Flat, examples: Sequence[Tensor]) -> Flat:
    """``function``, a run of torch operators on tensors that returns tensors, compiled for the shapes of ``examples``.

    TorchInductor is called on the graph itself: the guards that ``torch.compile`` puts around it take longer than a
    step's kernel.

    Raises:
        CompilerError: where it cannot be compiled.

    >>> callable(compile_flat)
    True
    """
    try:
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table
        from torch._subclasses.fake_tensor import FakeTensorMode

        with torch.no_grad():
            module = make_fx(function, decomposition_table=select_decomp_table())(*examples)
            mode = FakeTensorMode()
            compiled: Any = compile_fx_inner(module, [mode.from_tensor(example) for example in examples])
    except Exception as error:  # the compiler's own kinds of error are private, and many
        raise CompilerError(f"torch's compiler cannot compile this step: {error}") from error

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        results: Sequence[Tensor] = compiled(list(tensors))
        return results

    return run
