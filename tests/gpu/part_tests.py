"""The tests that wait for a GPU: the callbacks' first, where waiting for the device is an error, then all others."""

import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from options import read_options
from rows import Deadline, Row, tell

TESTS = Path(__file__).resolve().parents[1]
MATRIX = "callbacks/trainer/test_matrix_gpu.py"
ON_GPU = {  # what is run, and which of it: the parameter of a test that takes a device is "cuda"
    "the callbacks' matrix": (MATRIX, None),
    "engine, cells, layers": ("engine cells layers", "cuda or gpu"),
    "callbacks, seq2seq, modules": ("callbacks seq2seq modules", "cuda or gpu"),
}
ON_CPU = {  # the same questions, as far as a CPU can answer them
    "the callbacks' matrix, and noise": ("callbacks/trainer/test_matrix.py engine/test_dropout.py", "gan or cpu"),
}


def run(name: str, paths: str, chosen: str | None, deadline: Deadline) -> None:
    """One call of pytest: a row for each test that failed, and one for those that passed."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.xml")
        # -P: else the folder rnn_blocks/ of the checkout, which lacks callbacks/, would stand before the package
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={result}"]
        command += ["-o", "addopts=", "--continue-on-collection-errors"]  # where something optional is missing
        command += ["-W", "default"]  # what another torch says of itself is no failure
        command += ["-k", chosen] if chosen else []
        command += [] if paths == MATRIX else [f"--ignore={TESTS / MATRIX}"]
        command += [str(TESTS / path) for path in paths.split()]
        with subprocess.Popen(command) as ran:
            try:
                ran.wait(timeout=max(1.0, deadline.left()))
            except subprocess.TimeoutExpired:
                ran.send_signal(signal.SIGINT)  # pytest writes what it has
                tell(Row("tests", name, note="its time was over: what follows is not all"))
        cases = list(ElementTree.parse(result).iter("testcase")) if result.exists() else []
    passed, skipped = 0, 0
    for case in cases:
        bad = case.find("failure") if case.find("error") is None else case.find("error")
        if bad is not None:
            said = (bad.get("message") or "").splitlines() or [""]
            tell(Row("tests", str(case.get("name")), ok=False, note=said[0][:300]))
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    note = f"{skipped} skipped" if skipped else ""
    if not passed:
        note = f"none passed, exit {ran.returncode}; {note}"
    tell(Row("tests", name, passed > 0 and ran.returncode in (0, 2), passed, "tests passed", note))


def main() -> None:
    """The callbacks first."""
    options = read_options(__doc__)
    deadline = Deadline(options.seconds)
    for name, (paths, chosen) in (ON_GPU if options.device == "cuda" else ON_CPU).items():
        run(name, paths, chosen, deadline)


if __name__ == "__main__":
    main()
