"""Other packages as tests: an environment for each, a small training with the callbacks, and one table of all.

    python tests/ecosystem/run.py [--only darts gluonts …] [--fresh]

Each package is installed as its users install it, into an environment of its own, then this checkout beside it; then
``callbacks_in_<package>.py`` trains with the package's own models, trainer and logger (what is asked of it, tell
`checks.py` and `environment.py`), and ``layers_in_<package>.py``, where there is one, tries this library's layers.

Environments lie below ``.ecosystem``, or where ``RNN_BLOCKS_ECOSYSTEM`` says, take minutes and about a gigabyte each,
and are used again; ``--fresh`` makes them anew. torch is pinned to this project's version. Where an index serves a CUDA
build by that number, set ``PIP_EXTRA_INDEX_URL`` or ``PIP_FIND_LINKS`` to where there is one for the CPU. ``report.md``
and all that was printed lie beside the environments. The exit code is 1 if anything failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from environment import ROOT, Environment, build_wheel
from table import Result, report

HERE = Path(__file__).resolve().parent
MARK = "FINDING "
MINUTES = 15  # for one script
PACKAGES = {
    "darts": ["darts[torch]"],
    "neuralforecast": ["neuralforecast"],
    "pytorch-forecasting": ["pytorch-forecasting"],
    "gluonts": ["gluonts[torch]"],
    "chemprop": ["chemprop"],
    "scvi-tools": ["scvi-tools"],
    "finetuning-scheduler": ["finetuning-scheduler"],
}
"""What pip is asked for."""


def run_script(environment: Environment, script: Path) -> tuple[int, str]:
    """Run a script by an environment's Python, away from the checkout; its exit code and output, which is also kept."""
    log = environment.folder / f"{script.stem}.log"
    variables = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as elsewhere, log.open("w") as file:
        try:
            command = [environment.python, script]
            done = subprocess.run(
                command,
                cwd=elsewhere,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                timeout=60 * MINUTES,
            )
        except subprocess.TimeoutExpired as late:
            return 124, late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        file.write(done.stdout)
    return done.returncode, done.stdout


def objects_in(output: str, mark: str) -> Iterator[dict[str, object]]:
    """The JSON objects on the lines of an output that begin with a mark."""
    for line in output.splitlines():
        if line.startswith(mark):
            try:
                found = json.loads(line.removeprefix(mark))
            except json.JSONDecodeError:
                continue
            if isinstance(found, dict):
                yield found


def summary(told: dict[str, object]) -> str:
    """The figures among what a script told, to three digits."""
    figures = {name.replace("_", " "): value for name, value in told.items() if isinstance(value, float)}
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())


def check(package: str, folder: Path, wheel: Path, *, fresh: bool) -> Result:
    """All that is asked of a package; what breaks off is told in the result."""
    result = Result(package)
    environment = Environment(folder / package)
    try:
        environment.make(PACKAGES[package], fresh=fresh)
        result.changes = environment.install_ours(wheel)
    except RuntimeError as error:
        result.problem = str(error)
        return result
    name = package.replace("-", "_")
    code, output = run_script(environment, HERE / f"callbacks_in_{name}.py")
    for told in objects_in(output, MARK):
        if told.pop("kind") == "about":
            result.about = {key: str(value) for key, value in told.items()}
        else:
            result.findings[str(told["check"])] = told
    if code and all(finding["ok"] for finding in result.findings.values()):
        result.problem = f"the script ended with {code}; see {environment.folder / f'callbacks_in_{name}.log'}"
    layers = HERE / f"layers_in_{name}.py"
    if layers.exists():
        code, output = run_script(environment, layers)
        objects = list(objects_in(output, ""))
        result.layers = summary(objects[-1]) if objects else "told nothing"
        if code or not objects:
            result.problem += f"{layers.name} ended with {code}; see {environment.folder / layers.stem}.log"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(PACKAGES), default=list(PACKAGES), metavar="PACKAGE")
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    options = parser.parse_args()
    folder = Path(os.environ.get("RNN_BLOCKS_ECOSYSTEM", ROOT / ".ecosystem")).resolve()
    wheel = build_wheel(folder / "wheel")
    results = []
    for package in options.only:
        start = time.perf_counter()
        print(f"{package} …", flush=True)
        results.append(check(package, folder, wheel, fresh=options.fresh))
        for failure in results[-1].failures:
            print(f"  FAILED {failure}")
        print(f"  {len(results[-1].findings)} checks, {time.perf_counter() - start:.0f} s", flush=True)
        (folder / "report.md").write_text(report(results))
    print("\n" + report(results))
    sys.exit(any(result.failures for result in results))


if __name__ == "__main__":
    main()
