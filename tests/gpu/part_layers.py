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

SIZES = {"wide": (64, 256, 1024, 2), "long": (8, 2048, 512, 1), "C2": (20, 35, 650, 2), "C3": (64, 128, 256, 1)}
QUICK_SIZES = {"tiny": (4, 6, 16, 2)}
MEMORY_AT = (64, 128, 256, 1)
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
Shape = tuple[int, int, int, int]


def training(module: nn.Module, inputs: Tensor) -> Callable[[], None]:
    """Forward and backward of a module that takes and gives time first."""
    weights = torch.randn_like(inputs)

    def run() -> None:
        module.zero_grad()
        outputs, _ = module(inputs.detach().requires_grad_())
        (outputs * weights).sum().backward()

    return run


class Setting:
    """Inputs of one size and kind, and torch's own layers on them.

    Args:
        size: its name.
        shape: batch, steps, width, layers.
        dtype: of inputs and weights.
        device: where.
    """

    def __init__(self, size: str, shape: Shape, dtype: torch.dtype, device: str) -> None:
        batch, steps, self.width, self.depth = shape
        self.name = f"{size} {shape}, {str(dtype).removeprefix('torch.')}"
        self.device = device
        self.inputs = torch.randn(steps, batch, self.width, device=device, dtype=dtype)
        self.torchs = {
            name: training(make(self.width, self.width, self.depth).to(device, dtype), self.inputs)
            for name, make in REFERENCES.items()
        }

    def measure_references(self) -> None:
        """A row of each."""
        for run in self.torchs.values():
            run()
        for name, milliseconds in medians(self.torchs, self.device).items():
            tell(Row("layers", f"{name}, {self.name}", None, milliseconds, "ms"))

    def measure(self, name: str, engine: Engine) -> None:
        """One layer on one engine, beside torch's."""
        cell, reference = LAYERS[name]
        stack = rb.RecurrentStack(cell, self.width, self.width, num_layers=self.depth, engine=engine, batch_first=False)
        run = training(stack.to(self.device, self.inputs.dtype), self.inputs)
        seconds = first_call(run, self.device)
        found = medians({name: run, reference: self.torchs[reference]}, self.device)
        note = f"{found[name]:.3g} ms, the first call {seconds:.1f} s"
        ratio = found[name] / found[reference]
        tell(Row("layers", f"{name}, {engine}, {self.name}", None, ratio, f"÷ {reference}", note))


def engines_of(name: str, device: str) -> tuple[Engine, ...]:
    """What is measured of a layer: "auto", and what it is not."""
    if name in ("MinGRU", "LRU"):
        return ("auto",)  # a scan
    if name in ("LSTM", "GRU", "Elman"):
        return ("auto", "fused", "compiled")  # on a GPU cuDNN
    return ("auto", "fused") if device == "cuda" else ("auto", "compiled")


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


def memory(name: str, shape: Shape, device: str) -> None:
    """Peak memory of a training step, beside torch's LSTM's."""
    if device == "cpu":
        tell(Row("layers", "peak memory", note="needs a GPU; on a CPU: tests/benchmarks/recurrent_layers.py"))
        return
    batch, steps, width, depth = shape
    inputs = torch.randn(steps, batch, width, device=device)
    torchs = peak_mebibytes(training(nn.LSTM(width, width, depth).to(device), inputs))
    stack = rb.RecurrentStack(LAYERS[name][0], width, width, num_layers=depth, batch_first=False).to(device)
    own = peak_mebibytes(training(stack, inputs))
    note = f"{own:.0f} MiB, nn.LSTM {torchs:.0f}"
    tell(Row("layers", f"peak memory, {name}, {shape}", None, own / torchs, "÷ nn.LSTM", note))


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
        },
    )
    dtypes = (torch.bfloat16, torch.float32)[: 1 if options.quick else 2]
    settings = [Setting(size, shape, dtype, device) for size, shape in sizes.items() for dtype in dtypes]
    work = {setting.name: setting.measure_references for setting in settings}
    chosen: tuple[Engine, ...] = ("auto", "fused") if options.quick else ("auto", "fused", "compiled")
    for engine in chosen:  # what a user gets comes first
        for setting in settings:
            for name in LAYERS:
                if engine in engines_of(name, "cuda" if options.quick else device):
                    work[f"{name}, {engine}, {setting.name}"] = functools.partial(setting.measure, name, engine)
        if engine == "auto":
            for name in LAYERS if device == "cuda" else ["LSTM"]:
                work[f"peak memory, {name}"] = functools.partial(memory, name, MEMORY_AT, device)
    deadline.each("layers", work)


if __name__ == "__main__":
    main()
