"""The check that is made on a GPU, gone through on a CPU with small sizes; and what it does about failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import check
import pytest
from rows import Deadline, Row, read_row

HERE = Path(__file__).resolve().parent


@pytest.mark.slow  # a minute
def test_all_parts_run_on_a_cpu_and_are_reported(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "check.py"), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stdout[-4000:] + (tmp_path / "log.txt").read_text()[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"]["torch"]
    found = {part: [row for row in report["rows"] if row["part"] == part] for part in check.PARTS}
    assert all(found.values()), {part: len(rows) for part, rows in found.items()}
    assert not [row for row in report["rows"] if row["ok"] is False]
    for part in ("tests", "zoo", "recipes"):
        assert [row for row in found[part] if row["ok"]], part
    names = " ".join(row["name"] for row in report["rows"])
    for what in ("LSTM.step", "linear_scan", "fused", "compiled", "waits between", "bit for bit", "multi30k"):
        assert what in names, what
    page = (tmp_path / "report.md").read_text()
    assert "0 of " in page
    assert all(f"## {part}" in page for part in check.PARTS)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of parts, of which each test writes its own."""
    monkeypatch.setattr(check, "HERE", tmp_path)
    monkeypatch.setattr(check, "package_path", lambda folder: [str(HERE)])
    return tmp_path


def run(parts: Path, monkeypatch: pytest.MonkeyPatch, minutes: float = 1.0, **sources: str) -> tuple[int, list[Row]]:
    for name, source in sources.items():
        (parts / f"part_{name}.py").write_text("from rows import *\nimport time, os\n" + source)
    monkeypatch.setattr(check, "PARTS", dict.fromkeys(sources, 1 / len(sources)))
    out = parts / "out"
    code = check.main(["--device", "cpu", "--out", str(out), "--minutes", str(minutes), "--parts", *sources])
    rows = [Row(**row) for row in json.loads((out / "report.json").read_text())["rows"]]
    return code, rows


def test_what_fails_is_told_and_the_rest_goes_on(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, rows = run(
        parts,
        monkeypatch,
        one="tell(Row('one', 'good', True, 2.0, 's'))\nprint('dying')\nos._exit(7)",
        two="Deadline(9).each('two', {'a': lambda: 1 / 0, 'b': lambda: tell(Row('two', 'b', True))})",
    )
    assert code == 1
    assert [(row.part, row.name, row.ok) for row in rows] == [
        ("one", "good", True),
        ("one", "the whole part", False),
        ("two", "a", False),
        ("two", "b", True),
    ]
    assert rows[1].note == "exit 7; last line: dying"
    assert rows[2].note.startswith("ZeroDivisionError: division by zero (")
    page = (parts / "out" / "report.md").read_text()
    assert "2 of 4 rows failed." in page
    assert page.index("## What failed") < page.index("| **failed** | a |") < page.index("## one")


def test_a_part_that_hangs_is_ended_and_what_it_told_is_kept(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "GRACE", -9.0)  # a part has ten seconds at least
    source = "tell(Row('one', 'first', True))\nos.system('sleep 600')"  # one that holds its output open
    code, rows = run(parts, monkeypatch, minutes=0.0, one=source, two="tell(Row('two', 'second', True))")
    assert code == 1
    assert [row.name for row in rows] == ["first", "the whole part", "second"]
    assert rows[1].note.startswith("killed after ")


def test_what_no_time_is_left_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    deadline = Deadline(-1)
    deadline.each("zoo", {"a": lambda: None, "b": lambda: None})
    (row,) = map(read_row, capsys.readouterr().out.splitlines())
    assert row is not None
    assert (row.name, row.ok, row.note) == ("left out", None, "no time was left for 2: a, b")
