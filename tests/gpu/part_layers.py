"""How fast layers train on the device, beside cuDNN's: medians of events, contenders in turns."""

import functools
from collections.abc import Callable

import timing
import torch
from options import read_options
from rows import Deadline, Row, tell
from timing import first_call, medians, peak_mebibytes
from torch import Tensor, nn

import rnn_blocks as rb
from rnn_blocks.engine import linear_scan
from rnn_blocks.layers.recurrent import Engine

SIZES = {"C2": (20, 35, 650, 2), "C3": (64, 128, 256, 1), "wide": (64, 256, 1024, 2), "long": (8, 2048, 512, 1)}
QUICK_SIZES = {"tiny": (4, 6, 16, 2)}
REFERENCES: dict[str, type[nn.RNNBase]] = {"nn.LSTM": nn.LSTM, "nn.GRU": nn.GRU, "nn.RNN": nn.RNN}
LAYERS: dict[str, tuple[Callable[[int, int], rb.Cell], str]] = {
    "LSTM": (rb.LSTMCell, "nn.LSTM"),
    "GRU": (rb.GRUCell, "nn.GRU"),
    "Elman": (rb.ElmanCell, "nn.RNN"),
    "LayerNormLSTM": (rb.LayerNormLSTMCell, "nn.LSTM"),
    "PeepholeLSTM": (rb.PeepholeLSTMCell, "nn.LSTM"),
    "SLSTM": (rb.SLSTMCell, "nn.LSTM"),
    "Zoneout(LSTM)": (lambda i, h: rb.Zoneout(rb.LSTMCell(i, h), 0.1), "nn.LSTM"),
    "MinGRU": (rb.MinGRUCell, "nn.LSTM"),
    "LRU": (rb.LRUCell, "nn.LSTM"),
}
ENGINES: dict[str, tuple[Engine, ...]] = {  # "auto" is cuDNN for the first three, a scan for the linear ones
    name: ("auto",) if name in ("MinGRU", "LRU") else ("auto", "fused", "compiled") for name in LAYERS
}


def training(module: nn.Module, inputs: Tensor) -> Callable[[], None]:
    """Forward and backward of a module that takes and gives time first."""
    weights = torch.randn_like(inputs)

    def run() -> None:
        module.zero_grad()
        outputs, _ = module(inputs.detach().requires_grad_())
        (outputs * weights).sum().backward()

    return run


def measure(size: str, shape: tuple[int, int, int, int], dtype: torch.dtype, deadline: Deadline, device: str) -> None:
    """All layers at one size, each engine against torch's own."""
    batch, steps, width, depth = shape
    at = f"{size} {shape}, {str(dtype).removeprefix('torch.')}"
    inputs = torch.randn(steps, batch, width, device=device, dtype=dtype)
    torchs = {name: training(make(width, width, depth).to(device, dtype), inputs) for name, make in REFERENCES.items()}
    for run in torchs.values():
        run()
    for name, milliseconds in medians(torchs, device).items():
        tell(Row("layers", f"{name}, {at}", None, milliseconds, "ms"))
    work = {
        f"{name}, {engine}, {at}": functools.partial(
            against_torch, name, engine, at, inputs, width, depth, torchs, device
        )
        for name in LAYERS
        for engine in ENGINES[name]
        if not (engine == "compiled" and (size == "tiny" or (size != "wide" and name in ("LSTM", "GRU", "Elman"))))
    }
    deadline.each("layers", work)


def against_torch(
    name: str,
    engine: Engine,
    at: str,
    inputs: Tensor,
    width: int,
    depth: int,
    torchs: dict[str, Callable[[], None]],
    device: str,
) -> None:
    """One layer on one engine."""
    cell, reference = LAYERS[name]
    stack = rb.RecurrentStack(cell, width, width, num_layers=depth, engine=engine, batch_first=False)
    run = training(stack.to(device, inputs.dtype), inputs)
    seconds = first_call(run, device)
    found = medians({name: run, reference: torchs[reference]}, device)
    note = f"{found[name]:.3g} ms, the first call {seconds:.1f} s"
    tell(Row("layers", f"{name}, {engine}, {at}", None, found[name] / found[reference], f"÷ {reference}", note))


def one_step(width: int, device: str) -> None:
    """A single step of one sequence, as in decoding."""
    inputs = torch.randn(1, width, device=device)
    for name, ours, torchs in (("LSTM", rb.LSTM, nn.LSTM), ("GRU", rb.GRU, nn.GRU)):
        layer, module = ours(width, width).to(device).eval(), torchs(width, width).to(device).eval()
        with torch.inference_mode():
            _, state = layer.step(inputs)
            _, known = module(inputs[None])
            runs = {
                "step": functools.partial(layer.step, inputs, state),
                "torch": functools.partial(module, inputs[None], known),
            }
            found = medians(runs, device)
        note = f"{found['step']:.3g} ms"
        tell(Row("layers", f"{name}.step, B=1, H={width}", None, found["step"] / found["torch"], f"÷ nn.{name}", note))


def scan(steps: int, batch: int, width: int, device: str, *, compiling: bool) -> None:
    """The linear scan beside torch's own, forward, and its training step."""
    decay, drive = (torch.rand(steps, batch, width, device=device) for _ in range(2))
    start = torch.zeros(batch, width, device=device)

    def combine(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return one[0] * other[0], one[1] * other[0] + other[1]

    def train() -> None:
        leaves = [tensor.detach().requires_grad_() for tensor in (decay, drive, start)]
        linear_scan(*leaves).sum().backward()

    at = f"T={steps}, B={batch}, H={width}"
    with torch.inference_mode():
        runs: dict[str, Callable[[], object]] = {"ours": lambda: linear_scan(decay, drive, start)}
        try:
            from torch._higher_order_ops.associative_scan import associative_scan

            mode = "pointwise" if device == "cuda" else "generic"

            def function(a: Tensor, b: Tensor) -> Tensor:
                states: Tensor = associative_scan(combine, (a, b), 0, combine_mode=mode)[1]
                return states

            theirs = torch.compile(function) if compiling else function
            torch.testing.assert_close(theirs(decay, drive), runs["ours"](), rtol=1e-3, atol=1e-3)
            runs["torch's associative_scan" + ", compiled" * compiling] = lambda: theirs(decay, drive)
        except Exception as error:  # it is a prototype
            said = (str(error).splitlines() or [""])[0][:160]
            tell(Row("layers", f"associative_scan, {at}", note=f"does not run here: {type(error).__name__}: {said}"))
        runs["ours"]()
        found = medians(runs, device)
    train()
    found |= medians({"training": train}, device)
    tell(Row("layers", f"linear_scan, {at}", None, found["ours"], "ms", f"training step {found['training']:.3g} ms"))
    for name in list(runs)[1:]:
        tell(Row("layers", f"linear_scan, {at}", None, found["ours"] / found[name], f"÷ {name}"))


def memory(shape: tuple[int, int, int, int], device: str) -> None:
    """Peak memory of a training step, beside torch's LSTM's."""
    if device == "cpu":
        tell(
            Row(
                "layers", "peak memory", note="needs a GPU; tests/benchmarks/recurrent_layers.py measures that of a CPU"
            )
        )
        return
    batch, steps, width, depth = shape
    inputs = torch.randn(steps, batch, width, device=device)
    torchs = peak_mebibytes(training(nn.LSTM(width, width, depth).to(device), inputs))
    tell(Row("layers", f"peak memory, nn.LSTM, {shape}", None, torchs, "MiB"))
    for name, (cell, _) in LAYERS.items():
        stack = rb.RecurrentStack(cell, width, width, num_layers=depth, batch_first=False).to(device)
        own = peak_mebibytes(training(stack, inputs))
        tell(Row("layers", f"peak memory, {name}, {shape}", None, own / torchs, "÷ nn.LSTM", f"{own:.0f} MiB"))


def main() -> None:
    """Rows as they come: the steps and the scan first, then size by size."""
    options = read_options(__doc__)
    device = options.device
    timing.SECONDS = 0.01 if options.quick else timing.SECONDS
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 on both sides
    deadline = Deadline(options.seconds)
    width, steps = (32, 64) if options.quick else (512, 2048)
    sizes = QUICK_SIZES if options.quick else SIZES
    deadline.each(
        "layers",
        {
            "one step": functools.partial(one_step, width, device),
            "scan": functools.partial(scan, steps, 8, width, device, compiling=not options.quick),
            "peak memory": functools.partial(memory, sizes.get("C3", (4, 6, 16, 2)), device),
        },
    )
    for dtype in (torch.bfloat16, torch.float32)[: 1 if options.quick else 2]:
        for size, shape in sorted(sizes.items(), key=lambda item: item[0] != "wide"):
            work = functools.partial(measure, size, shape, dtype, deadline, device)
            deadline.each("layers", {f"{size}, {dtype}": work})


if __name__ == "__main__":
    main()
