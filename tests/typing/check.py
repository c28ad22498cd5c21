"""Run by `make pyright`: the public interface as pyright shows it to a user, beside mypy, which reads our own code.

A program of a user's in pyright's strict mode, and what pyright finds of the types of all that can be imported: nothing
of it may be unknown. (What it calls ambiguous is inferred rather than written: attributes that a constructor sets.)
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("program.py")


def lay_out(home: Path) -> None:
    """The package as a wheel installs it, and beside it all that is installed: pyright follows no editable install."""
    package = home / "rnn_blocks"
    package.mkdir()
    for part in [*(ROOT / "rnn_blocks").iterdir(), ROOT / "callbacks", ROOT / "recipes"]:
        (package / part.name).symlink_to(part)
    for place in dict.fromkeys(path for path in sys.path if Path(path).name == "site-packages"):
        for part in Path(place).iterdir():
            if not (home / part.name).exists() and part.suffix not in (".pth", ".dist-info"):
                (home / part.name).symlink_to(part)


def pyright(home: Path, *args: str) -> dict[str, Any]:
    """What pyright finds."""
    ended = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *args],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found: dict[str, Any] = json.loads(ended.stdout)
    except ValueError:
        sys.exit(f"pyright did not run: {ended.stdout}{ended.stderr}")
    return found


def told(diagnostics: list[dict[str, Any]]) -> list[str]:
    """The errors among them, a line each."""
    return [f"{one.get('file', '')}: {one['message']}" for one in diagnostics if one["severity"] == "error"]


def main() -> None:
    """Check both."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        lay_out(home)
        (home / "program.py").write_text(f"# pyright: strict\n{PROGRAM.read_text()}")
        errors = told(pyright(home, "program.py")["generalDiagnostics"])
        complete = pyright(home, "--verifytypes", "rnn_blocks", "--ignoreexternal")["typeCompleteness"]
    for symbol in complete["symbols"]:
        if symbol["isExported"] and not (symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]):
            errors += [f"{symbol['name']}: its type is unknown", *told(symbol["diagnostics"])]
    counts = complete["exportedSymbolCounts"]
    if counts["withKnownType"] < 1000:  # the package was not found, or nothing of it
        errors.append(f"pyright sees {counts} symbols")
    if errors:
        sys.exit("\n".join(errors))
    print(f"pyright: the program is well typed, and of {sum(counts.values())} public symbols none is unknown: {counts}")


if __name__ == "__main__":
    main()
