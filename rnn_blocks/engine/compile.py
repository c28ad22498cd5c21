"""Recorded programs through torch's compiler: a step's small operators become one kernel, C++ on CPU, Triton on GPU."""

import hashlib
import io
import pickle
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import BuiltinFunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Flat = Callable[..., Sequence[Tensor]]


class CompilerError(RuntimeError):
    """A step that torch's compiler cannot compile here: no C++ compiler, no Triton, or another torch."""


class Like(NamedTuple):
    """What a tensor is but for its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "Like":
        """Those of a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def ones(self) -> Tensor:
        """Such a tensor, by which integers can be divided."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        if 0 in self.shape:
            extent = 0
        return torch.ones(extent, dtype=self.dtype, device=self.device).as_strided(self.shape, self.stride)


class Written(NamedTuple):
    """A function in words: its name, its source, and what the names in it stand for."""

    name: str
    source: str
    scope: dict[str, Any]

    def function(self) -> Flat:
        """The function."""
        scope = dict(self.scope)
        exec(self.source, scope)  # written by this library from a recorded graph
        found: Flat = scope[self.name]
        return found


class Surroundings(NamedTuple):
    """Settings of torch that what is compiled, or where it is kept, depends on."""

    dtype: torch.dtype
    precision: str
    cuda_precision: str | None

    @classmethod
    def here(cls) -> "Surroundings":
        """Those of this process."""
        cuda = getattr(torch.backends.cuda.matmul, "fp32_precision", None)  # which torch has from 2.9 on
        return cls(torch.get_default_dtype(), torch.get_float32_matmul_precision(), cuda)

    def restore(self) -> None:
        """Set them, in a process that compiles for another."""
        torch.set_default_dtype(self.dtype)
        if torch.get_float32_matmul_precision() != self.precision:  # to set what it is already changes others
            torch.set_float32_matmul_precision(self.precision)
        if self.here() != self:
            torch.backends.cuda.matmul.fp32_precision = self.cuda_precision


@dataclass(frozen=True)
class StepSource:
    """The two programs that run at each step, as the compiler takes them, in this process or in another.

    Attributes:
        forward: ``(*projected, *masks, *state, *steady, out, *stacked) -> (*state, *saved)``.
        backward: ``(*saved, *around, *tangents, *steady, *buffers) -> gradients``, or ``None``.
        arguments: those of ``forward``.
        steady: where in them what is the same at all steps lies.
        num_state: tensors of the state.
        around: whether ``backward`` takes the outputs before and after the step.
        present: which tensors of the state ``backward`` gives a gradient of, first of all.
        buffers: what ``backward`` writes to.
        surroundings: see :class:`Surroundings`.
    """

    forward: Written
    backward: Written | None
    arguments: tuple[Like, ...]
    steady: tuple[int, int]
    num_state: int
    around: bool
    present: tuple[bool, ...]
    buffers: tuple[Like, ...]
    surroundings: Surroundings = field(default_factory=Surroundings.here)

    def packed(self) -> bytes:
        """As bytes, for :func:`unpacked`."""
        file = io.BytesIO()
        _Pickler(file, protocol=5).dump(self)
        return file.getvalue()

    def digest(self) -> str:
        """A name for these programs, compiled by this torch for this kind of CPU."""
        functions = [self.forward] if self.backward is None else [self.forward, self.backward]
        words = [(name, source, [(k, _in_words(v)) for k, v in scope.items()]) for name, source, scope in functions]
        about = (torch.__version__, torch.backends.cpu.get_cpu_capability(), self.surroundings)
        sizes = (self.arguments, self.steady, self.num_state, self.around, self.present, self.buffers)
        return hashlib.sha256(repr((words, sizes, about)).encode()).hexdigest()[:32]


def unpacked(packed: bytes) -> StepSource:
    """What :meth:`StepSource.packed` made bytes of, in a process that trusts them."""
    source: StepSource = pickle.loads(packed)
    return source


class _Pickler(pickle.Pickler):
    """Torch's operators and bindings by their names, constants by their numbers."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch._ops.OpOverload):
            return _operator, (str(value),)
        if isinstance(value, BuiltinFunctionType):
            name = value.__name__
            return (_binding, (name,)) if getattr(torch, name, None) is value else NotImplemented
        if isinstance(value, Tensor):
            return torch.tensor, (value.tolist(), value.dtype, value.device)
        return NotImplemented


def _in_words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.tolist()} {value.dtype} {value.device}"
    if isinstance(value, torch._ops.OpOverload):
        return str(value)
    return str(getattr(value, "__name__", repr(value)))


def _operator(name: str) -> Any:
    found: Any = torch.ops
    for part in name.split("."):  # aten.add.Tensor
        found = getattr(found, part)
    return found


def _binding(name: str) -> Any:
    return getattr(torch, name)


def compile_step(source: StepSource, *, one_thread: bool = False) -> tuple[Flat, Flat | None]:
    """The forward and the backward program compiled, the latter for tensors laid out as the former hands them out.

    Args:
        source: the programs.
        one_thread: whether the kernels run, and are made, on one thread whatever else runs on more.

    Raises:
        CompilerError: where they cannot be compiled.
    """
    arguments = [like.ones() for like in source.arguments]
    begin, end = source.steady
    with _on_one_thread() if one_thread else nullcontext():
        forward = compile_flat(source.forward.function(), arguments)
        results = forward(*arguments)
        after, saved = results[: source.num_state], [*arguments[end + 1 :], *results[source.num_state :]]
        _check_layouts(after, arguments[begin - source.num_state : begin])
        if source.backward is None:
            return forward, None
        out = arguments[end]
        around = [torch.zeros_like(out), torch.zeros_like(out)] if source.around else []
        tangents = [torch.zeros_like(tensor) for tensor in (out, *after)]
        buffers = [like.ones() for like in source.buffers]
        given = [*saved, *around, *tangents, *arguments[begin:end], *buffers]
        backward = compile_flat(source.backward.function(), given)
        _check_layouts(
            backward(*given), [old for old, there in zip(tangents[1:], source.present, strict=True) if there]
        )
        return forward, backward


def _check_layouts(results: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """What a step hands to the next must lie as that takes it: nobody looks at it again, which took time at each step.

    Raises:
        CompilerError: where it does not.
    """
    for new, old in zip(results, given, strict=False):
        strides = zip(new.stride(), old.stride(), old.shape, strict=False)
        same = new.shape == old.shape and new.dtype == old.dtype
        if not same or any(a != b for a, b, size in strides if size > 1):
            raise CompilerError(f"torch's compiler cannot compile this step: of {Like.of(old)} it makes {Like.of(new)}")


def _on_one_thread() -> Any:
    try:
        from torch._inductor import config
    except Exception as error:  # without what torch's compiler needs, or in another torch
        raise CompilerError(f"torch's compiler cannot compile this step: {error}") from error
    return config.patch({"compile_threads": 1, "cpp.threads": 1, "fx_graph_cache": True})


def compile_flat(function: Flat, examples: Sequence[Tensor]) -> Flat:
    """``function``, a run of torch operators on tensors that returns tensors, compiled for the shapes of ``examples``.

    TorchInductor is called on the graph itself: the guards that ``torch.compile`` puts around it take longer than a
    step's kernel. On CPU its own look at shapes and strides at each call is left out, and so is what it does around a
    call for the sake of Triton: together a tenth of a step.

    Raises:
        CompilerError: where it cannot be compiled.

    >>> callable(compile_flat)
    True
    """
    on_cpu = all(example.device.type == "cpu" for example in examples)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own parts
            from torch._inductor import config
            from torch._inductor.compile_fx import compile_fx_inner
        from torch._guards import TracingContext, tracing
        from torch._inductor.decomposition import select_decomp_table
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        unchecked = {name: False for name in ("size_asserts", "alignment_asserts") if on_cpu and hasattr(config, name)}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module = make_fx(function, decomposition_table=select_decomp_table())(*examples)
            mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
            with tracing(TracingContext(mode)), config.patch(unchecked):  # a context: the cache on disk looks at it
                compiled: Any = compile_fx_inner(module, [mode.from_tensor(example) for example in examples])
    except Exception as error:  # the compiler's own kinds of error are private, and many
        raise CompilerError(f"torch's compiler cannot compile this step: {error}") from error
    call: Callable[[list[Tensor]], Sequence[Tensor]] = getattr(compiled, "current_callable", None) or compiled
    if not on_cpu:
        call = compiled

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        return call(list(tensors))

    return run
