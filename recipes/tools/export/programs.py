"""Graphs as files: torch.export programs and ONNX, each run again from its file and compared with the module."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rnn_blocks.engine.state import state_tensors
from rnn_blocks.layers import Layer, Recurrent
from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.tools.export.graphs import OTHERS, SMALLEST, TRACED, Graph

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
ENDINGS = {"torch-export": ".pt2", "onnx": ".onnx"}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_ONE_FILE = 2_000_000_000  # bytes: what a protocol buffer can hold is 2 GiB
CLOSE = {  # relative and absolute: other kernels add up in another order
    torch.float64: (1e-6, 1e-8),
    torch.float32: (1e-3, 1e-4),
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (5e-2, 5e-2),
    torch.complex64: (1e-3, 1e-4),
    torch.complex128: (1e-6, 1e-8),
}


def write_program(graph: Graph, path: Path, format: str) -> float:
    """Write a graph, run the file on inputs of other sizes than it was recorded with, and compare.

    Args:
        graph: what to write.
        path: the file.
        format: ``"torch-export"`` or ``"onnx"``.

    Returns:
        The greatest deviation of the file's numbers from the module's.

    Raises:
        InputError: where the graph cannot be exported, naming the layer that cannot, or the numbers are not the same.
    """
    with torch.no_grad(), _quiet():
        torch.compiler.reset()  # what was traced or failed before can spoil an export
        try:
            program = torch.export.export(graph.module, graph.draw(TRACED), dynamic_shapes=(_open_sizes(graph),))
            run = _write_torch(program, path) if format == "torch-export" else _write_onnx(program, graph, path)
        except Exception as error:  # an exporter's errors are of every kind, and all mean the same
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{graph.name}: {_culprit(graph, format)} cannot be exported to {format}: {reason}"
            ) from error
        return max(_deviation(graph, run, sizes) for sizes in (OTHERS, SMALLEST))


def check_exportable(model: nn.Module, format: str) -> None:
    """Make sure, before long work, that a format is there and has numbers for the model.

    Raises:
        InputError: naming the package that is missing, or the layer whose numbers are complex.

    >>> import rnn_blocks
    >>> model = rnn_blocks.LanguageModel(rnn_blocks.LRU(4, 4), vocab_size=9)
    >>> check_exportable(model, "onnx")  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    rnn_blocks.recipes.InputError: ONNX has no complex numbers, which the state of layer (LRU) is made of; choose
    --format torch-export
    """
    if format != "onnx":
        return
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)}: not installed; --format onnx needs pip install 'rnn-blocks[export]'")
    for name, part in model.named_modules():
        if isinstance(part, Layer) and any(map(torch.is_complex, state_tensors(part.initial_state(1, torch.zeros(1))))):
            raise InputError(
                f"ONNX has no complex numbers, which the state of {name} ({type(part).__name__}) is made of; "
                "choose --format torch-export"
            )


def _open_sizes(graph: Graph) -> tuple[Any, ...]:
    open_sizes = {axis for port in graph.inputs for axis in port.axes if isinstance(axis, str)}
    dims = {size: torch.export.Dim(size, min=1) for size in sorted(open_sizes)}
    return tuple(
        {k: dims[axis] for k, axis in enumerate(port.axes) if isinstance(axis, str)} or None for port in graph.inputs
    )


def _write_torch(program: torch.export.ExportedProgram, path: Path) -> Run:
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs)


def _write_onnx(program: torch.export.ExportedProgram, graph: Graph, path: Path) -> Run:
    import onnx
    import onnxruntime

    inputs, outputs = ([port.name for port in ports] for ports in (graph.inputs, graph.outputs))
    written: Any = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs, optimize=True
    )
    proto = written.model_proto
    _name_sizes(proto.graph, graph)
    onnx.save_model(proto, path, save_as_external_data=proto.ByteSize() > _ONE_FILE, location=f"{path.name}.data")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}  # one that is not read, as noise in evaluation, is left out

    def run(given: Sequence[Tensor]) -> Sequence[Tensor]:
        values = {name: tensor.numpy() for name, tensor in zip(inputs, given, strict=True) if name in taken}
        return [torch.from_numpy(found) for found in session.run(outputs, values)]

    return run


def _name_sizes(proto: Any, graph: Graph) -> None:
    """The exporter calls sizes s27 and the like: by their names, wherever they are told."""
    names = {}
    for port, value in zip(graph.inputs, proto.input, strict=True):
        for axis, dim in zip(port.axes, value.type.tensor_type.shape.dim, strict=True):
            if isinstance(axis, str):
                names[dim.dim_param] = axis
    for nested in _with_nested(proto):
        for value in [*nested.input, *nested.output, *nested.value_info]:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param)


def _with_nested(proto: Any) -> Iterator[Any]:
    yield proto
    for node in proto.node:
        for attribute in node.attribute:
            for nested in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _with_nested(nested)


def _deviation(graph: Graph, run: Run, sizes: Any) -> float:
    given = graph.draw(sizes)
    found, expected = run(given), graph.module(*given)
    greatest = 0.0
    for port, one, other in zip(graph.outputs, found, expected, strict=True):
        rtol, atol = CLOSE.get(other.dtype, (0.0, 0.0))
        try:
            assert_close(one, other, rtol=rtol, atol=atol, check_stride=False)
        except AssertionError as error:
            shown = {size: number for size, number in sizes.items() if any(size in p.axes for p in graph.inputs)}
            raise InputError(
                f"{graph.name}: {port.name} is not what the model gives for {shown}: {' '.join(str(error).split())}"
            ) from error
        difference = (one.to(other.dtype) - other).abs() if other.dtype != torch.bool else one.new_zeros(1)
        difference = difference[difference.isfinite()]
        greatest = max(greatest, float(difference.max()) if difference.numel() else 0.0)
    return greatest


def _culprit(graph: Graph, format: str) -> str:
    """The innermost layer that cannot be exported by itself, one step of it where it has steps."""
    found = f"{type(graph.module.model).__name__}"
    for name, part in graph.module.named_modules():
        if not isinstance(part, Layer):
            continue
        inputs = torch.zeros(2, 3, part.input_size)
        inputs = inputs if part.batch_first else inputs.transpose(0, 1)
        time = torch.export.Dim("time", min=1)
        shapes = {"inputs": {1 if part.batch_first else 0: time}}
        torch.compiler.reset()
        try:
            torch.export.export(_Alone(part, step=graph.name == "step"), (inputs,), dynamic_shapes=shapes)
        except Exception:  # as above
            kind = type(part).__name__ + (f" of {type(part.cell).__name__}" if isinstance(part, Recurrent) else "")
            found = f"{name.removeprefix('model.')} ({kind})"
    return found


class _Alone(nn.Module):
    def __init__(self, layer: Layer, *, step: bool) -> None:
        super().__init__()
        self.layer = layer
        self.step = step

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.step:
            outputs: Tensor = self.layer(inputs)[0]
            return outputs
        first = inputs[:, 0] if self.layer.batch_first else inputs[0]
        output: Tensor = self.layer.step(first)[0] if self.layer.causal else self.layer(inputs)[0]
        return output


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say to themselves: of packages that this needs not, and of their own deprecations."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.export", "torch._export", "torch._dynamo", "onnxscript")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
