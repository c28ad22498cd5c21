"""What a recipe makes of the CPU's threads: alone on the machine, and beside a program that keeps one core busy.

    python tests/benchmarks/thread_choice.py [--steps 200] [--rounds 2]

The default `language-model fit` with each fixed number of threads and as it ships, by turns; tokens a second by the
clock (the harmonic mean of what the run logged, its first value left out), medians over the rounds. Nothing else may
run: the clock is what is asked about.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import described

from rnn_blocks.recipes import read_metrics

RATE = "throughput/tokens_per_second"


def tokens_per_second(steps: int, threads: int | None) -> tuple[float, str]:
    """Of one training; and what it said of threads last."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        options = {"logger": "csv", "trainer.max_steps": steps, "trainer.limit_val_batches": 0, "output_dir": folder}
        options |= {"trainer.enable_progress_bar": "false"}
        command = [sys.executable, "-m", "rnn_blocks.recipes", "language-model", "fit"]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        run = subprocess.run(command, env=environment, text=True, capture_output=True)
        if run.returncode:
            raise RuntimeError(run.stderr)
        [metrics] = Path(folder).rglob("metrics.csv")
        rates = [float(row[RATE]) for row in read_metrics(metrics) if row.get(RATE)]
    said = re.findall(r"CPU threads: (\d+) from", run.stdout + run.stderr)
    return statistics.harmonic_mean(rates[1:]), said[-1] if said else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    counts = [*range(1, min(cores, 4) + 1), None]
    print(described(), end="\n\n")
    print("| beside | " + " | ".join(f"{n} threads" for n in counts[:-1]) + " | as shipped | ÷ best fixed | went to |")
    print("| --- " * (len(counts) + 3) + "|")
    for beside in ("nothing", "a busy core"):
        busy = None if beside == "nothing" else subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            turns = [[tokens_per_second(options.steps, count) for count in counts] for _ in range(options.rounds)]
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
        *fixed, shipped = [statistics.median(rate for rate, _ in column) for column in zip(*turns, strict=True)]
        cells = [
            *(f"{rate:,.0f}" for rate in fixed),
            f"{shipped:,.0f}",
            f"{shipped / max(fixed):.1%}",
            turns[-1][-1][1],
        ]
        print(f"| {beside} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
