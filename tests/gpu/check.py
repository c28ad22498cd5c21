"""Everything that only a GPU can show, in eight minutes: right on every engine, how fast, and what it costs.

    python tests/gpu/check.py [--device cuda] [--quick] [--out FOLDER] [--minutes 8] [--parts zoo layers …] [--data DIR]

Parts, in this order, each in a process of its own, so that one that crashes takes no other with it:

    tests       the tests that wait for a GPU: callbacks in 16-mixed and bf16-mixed, fused and not, nothing waits for it
    zoo         every cell, wrapper and layer on every engine against float64 on the CPU: values and gradients
    layers      training time ÷ cuDNN's LSTM, GRU and RNN; one step; the scan; peak memory
    overhead    monitor and clipping ÷ clip_grad_norm_, and how often they wait for the device
    recipes     tokens/s, bf16 against float32, a resumed run against the undisturbed one, bit for bit

What was found stands in FOLDER from the first minute on: ``report.md`` to read, ``report.json`` to reckon with, and
``log.txt`` with all that was printed. FOLDER is ``$OUT``, else ``build/gpu``. The exit code is 1 if anything failed.

The package need not be installed: torch, lightning, torchmetrics, pytest and hypothesis are enough for most parts but
``recipes``, which needs its extra; ``wheels.sh`` beside this file brings what is missing along for a machine without a
network. ``--device cpu --quick`` goes through all of it with small sizes in a minute.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rows import Row, read_row

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = {"tests": 0.1, "zoo": 0.12, "layers": 0.15, "overhead": 0.03, "recipes": 0.6}
"""Of the time, which share each part has; what one does not use is there for those after it."""
GRACE = 40.0  # seconds after its time until a part is killed


def package_path(folder: Path) -> list[str]:
    """Where the package is imported from: the environment, or else links to the checkout's three folders."""
    try:
        if importlib.util.find_spec("rnn_blocks.callbacks") is not None:
            return []
    except ModuleNotFoundError:
        pass
    package = folder / "site" / "rnn_blocks"
    package.mkdir(parents=True, exist_ok=True)
    inside = {path.name: path for path in (ROOT / "rnn_blocks").iterdir() if path.name != "__pycache__"}
    for name, path in (inside | {"callbacks": ROOT / "callbacks", "recipes": ROOT / "recipes"}).items():
        link = package / name
        if not link.exists():
            link.symlink_to(path)
    return [str(package.parent)]


def describe_machine(device: str) -> dict[str, str]:
    """What the figures were measured on."""
    import torch

    about = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "torch": torch.__version__}
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        about |= {"device": torch.cuda.get_device_name(), "capability": f"{major}.{minor}"}
        about |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    else:
        about["device"] = f"CPU, {platform.machine()}, {os.cpu_count()} cores"
    for name in ("lightning", "torchmetrics", "triton"):
        try:
            about[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            about[name] = "not installed"
    return about


class Report:
    """The files of a check, written anew with every row.

    Args:
        folder: where they go.
        about: the machine.
    """

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        self.folder = folder
        self.about = about
        self.rows: list[Row] = []
        self.seconds: dict[str, float] = {}
        self._lock = threading.RLock()

    def add(self, row: Row) -> None:
        """Keep a row, and say it."""
        with self._lock:
            self._add(row)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        sign = {True: "ok  ", False: "FAIL", None: "    "}[row.ok]
        number = "" if row.value is None else f"  {row.value:.4g} {row.unit}"
        sys.stdout.write(f"{sign} {row.part:10}{row.name}{number}{f'  ({row.note})' if row.note else ''}\n")
        sys.stdout.flush()
        self.write()

    def end(self, part: str, seconds: float) -> None:
        """Keep how long a part took."""
        with self._lock:
            self.seconds[part] = seconds
            self.write()

    def write(self) -> None:
        """Both files, each as a whole."""
        rows = [asdict(row) for row in self.rows]
        content = {"machine": self.about, "seconds": self.seconds, "rows": rows}
        for name, text in (("report.json", json.dumps(content, indent=1)), ("report.md", self.markdown())):
            partial = self.folder / f".{name}.tmp"
            partial.write_text(text + "\n", encoding="utf-8")
            os.replace(partial, self.folder / name)

    def markdown(self) -> str:
        """A table a part, failures first."""
        failed = [row for row in self.rows if row.ok is False]
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        lines = ["# GPU check", "", about, "", f"{len(failed)} of {len(self.rows)} rows failed."]
        tables = {"What failed": failed} | {part: [row for row in self.rows if row.part == part] for part in PARTS}
        for title, rows in tables.items():
            if rows:
                took = f" ({self.seconds[title]:.0f} s)" if title in self.seconds else ""
                lines += ["", f"## {title}{took}", "", "| | | value | | |", "| --- | --- | ---: | --- | --- |"]
                lines += [_line(row) for row in rows]
        return "\n".join(lines)


def _line(row: Row) -> str:
    sign = {True: "ok", False: "**failed**", None: ""}[row.ok]
    value = "" if row.value is None else f"{row.value:.4g}"
    return f"| {sign} | {row.name} | {value} | {row.unit} | {row.note.replace('|', '/')} |"


def run_part(part: str, report: Report, arguments: list[str], environment: dict[str, str], seconds: float) -> None:
    """One part, in a process of its own, until it ends or its time is over."""
    begin = time.monotonic()
    command = [sys.executable, str(HERE / f"part_{part}.py"), *arguments, "--seconds", f"{seconds:.0f}"]
    with (
        (report.folder / "log.txt").open("a", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
            start_new_session=True,  # so that what it starts ends with it
        ) as process,
    ):
        log.write(f"\n=== {part}\n")
        killer = threading.Timer(seconds + GRACE, os.killpg, (process.pid, signal.SIGKILL))
        killer.start()
        assert process.stdout is not None
        last = ""
        try:
            for line in process.stdout:
                row = read_row(line)
                if row is not None:
                    report.add(row)
                else:
                    log.write(line)
                    log.flush()
                    last = line.strip() or last
            code = process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            in_time = killer.is_alive()
            killer.cancel()
    report.end(part, time.monotonic() - begin)
    if code:
        why = f"exit {code}" if in_time else f"killed after {report.seconds[part]:.0f} s"
        report.add(Row(part, "the whole part", ok=False, note=f"{why}; last line: {last[:200]}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 1 if anything failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes and few of them")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "build" / "gpu"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", type=Path, help="with ptb/ and multi30k/; else other text stands for them")
    options = parser.parse_args(arguments)
    places = [options.data] if options.data else [ROOT / "shared" / "data", ROOT.parent / "shared" / "data"]
    options.data = next((place for place in places if place.is_dir()), places[-1]).resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "log.txt").unlink(missing_ok=True)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; --device cpu --quick goes through the same steps")
    report = Report(options.out, describe_machine(options.device))
    given = ["--device", options.device, "--data", str(options.data), *["--quick"] * options.quick]
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as kept:
        helpers = [str(ROOT / "tests" / folder) for folder in ("", "callbacks", "benchmarks", "benchmarks/clipping")]
        path = [*package_path(Path(kept)), *helpers]
        environment = dict(os.environ, PYTHONUNBUFFERED="1", PYTHONPATH=os.pathsep.join(path + _given("PYTHONPATH")))

        def run(number: int) -> None:
            part, ahead = options.parts[number], sum(PARTS[other] for other in options.parts[number:])
            seconds = max(10.0, (end - time.monotonic() - GRACE) * PARTS[part] / ahead)
            run_part(part, report, given, environment, seconds)

        numbers = range(len(options.parts))
        if options.quick and options.device == "cpu":  # nobody looks at the times: two side by side
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(run, numbers))
        else:
            for number in numbers:
                run(number)
    failed = sum(row.ok is False for row in report.rows)
    sys.stdout.write(f"{failed} of {len(report.rows)} rows failed; {options.out / 'report.md'}\n")
    return 1 if failed else 0


def _given(variable: str) -> list[str]:
    return [os.environ[variable]] if os.environ.get(variable) else []


if __name__ == "__main__":
    sys.exit(main())
