"""Training time of every layer against torch's own, of linear recurrences against the autograd loop, of a streamed
step, and peak memory: one table.

CPU time of one thread, forward and backward, contenders taken in turns, medians. Sizes are (batch, time, width,
layers):

    C1 (20, 35, 200, 2)    C2 (20, 35, 650, 2)    C3 (64, 128, 256, 1)

    python tests/benchmarks/recurrent_layers.py [--sizes C1 C2 C3] [--rounds 7] [--engine auto]
        [--only layers cells linear own step memory]

"÷" is the ratio to the row's reference; "at most" what is aimed at. The reference of a deep transition is torch's LSTM
with as much recurrent product as the cell has: its input part once, its recurrent part as many times as the products
are larger. With --engine compiled the layers run through torch's compiler.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from machine import described
from torch import Tensor, nn

import rnn_blocks as rb
from rnn_blocks.engine import linear_scan
from rnn_blocks.layers.recurrent import Engine

SIZES = {"C1": (20, 35, 200, 2), "C2": (20, 35, 650, 2), "C3": (64, 128, 256, 1)}
ENGINE: Engine = "auto"
Run = Callable[[], object]


def stacked(cell: Callable[[int, int], rb.Cell]) -> Callable[[int, int], rb.Layer]:
    """Layers of one kind of cell on top of each other."""
    return lambda width, depth: rb.Stack(
        [rb.Recurrent(cell(width, width), engine=ENGINE, batch_first=False) for _ in range(depth)],
    )


REFERENCES = {"nn.LSTM": nn.LSTM, "nn.GRU": nn.GRU, "nn.RNN": nn.RNN}
# name: (layer, reference, at most for C1, C2, C3)
LAYERS: dict[str, tuple[Callable[[int, int], rb.Layer], str, tuple[float, float, float] | None]] = {
    "LSTM": (stacked(rb.LSTMCell), "nn.LSTM", (1.05, 1.05, 1.05)),
    "GRU": (stacked(rb.GRUCell), "nn.GRU", (0.9, 0.65, 0.9)),
    "Elman": (stacked(rb.ElmanCell), "nn.RNN", (0.95, 0.7, 0.95)),
    "LayerNormLSTM": (stacked(rb.LayerNormLSTMCell), "nn.LSTM", (1.3,) * 3),
    "PeepholeLSTM": (stacked(rb.PeepholeLSTMCell), "nn.LSTM", (1.3,) * 3),
    "Leaky(LSTM)": (stacked(lambda i, h: rb.Leaky(rb.LSTMCell(i, h), time_constant=2.0)), "nn.LSTM", (1.3,) * 3),
    "Zoneout(LSTM)": (stacked(lambda i, h: rb.Zoneout(rb.LSTMCell(i, h), 0.1)), "nn.LSTM", (1.3,) * 3),
    "SkipThroughTime(LSTM)": (
        stacked(lambda i, h: rb.SkipThroughTime(rb.LSTMCell(i, h), delay=4)),
        "nn.LSTM",
        (1.3,) * 3,
    ),
    "SLSTM": (stacked(rb.SLSTMCell), "nn.LSTM", (1.3,) * 3),
    "RecurrentDropout(LSTM)": (
        stacked(lambda i, h: rb.RecurrentDropout(rb.LSTMCell(i, h), 0.25)),
        "nn.LSTM",
        (1.3,) * 3,
    ),
    "LayerNormGRU": (stacked(rb.LayerNormGRUCell), "nn.LSTM", None),
    "Mogrifier(LSTM), rank 64": (stacked(lambda i, h: rb.Mogrifier(rb.LSTMCell(i, h), rank=64)), "nn.LSTM", None),
    "GRU, reset before": (stacked(lambda i, h: rb.GRUCell(i, h, reset_after=False)), "nn.GRU", None),
    "IndRNN": (stacked(rb.IndRNNCell), "nn.RNN", None),
    "RHN, depth 2": (stacked(lambda i, h: rb.RHNCell(i, h, depth=2)), "nn.LSTM", None),
    "Clockwork(LSTM)": (stacked(lambda i, h: rb.Clockwork(rb.LSTMCell(i, h), [1, 2])), "nn.LSTM", None),
}
DEEP = {  # products of one step beside the LSTM's own, as parts of it
    "DeepTransition(LSTM, 1)": (stacked(lambda i, h: rb.DeepTransition(rb.LSTMCell(i, h), 1)), 0.25),
    "DeepTransition(LSTM, 2)": (stacked(lambda i, h: rb.DeepTransition(rb.LSTMCell(i, h), 2)), 0.5),
    "DeepTransition(LSTM, 4)": (stacked(lambda i, h: rb.DeepTransition(rb.LSTMCell(i, h), 4)), 1.0),
}
LINEAR: dict[str, Callable[[int, int], rb.Cell]] = {
    "LeakyIntegrator": rb.LeakyIntegratorCell,
    "MinGRU": rb.MinGRUCell,
    "MinLSTM": rb.MinLSTMCell,
    "SRU": rb.SRUCell,
    "RGLRU": rb.RGLRUCell,
    "LRU": rb.LRUCell,
}


def progress(text: str) -> None:
    """Where the run stands, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr)


CELLS: dict[str, Callable[[int, int], rb.Cell]] = {
    "ElmanCell": rb.ElmanCell,
    "LSTMCell": rb.LSTMCell,
    "GRUCell": rb.GRUCell,
    "PeepholeLSTMCell": rb.PeepholeLSTMCell,
    "LayerNormLSTMCell": rb.LayerNormLSTMCell,
    "LayerNormGRUCell": rb.LayerNormGRUCell,
    "IndRNNCell": rb.IndRNNCell,
    "SLSTMCell": rb.SLSTMCell,
    "RHNCell": rb.RHNCell,
    **{f"{name}Cell": cell for name, cell in LINEAR.items()},
}


def medians(contenders: dict[str, Run], rounds: int, what: str) -> dict[str, float]:
    """Median CPU seconds of each, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()  # warm up: allocate, record
    for number in range(rounds):
        for name, run in contenders.items():
            progress(f"{what}: round {number + 1}/{rounds}, {name}")
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    progress("")
    return {name: statistics.median(values) for name, values in seconds.items()}


def training(module: nn.Module, inputs: Tensor) -> Run:
    """Forward and backward of a module that takes and gives time first."""
    weights = torch.randn(len(inputs), inputs.shape[1], 1)

    def run() -> None:
        module.zero_grad()
        outputs, _ = module(inputs.detach().requires_grad_())
        (outputs * weights).sum().backward()

    return run


def products_alone(size: str, gates: int) -> Run:
    """The products of a layer's training step and nothing else: no other way of running it can take less."""
    batch, steps, width, depth = SIZES[size]
    inputs, gradients = torch.randn(steps * batch, width), torch.randn(steps * batch, gates * width)
    weight = torch.randn(gates * width, width)

    def run() -> None:
        for _ in range(depth):
            torch.mm(inputs, weight.t())
            for h in inputs.split(batch):
                torch.mm(h, weight.t())
            for gradient in gradients.split(batch):
                torch.mm(gradient, weight)
            torch.mm(gradients, weight)
            for _ in ("input", "recurrent"):
                torch.mm(inputs.t(), gradients)

    return run


def row(name: str, size: str, milliseconds: float, reference: str, ratio: float, most: float | None) -> None:
    """One line of the table."""
    aim = "" if most is None else f"{most:8.2f}" + ("" if ratio <= most else "  missed")
    print(f"{name:34}{size:14}{milliseconds:10.2f}  {reference:22}{ratio:8.2f}{aim}", flush=True)


def measure_layers(size: str, rounds: int) -> None:
    """Every layer against torch's, at one size."""
    batch, steps, width, depth = SIZES[size]
    inputs = torch.randn(steps, batch, width)
    contenders: dict[str, Run] = {
        name: training(make(width, width, depth), inputs) for name, make in REFERENCES.items()
    }
    projection = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))

    def input_part() -> None:
        projection.zero_grad()
        for linear in projection:
            linear(inputs.detach().requires_grad_()).sum().backward()

    contenders["input part"] = input_part
    for name, gates in (("LSTM", 4), ("GRU", 3), ("Elman", 1)):
        contenders[f"{name}, its products alone"] = products_alone(size, gates)
    for name, (make, _, _) in LAYERS.items():
        contenders[name] = training(make(width, depth), inputs)
    for name, (make, _) in DEEP.items():
        contenders[name] = training(make(width, depth), inputs)
    found = medians(contenders, rounds, size)
    for name, (_, reference, most) in LAYERS.items():
        aim = None if most is None else most[list(SIZES).index(size)]
        row(name, size, found[name] * 1e3, reference, found[name] / found[reference], aim)
    for name, reference in (("LSTM", "nn.LSTM"), ("GRU", "nn.GRU"), ("Elman", "nn.RNN")):
        alone = found[f"{name}, its products alone"]
        row(f"{name}, its products alone", size, alone * 1e3, reference, alone / found[reference], None)
    recurrent = found["nn.LSTM"] - found["input part"]
    for name, (_, extra) in DEEP.items():
        reference = found["input part"] + (1 + extra) * recurrent
        row(name, size, found[name] * 1e3, f"nn.LSTM, {1 + extra:g} × rec.", found[name] / reference, 1.3)


def measure_cells(rounds: int) -> None:
    """Every cell as it comes, against torch's LSTM, at C1."""
    batch, steps, width, depth = SIZES["C1"]
    inputs = torch.randn(steps, batch, width)
    contenders = {name: training(stacked(cell)(width, depth), inputs) for name, cell in CELLS.items()}
    contenders["nn.LSTM"] = training(nn.LSTM(width, width, depth), inputs)
    found = medians(contenders, rounds, "cells")
    for name in CELLS:
        row(name, "C1", found[name] * 1e3, "nn.LSTM", found[name] / found["nn.LSTM"], None)


def measure_linear(rounds: int) -> None:
    """Linear recurrences by scan against the same equations under autograd, and their growth in time."""
    steps, batch, width = 1024, 4, 256
    decay, drive = torch.rand(steps, batch, width), torch.randn(steps, batch, width)

    def loop() -> None:
        a, b = decay.detach().requires_grad_(), drive.detach().requires_grad_()
        h, states = torch.zeros(batch, width), []
        for a_t, b_t in zip(a.unbind(0), b.unbind(0), strict=True):
            h = a_t * h + b_t
            states.append(h)
        torch.stack(states).sum().backward()

    def scan() -> None:
        a, b = decay.detach().requires_grad_(), drive.detach().requires_grad_()
        linear_scan(a, b, torch.zeros(batch, width)).sum().backward()

    found = medians({"loop": loop, "scan": scan}, rounds, "linear")
    row(
        "h = a·h + b, by scan",
        "T=1024",
        found["scan"] * 1e3,
        "autograd loop, unbind",
        found["scan"] / found["loop"],
        0.1,
    )
    inputs = torch.randn(steps, batch, width)
    for name, cell in LINEAR.items():
        made = cell(width, width)
        contenders = {
            engine: training(rb.Recurrent(made, engine=engine, batch_first=False), inputs)
            for engine in ("scan", "loop")
        }
        found = medians(contenders, max(3, rounds // 2), name)
        row(
            f"{name}, whole layer",
            "T=1024",
            found["scan"] * 1e3,
            "the same by the loop",
            found["scan"] / found["loop"],
            None,
        )
    times = {}
    for length in (1024, 4096, 16384):
        a, b = torch.rand(length, batch, width), torch.randn(length, batch, width)

        def run(a: Tensor = a, b: Tensor = b) -> None:
            linear_scan(
                a.detach().requires_grad_(), b.detach().requires_grad_(), torch.zeros(batch, width)
            ).sum().backward()

        times[length] = medians({"scan": run}, rounds, f"T={length}")["scan"]
    slope = math.log(times[16384] / times[1024]) / math.log(16)
    row("growth of the scan's time", "1k to 16k", times[16384] * 1e3, "slope of log over log", slope, 1.1)


class OwnCell(rb.Cell):
    """What a user may write: a step in plain torch."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.inputs = nn.Linear(input_size, hidden_size)
        self.recurrent = nn.Linear(hidden_size, hidden_size)

    def project(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.inputs(inputs)
        return projected

    def step(self, projected, state):
        state = 0.9 * state + 0.1 * (projected + self.recurrent(state)).tanh()
        return state, state


def measure_own(rounds: int) -> None:
    """A user's own cell through the engines against its loop by hand."""
    for size, (batch, steps, width, _) in SIZES.items():
        inputs = torch.randn(steps, batch, width)
        cell = OwnCell(width, width)

        class ByHand(nn.Module):
            def forward(self, inputs: Tensor, cell: OwnCell = cell) -> tuple[Tensor, Tensor]:
                state, outputs = inputs.new_zeros(inputs.shape[1], cell.hidden_size), []
                for projected in cell.project(inputs).unbind(0):
                    output, state = cell.step(projected, state)
                    outputs.append(output)
                return torch.stack(outputs), state

        contenders = {"by hand": training(ByHand(), inputs)}
        for engine in ("loop", "fused"):
            contenders[engine] = training(rb.Recurrent(cell, engine=engine, batch_first=False), inputs)
        found = medians(contenders, rounds, f"own cell {size}")
        for engine, most in (("loop", 1.1), ("fused", None)):
            ratio = found[engine] / found["by hand"]
            row(f"a user's cell, engine={engine!r}", size, found[engine] * 1e3, "its loop by hand", ratio, most)


def measure_step(rounds: int) -> None:
    """A stream of single steps without gradients, as in decoding: blocks of twenty."""
    width, steps = 512, 20
    theirs, ours = nn.LSTM(width, width).eval(), rb.LSTM(width, width).eval()
    inputs = torch.randn(1, width)

    def torch_stream() -> None:
        state = torch.zeros(1, 1, width), torch.zeros(1, 1, width)
        for _ in range(steps):
            _, state = theirs(inputs[None], state)

    def our_stream() -> None:
        state = None
        for _ in range(steps):
            _, state = ours.step(inputs, state)

    with torch.inference_mode():
        found = medians({"nn.LSTM": torch_stream, "LSTM": our_stream}, 3 * rounds, "step")
    ratio = found["LSTM"] / found["nn.LSTM"]
    row("one step, LSTM.step", "B=1 H=512", found["LSTM"] / steps * 1e3, "nn.LSTM at T=1", ratio, 0.08)


def measure_few(rounds: int) -> None:
    """A few steps of one sequence, as when a model learns from the text that it is tested on."""
    for width in (256, 512, 1150):
        for steps in (1, 5, 16):
            inputs = torch.randn(steps, 1, width)
            contenders = {
                "nn.LSTM": training(nn.LSTM(width, width), inputs),
                "LSTM": training(rb.LSTM(width, width, batch_first=False), inputs),
            }
            found = medians(contenders, 3 * rounds, f"{steps} of {width}")
            size = f"T={steps} H={width}"
            row("a few steps, B=1", size, found["LSTM"] * 1e3, "nn.LSTM", found["LSTM"] / found["nn.LSTM"], 1.1)


MEMORY = """
import resource, sys, torch  # the peak is VmHWM: ru_maxrss begins with that of the process that forked this one
sys.path.insert(0, {folder!r})
import recurrent_layers as bench
torch.set_num_threads(1)
batch, steps, width, depth = bench.SIZES["C3"]
inputs = torch.randn(steps, batch, width)
name = {name!r}
module = bench.nn.LSTM(width, width, depth) if name == "nn.LSTM" else (bench.LAYERS | bench.DEEP)[name][0](width, depth)
small = bench.training(module, inputs[:2])
small()
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
run = bench.training(module, inputs)
run()
run()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print((int(peak.split()[1]) * 1024 - before) / 2**20)
"""


def measure_memory() -> None:
    """How far a training step raises the resident memory of a fresh process (Linux)."""
    found = {}
    for name in ("nn.LSTM", *LAYERS, *DEEP):
        progress(f"memory: {name}")
        source = MEMORY.format(folder=str(__file__.rsplit("/", 1)[0]), name=name)
        result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
        found[name] = float(result.stdout)
    progress("")
    print(f"\n{'peak memory of a training step':34}{'':14}{'MiB':>10}")
    for name, value in found.items():
        row(name, "C3", value, "nn.LSTM", value / found["nn.LSTM"], 1.3 if name != "nn.LSTM" else None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parts = ("layers", "cells", "linear", "own", "step", "few", "memory")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--engine", choices=("auto", "fused", "compiled", "loop"), default="auto")
    options = parser.parse_args(arguments)
    global ENGINE
    ENGINE = options.engine
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{described()}, one thread, CPU time, forward and backward\n")
    print(f"{'':34}{'size':14}{'ms':>10}  {'reference':22}{'÷':>8}{'at most':>8}")
    if "step" in options.only:  # first, in a process that is as fresh as a user's
        measure_step(options.rounds)
    if "few" in options.only:
        measure_few(options.rounds)
    if "layers" in options.only:
        for size in options.sizes:
            measure_layers(size, options.rounds)
    if "cells" in options.only:
        measure_cells(options.rounds)
    if "linear" in options.only:
        measure_linear(options.rounds)
    if "own" in options.only:
        measure_own(options.rounds)
    if "memory" in options.only:
        measure_memory()


if __name__ == "__main__":
    main()
