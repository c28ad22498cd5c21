"""Every cell, wrapper and layer on the device, on every engine that runs it, against float64 on the CPU."""

import copy
import functools
import math
from collections.abc import Callable

import oracles
import torch
import zoo
import zoo_layers
from options import read_options
from rows import Deadline, Row, tell
from torch import Tensor

from rnn_blocks import Layer, Recurrent
from rnn_blocks.engine import State, linear_scan, map_state, state_tensors
from rnn_blocks.engine.scan_triton import DTYPES, can_launch

BATCH, TIME, SIZE = 5, 9, 16
TOLERANCE = 2e-5  # of float32, relative to the norm of what it is compared with
COMPILED = ("lstm", "gru", "layer-norm-lstm", "peephole-lstm", "slstm", "zoneout-lstm", "leaky-lstm", "skip-lstm")
"""These go through the compiler first, which takes seconds for each."""

QUICK = 6


def outcome(layer: Layer, inputs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None) -> list[Tensor]:
    """Outputs, states and all gradients of one training step."""
    inputs = inputs.clone().requires_grad_()
    outputs, after = layer(inputs, state, lengths=lengths, resets=resets)
    total = oracles.weighted_sum(outputs, after)
    leaves = [inputs, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    return [outputs.detach(), *state_tensors(after), *oracles.gradients_of(total, leaves)]


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest distance of a tensor to what it should be, over the norm of that (or 1, where that is smaller)."""
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        kind = torch.complex128 if other.is_complex() else torch.float64
        one, other = one.detach().to("cpu", kind), other.detach().to(kind)
        distance = float((one - other).norm()) / max(1.0, float(other.norm()))
        worst = max(worst, distance) if math.isfinite(distance) else math.inf
    return worst


def like_on(state: State, device: str) -> State:
    """A state in single precision on the device."""
    single = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    return map_state(lambda tensor: tensor.to(device, single.get(tensor.dtype, tensor.dtype)), state)


def compare(name: str, layer: Layer, on: dict[str, Layer], device: str, *, cases: int = 2) -> None:
    """A layer in float64 on the CPU and others with its weights on the device."""
    torch.manual_seed(1)
    inputs = torch.randn(BATCH, TIME, layer.input_size, dtype=torch.float64)
    state = oracles.random_state(layer.initial_state(BATCH, inputs))
    lengths = torch.tensor([9, 4, 0, 7, 1])
    resets = torch.rand(BATCH, TIME) < 0.2
    both = [("", None, None), (", ragged and reset", lengths, resets)]
    for case, ends, marks in both[:cases]:
        if not layer.causal and marks is not None:
            marks = None
        wanted = outcome(layer, inputs, state, ends, marks)
        for engine, other in on.items():
            moved = [None if tensor is None else tensor.to(device) for tensor in (ends, marks)]
            try:
                found = outcome(other, inputs.to(device, torch.float32), like_on(state, device), *moved)
            except ValueError as refusal:
                if "cannot run this" in str(refusal):
                    continue  # an engine that is not for this cell, and says so
                raise
            off = error(found, wanted)
            tell(Row("zoo", f"{name}, {engine}{case}", off <= TOLERANCE, off, "relative error"))


def check_cell(name: str, engines: tuple[str, ...], device: str, *, cases: int = 2) -> None:
    """One cell on several engines."""
    torch.manual_seed(0)
    cell = zoo.CELLS[name](SIZE, SIZE).double().eval()
    layers = {engine: Recurrent(copy.deepcopy(cell).to(device, torch.float32), engine=engine) for engine in engines}
    compare(name, Recurrent(cell, engine="loop"), layers, device, cases=cases)


def check_layer(name: str, device: str) -> None:
    """One layer as it comes."""
    torch.manual_seed(0)
    layer = zoo_layers.LAYERS[name]().double().eval()
    compare(name, layer, {"as it comes": copy.deepcopy(layer).to(device, torch.float32)}, device)


def check_scan(steps: int, dtype: torch.dtype, device: str) -> None:
    """The scan, by Triton where it can be had, in both directions."""
    torch.manual_seed(0)
    shape = (steps, 6, 40)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    decay, drive = torch.rand(shape, dtype=torch.float64).to(wide), torch.randn(shape, dtype=wide)
    start = torch.randn(shape[1:], dtype=wide)

    def run(*tensors: Tensor) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        states = linear_scan(*leaves)
        weights = torch.linspace(-1, 1, states.numel(), device=states.device).view(states.shape)
        found = torch.autograd.grad((states * weights).sum().abs(), leaves)
        return [states.detach(), *found]

    wanted = run(decay, drive, start)
    moved = [tensor.to(device, dtype) for tensor in (decay, drive, start)]
    off = error(run(*moved), wanted)
    most = {8: 1e-12, 4: 2e-5, 2: 2e-2}[dtype.itemsize // (2 if dtype.is_complex else 1)]
    way = "by Triton" if can_launch(moved[1]) else "without Triton"
    tell(Row("zoo", f"scan, T={steps}, {dtype}, {way}", off <= most, off, "relative error"))


def main() -> None:
    """A row for each cell or layer, engine and case."""
    options = read_options(__doc__)
    torch.set_num_threads(1 if options.device == "cpu" else 4)
    torch.backends.cudnn.allow_tf32 = False
    deadline = Deadline(options.seconds)
    cells, layers = list(zoo.CELLS), list(zoo_layers.LAYERS)
    if options.quick:
        cells, layers = cells[::10][:QUICK], layers[::6][:QUICK]
    work: dict[str, Callable[[], None]] = {}
    for steps in (1, 65, 2049 if not options.quick else 129):
        for dtype in DTYPES[:: 3 if options.quick else 1]:
            work[f"scan, T={steps}, {dtype}"] = functools.partial(check_scan, steps, dtype, options.device)
    engines = ("native", "fused", "scan", "loop")  # "auto" is one of them, or the compiled one
    for name in cells:
        work[name] = functools.partial(check_cell, name, engines, options.device)
    chosen = ["elman-tanh"] if options.quick else compiled(cells)
    first, last = chosen[: len(COMPILED)], chosen[len(COMPILED) :]
    compiling = functools.partial(check_cell, engines=("compiled",), device=options.device, cases=2 - options.quick)
    work |= {f"{name}, compiled": functools.partial(compiling, name) for name in first}
    for name in layers:
        work[f"{name} "] = functools.partial(check_layer, name, options.device)
    work |= {f"{name}, compiled": functools.partial(compiling, name) for name in last}
    deadline.each("zoo", work)


def compiled(cells: list[str]) -> list[str]:
    """The cells that go through the compiler: those of the list, then the others as long as there is time."""
    return sorted(cells, key=lambda name: name not in COMPILED)


if __name__ == "__main__":
    main()
