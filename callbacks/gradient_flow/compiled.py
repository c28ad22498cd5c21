"""What `torch.compile` keeps out of sight: no hook on a layer is called inside a compiled graph.

Torch's own recurrent layers are not concerned. The compiler breaks its graph at them and leaves them as they are, but
where `torch._dynamo.config.allow_rnn` is set.
"""

from collections.abc import Iterable

import torch
from torch import nn

_traced: set[str] = set()


def plain_name(name: str) -> str:
    """A module's or parameter's name, as it is without `torch.compile`.

    >>> plain_name("net._orig_mod.rnn"), plain_name("rnn._orig_mod")
    ('net.rnn', 'rnn')
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def runs_eagerly(module: nn.Module) -> bool:
    """Whether the compiler leaves a module as it is, wherever it is called."""
    return isinstance(module, nn.LSTM | nn.GRU | nn.RNN) and not getattr(torch._dynamo.config, "allow_rnn", False)


def compiled_around(root: nn.Module, module: nn.Module) -> str:
    """What around a module (or it itself) is compiled, so that its calls are not seen; empty where nothing is.

    Of a `forward` of the root, that need not be what runs the module: see `perhaps_compiled_around`.

    >>> inner = nn.Sequential(nn.Linear(2, 2))
    >>> net = nn.Sequential(nn.Linear(2, 2), torch.compile(inner, backend="eager"))
    >>> compiled_around(net, net[0]), compiled_around(net, inner[0])
    ('', "the compiled '1'")
    """
    path = next(name for name, part in root.named_modules() if part is module)
    around = "the compiled training_step" if _is_compiled(getattr(root, "training_step", None)) else ""
    parts = path.split(".") if path else []
    for end in range(len(parts) + 1):
        name = ".".join(parts[:end])
        part = root.get_submodule(name)
        forward = getattr(part, "forward", None)
        if getattr(forward, "_torchdynamo_disable", False):
            around = ""
        elif (end or module is root) and _compiles(part):
            around = around or f"the compiled {plain_name(name)!r}"
    return around


def perhaps_compiled_around(root: nn.Module) -> str:
    """What may run all of a LightningModule compiled, if it is what its `training_step` calls."""
    return f"the compiled forward of {type(root).__name__}" if _compiles(root) else ""


def _compiles(module: nn.Module) -> bool:
    wrapped = isinstance(module, torch._dynamo.OptimizedModule)
    return wrapped or module._compiled_call_impl is not None or _is_compiled(getattr(module, "forward", None))


def _is_compiled(function: object) -> bool:
    disabled = getattr(function, "_torchdynamo_disable", False)
    return not disabled and getattr(function, "_torchdynamo_orig_callable", None) is not None


def not_measured(names: Iterable[str], around: str) -> str:
    """What to tell of layers that run inside something compiled.

    >>> print(not_measured(["net"], "the compiled training_step").partition(" Measured")[0])
    GradientFlowMonitor does not measure 'net': inside the compiled training_step (torch.compile) no hook sees a layer.
    """
    return (
        f"GradientFlowMonitor does not measure {', '.join(map(repr, names))}: inside {around} (torch.compile) no hook "
        "sees a layer. Measured is what runs eagerly: keep it out of the compiled part, by `torch.compiler.disable` on "
        "the forward of the module that calls it, or train some steps without torch.compile for the picture."
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def note_traced(name: str) -> None:
    """Remember that a layer's call went into a compiled graph: called by the compiler, and not by what it makes."""
    _traced.add(name)


def forget_traced(names: Iterable[str]) -> None:
    """From here on they count as not traced."""
    _traced.difference_update(names)


def was_traced(name: str) -> bool:
    """Whether a layer's call went into a compiled graph since `forget_traced`."""
    return name in _traced
