"""`rnn-blocks sweep`, with trainings that are pretended, and with real ones."""

import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pretend_sweep import PretendRunner, chosen, run, written
from tiny_runs import TINY, load

from rnn_blocks.recipes.run.folder import RunFolder
from rnn_blocks.recipes.tools.sweep import command as tool
from rnn_blocks.recipes.tools.sweep import runner as runner_module
from rnn_blocks.recipes.tools.sweep.runner import DONE
from rnn_blocks.recipes.tools.sweep.search import AT_RANDOM, Search
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec, read_sweep


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "EVERY", 0.0)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`rnn-blocks sweep` with trainings that are only pretended; what PretendRunner takes."""
    settings: dict[str, Any] = {}

    def pretend(spec: SweepSpec, folder: Path, search: Search, processes: int) -> PretendRunner:
        return PretendRunner(spec, folder, search, processes=processes, **settings)

    monkeypatch.setattr(tool, "SweepRunner", pretend)
    monkeypatch.setattr(tool, "_check", lambda spec, point: None)
    return settings


def test_a_sweep_ends_with_a_table_pictures_and_the_dashboards_command(
    pretended: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretended["losses"] = lambda name: [3.0, 2.0 + len(name) / 99]
    args = [str(written(tmp_path)), "--output_dir", str(tmp_path)]
    assert run(*args, "--count", "2") == 0
    folder = tmp_path / "sweeps" / "mine"
    said = capsys.readouterr().out
    assert f"Dashboard  optuna-dashboard sqlite:///{folder / 'optuna.db'}" in said
    assert f"Table      {folder / 'sweep.csv'}" in said
    assert f"Plot       {folder / 'sweep.png'}" in said
    assert run(*args, "--dry_run") == 0
    said = capsys.readouterr().out
    assert said.count("rnn-blocks language-model fit --model.dropout=") == 6
    assert said.count("(done)") == 2
    assert f"6 points, in {folder}" in said
    pretended["interrupted_at"] = 1
    with pytest.raises(KeyboardInterrupt):
        tool.sweep(*args[:1], output_dir=str(tmp_path))
    assert f"Interrupted; the same command goes on from here: {folder}" in capsys.readouterr().err
    pretended.update(interrupted_at=None, code=1)
    assert run(*args) == 1
    said = capsys.readouterr()
    assert "2/6" in said.err, "the bar begins with those that are done"
    assert "error: exit code 1: Killed" in said.err
    assert "4 of 6 points failed; the same command tries them again" in said.err
    pretended["code"] = 0
    assert run(*args) == 0
    with (folder / "sweep.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 6


@pytest.mark.processes
def test_a_bayes_search_shows_beforehand_what_it_draws_at_random(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spread = {"model.dropout": {"min": 0.0, "max": 0.5}}
    path = written(tmp_path, parameters=spread, method="bayes", run_cap=30)
    assert run(str(path), "--output_dir", str(tmp_path), "--dry_run") == 0
    said = capsys.readouterr().out
    assert said.count("rnn-blocks language-model fit --model.dropout=") == AT_RANDOM
    assert f"… and {30 - AT_RANDOM} chosen by what these come to" in said
    assert "30 points" in said
    assert not (tmp_path / "sweeps").exists()


def test_what_lies_in_the_place_of_optunas_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweeps" / "mine"
    folder.mkdir(parents=True)
    (folder / "optuna.db").write_text("no database" * 100)
    assert run(str(written(tmp_path)), "--output_dir", str(tmp_path)) == 2
    assert f"{folder / 'optuna.db'}: Optuna cannot read this" in capsys.readouterr().err


STUB = """#!{python} -S
import pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
with (out / "starts.txt").open("a") as file:
    file.write("resumed " if "--ckpt_path" in sys.argv else "new ")
(out / "busy").touch(exist_ok=False)
run = out / "language-model" / "2026-01-01"
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / "checkpoints" / "last.ckpt").touch()
time.sleep(1.5)
(run / "metrics.csv").write_text("step,val/loss\\n1,2.5\\n")
(out / "busy").unlink()
"""
SWEEPING = """
import sys
from rnn_blocks.recipes.__main__ import main
sys.executable = sys.argv[1]
sys.exit(main(["sweep", *sys.argv[2:]]))
"""


@pytest.mark.processes
def test_a_sweep_that_is_killed_is_gone_on_with_by_two_processes_and_no_point_is_trained_twice_at_once(
    tmp_path: Path,
) -> None:
    stub = tmp_path / "stub"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    values = {"model.dropout": {"values": [number / 20 for number in range(10)]}}
    path = written(tmp_path, parameters=values)
    folder = tmp_path / "sweeps" / "mine"

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SWEEPING, str(stub), str(path), "--output_dir", str(tmp_path)]
        return subprocess.Popen(
            [*command, "--processes", "2"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    killed = start()
    while len(list(folder.glob("*/starts.txt"))) < 3:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    both = [start(), start()]
    for process in both:
        said, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert said.count("2.5") >= 10, "each waits for the other's points"
    starts = [path.read_text().split() for path in folder.glob("*/starts.txt")]
    assert len(starts) == 10
    assert all(one == ["new"] or one == ["new", "resumed"] for one in starts)
    assert sum(len(one) - 1 for one in starts) <= 2, "only what was broken off is begun again"
    assert not list(folder.glob("*/busy"))


@pytest.mark.processes
def test_a_sweep_trains_its_points_and_tells_which_failed_and_why(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = TINY | {"data.source": text, "trainer.max_steps": 4, "trainer.val_check_interval": 2}
    path = written(tmp_path, parameters={"model.dropout": {"values": [0.0, 1.5]}})
    args = [str(path), "--output_dir", str(tmp_path), "--processes", "2"]
    args += ["--options", *(f"{name}={value}" for name, value in few.items())]
    assert run(*args) == 1
    said = capsys.readouterr()
    folder = tmp_path / "sweeps" / "mine"
    with (folder / "sweep.csv").open() as file:
        done, failed = csv.DictReader(file)
    assert (done["model.dropout"], done["status"], failed["model.dropout"], failed["status"]) == (
        *("0.0", "done", "1.5", "failed"),
    )
    assert "dropout must be at least 0 and below 1, got 1.5" in failed["reason"]
    assert "dropout must be at least 0 and below 1, got 1.5" in said.err
    assert "1 of 2 points failed" in said.err
    assert "log.txt" in said.err
    assert 1 < float(done["val/loss"]) < 10
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert Path(done["run"]).is_dir()
    marked = [(path / DONE).is_file() for path in sorted(folder.glob("dropout*"))]
    assert marked == [True, False]


@pytest.mark.processes
def test_early_terminate_ends_a_real_training_in_good_order(text: Path, tmp_path: Path) -> None:
    few = TINY | {"data.source": text, "trainer.max_steps": 150}
    rates = {"model.lr_scheduler.init_args.max_lr": {"values": [0.03, 1e-7]}}
    hyperband = {"type": "hyperband", "min_iter": 1, "eta": 2}
    path = written(tmp_path, parameters=rates, early_terminate=hyperband)
    options = tuple(f"--{name}={value}" for name, value in few.items())
    spec = read_sweep(path, options=options)
    seed = next(n for n in range(99) if chosen(Search(spec, seed=n), 1)[0] == {next(iter(rates)): 0.03})
    tool.sweep(str(path), output_dir=str(tmp_path), seed=seed, options=[option[2:] for option in options])
    with (tmp_path / "sweeps" / "mine" / "sweep.csv").open() as file:
        good, bad = csv.DictReader(file)
    assert (good["status"], bad["status"]) == ("done", "pruned")
    assert float(bad["val/loss"]) > float(good["val/loss"])
    ended = RunFolder(Path(bad["run"]))
    assert 0 < load(ended)["global_step"] < 150, "its last checkpoint is there"
    assert "ended by SIGTERM; go on with: " in (Path(bad["run"]).parents[1] / "log.txt").read_text()
