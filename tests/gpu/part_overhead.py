"""What monitoring and clipping cost on the device, and how often they make the host wait for it."""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import timing
import torch
from cost import SmallTensors, callbacks_step
from options import read_options
from rows import Deadline, Row, tell
from timing import medians
from torch import Tensor, nn

from rnn_blocks.callbacks import Auto

KINDS = {"Adam, fused": functools.partial(torch.optim.Adam, fused=True), "SGD": torch.optim.SGD}


@contextmanager
def counted_waits(device: str) -> Iterator[list[str]]:
    """What makes the host wait for the device: on a GPU by torch's own account, on a CPU where it would."""
    if device == "cuda":
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            waits: list[str] = []
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode("default")
                waits += [
                    f"{Path(one.filename).name}:{one.lineno}"
                    for one in told
                    if "called a synchronizing" in str(one.message)
                ]
        return
    reads: list[str] = []
    kept = {name: getattr(Tensor, name) for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu")}

    def counting(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def read(self: Tensor, *given: object) -> object:
            reads.append(name)
            return method(self, *given)

        return read

    for name, method in kept.items():
        setattr(Tensor, name, counting(name, method))
    try:
        yield reads
    finally:
        for name, method in kept.items():
            setattr(Tensor, name, method)


def measure(count: int, kind: str, device: str) -> None:
    """One model and optimizer."""
    torch.manual_seed(0)
    module = SmallTensors(count).to(device)
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = KINDS[kind](parameters, lr=1e-6)
    step = callbacks_step(module, optimizer, Auto(), accelerator=device)
    torchs = functools.partial(nn.utils.clip_grad_norm_, parameters, 1.0, foreach=True)
    runs: dict[str, Callable[[], object]] = {
        "torch": torchs,
        "between": functools.partial(step, False),
        "logging": functools.partial(step, True),
    }
    for run in runs.values():
        run()
    found = medians(runs, device)
    for name, told in (("between", "between logging steps"), ("logging", "on a logging step")):
        ratio, note = found[name] / found["torch"], f"{found[name]:.3g} ms"
        tell(Row("overhead", f"{count} tensors, {kind}, {told}", None, ratio, "÷ clip_grad_norm_", note))
    with counted_waits(device) as between:
        step(False)
    with counted_waits(device) as logging:
        step(True)
    asked = device == "cuda" and "fused" in kind  # others read one flag, to leave out an update
    at = f"{count} tensors, {kind}"
    tell(
        Row("overhead", f"{at}, waits between", not between if asked else None, len(between), "waits", told_of(between))
    )
    tell(Row("overhead", f"{at}, waits on a logging step", None, len(logging), "waits", told_of(logging)))


def told_of(waits: list[str]) -> str:
    """What made the host wait."""
    return ", ".join(sorted(set(waits)))


def main() -> None:
    """Rows of each model and optimizer."""
    options = read_options(__doc__)
    counts = (20,) if options.quick else (500, 40)
    timing.SECONDS = 0.01 if options.quick else timing.SECONDS
    work = {
        f"{count} tensors, {kind}": functools.partial(measure, count, kind, options.device)
        for count in counts
        for kind in KINDS
    }
    Deadline(options.seconds).each("overhead", work)


if __name__ == "__main__":
    main()
