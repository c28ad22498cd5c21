"""How long work takes on the device, and how much memory."""

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 20
SECONDS = 0.6
"""How long each contender is measured, if not for the least number of rounds."""


def once(run: Callable[[], object], device: str) -> float:
    """Milliseconds of one run: by the device's own events, or by the clock on a CPU."""
    if device == "cpu":
        begin = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - begin)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def first_call(run: Callable[[], object], device: str) -> float:
    """Seconds of the first run, compilation and all, by the clock."""
    begin = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def medians(contenders: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Median milliseconds of contenders that have run before, in turns: three rounds, and more while there is time."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + SECONDS * len(contenders)
    for number in range(ROUNDS):
        if number >= 3 and time.perf_counter() > end:
            break
        for name, run in contenders.items():
            found[name].append(once(run, device))
    return {name: statistics.median(values) for name, values in found.items()}


def peak_mebibytes(run: Callable[[], object]) -> float:
    """How far a run raises the memory that tensors take on the GPU."""
    run()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20
