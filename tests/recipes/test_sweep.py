"""Sweep files: those that ship are what Weights & Biases takes, and the same points are trained here."""

import csv
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import TINY
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from rnn_blocks.recipes import InputError
from rnn_blocks.recipes.__main__ import main
from rnn_blocks.recipes.command_line.commands import RECIPE_MODULES
from rnn_blocks.recipes.run.folder import own_folder
from rnn_blocks.recipes.tools.sweep import command as tool
from rnn_blocks.recipes.tools.sweep.distributions import DRAWS, check_parameter
from rnn_blocks.recipes.tools.sweep.outcome import DONE, Outcome, saved_outcome
from rnn_blocks.recipes.tools.sweep.points import Point, points_of
from rnn_blocks.recipes.tools.sweep.report import draw, ranked, short_names, table, write_csv
from rnn_blocks.recipes.tools.sweep.runner import SweepRunner
from rnn_blocks.recipes.tools.sweep.spec import SweepSpec, local_method, read_sweep, shipped_sweeps

SWEEP: dict[str, Any] = {
    "program": "rnn-blocks",
    "command": ["rnn-blocks", "language-model", "fit", "${args}", "--logger=csv"],
    "method": "grid",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "parameters": {
        "model.dropout": {"values": [0.0, 0.1, 0.2]},
        "model.optimizer.init_args.lr": {"values": [0.01, 0.1]},
    },
}


@pytest.fixture(autouse=True)
def corpora(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PTB_TRAIN", "PTB_VALID", "PTB_TEST"):
        monkeypatch.setenv(name, f"{name.lower()}.txt")


def written(folder: Path, **changes: Any) -> Path:
    """A sweep file, with some keys changed, or left out where they are None."""
    content = {key: value for key, value in (SWEEP | changes).items() if value is not None}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def spec_of(folder: Path, **changes: Any) -> SweepSpec:
    return read_sweep(written(folder, **changes), list(RECIPE_MODULES))


def run(*args: str) -> int:
    try:
        return main(["sweep", *args])
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.parametrize("name", shipped_sweeps())
def test_a_shipped_sweep_is_what_wandb_takes_and_the_command_line_of_its_agent_is_ours(name: str) -> None:
    config = yaml.safe_load(shipped_sweeps()[name].read_text())
    if config["method"] != "bayes":
        assert set(config) <= {"program", "command", "method", "metric", "parameters"}
    spec = read_sweep(shipped_sweeps()[name], list(RECIPE_MODULES))
    point = points_of(spec, "random", count=1)[0]
    chosen = {"args": {name: {"value": value} for name, value in point.values.items()}}
    command = []
    for word in create_sweep_command(config["command"]):
        command += create_sweep_command_args(chosen)["args"] if word == "${args}" else [word]
    agents = [word.replace("=True", "=true").replace("=False", "=false") for word in command]
    assert agents == ["rnn-blocks", spec.recipe, "fit", *point.args]
    tool._check(spec, point)  # every name and value is one that the recipe's parser knows


@pytest.mark.parametrize("name", shipped_sweeps())
def test_a_shipped_sweep_fits_the_schema_of_wandb(name: str) -> None:
    schema = pytest.importorskip("sweeps.config.schema")
    assert not list(schema.validator.iter_errors(yaml.safe_load(shipped_sweeps()[name].read_text())))


def test_a_grid_has_every_combination_once_and_a_count_takes_the_first(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    points = points_of(spec, "grid", options=("--trainer.max_steps=3",))
    pairs = [(p.values["model.dropout"], p.values["model.optimizer.init_args.lr"]) for p in points]
    assert pairs == [(d, lr) for d in (0.0, 0.1, 0.2) for lr in (0.01, 0.1)]
    assert points[1].args == (
        *("--model.dropout=0.0", "--model.optimizer.init_args.lr=0.1", "--logger=csv", "--trainer.max_steps=3"),
    )
    assert points_of(spec, "grid", count=2) == points_of(spec, "grid")[:2]
    assert len({point.folder_name for point in points}) == 6
    assert all("/" not in point.folder_name for point in points)


def test_a_random_search_of_more_runs_begins_with_those_of_fewer_and_another_seed_draws_others(tmp_path: Path) -> None:
    spread = {"a": {"min": 0.0, "max": 1.0}, "b": {"min": 1, "max": 9}, "c": {"values": ["x", "y"]}}
    spec = spec_of(tmp_path, parameters=spread, method="random", run_cap=4)
    few, many = points_of(spec, "random"), points_of(spec, "random", count=9)
    assert [point.values for point in few] == [point.values for point in many[:4]]
    assert points_of(spec, "random", seed=2)[0] != few[0]


@given(st.integers(0, 10_000))
def test_draws_stay_in_their_bounds_and_on_their_steps(seed: int) -> None:
    import numpy as np

    generator = np.random.default_rng(seed)
    whole = DRAWS["int_uniform"](generator, {"min": 2, "max": 4})
    assert whole in (2, 3, 4)
    assert 0.001 <= DRAWS["log_uniform_values"](generator, {"min": 0.001, "max": 0.1}) <= 0.1
    stepped = DRAWS["q_uniform"](generator, {"min": 0.0, "max": 0.4, "q": 0.05})
    assert 0 <= stepped <= 0.4
    assert abs(stepped / 0.05 - round(stepped / 0.05)) < 1e-9
    assert -0.5 <= DRAWS["uniform"](generator, {"min": -0.5, "max": 0.5}) <= 0.5
    assert DRAWS["q_normal"](generator, {"mu": 10, "sigma": 3, "q": 2}) % 2 == 0


def test_draws_follow_their_distribution() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    counts = Counter(
        DRAWS["categorical"](generator, {"values": ["a", "b"], "probabilities": [0.9, 0.1]}) for _ in range(2000)
    )
    assert 0.87 < counts["a"] / 2000 < 0.93
    logs = [DRAWS["log_uniform_values"](generator, {"min": 1e-4, "max": 1.0}) for _ in range(2000)]
    assert 0.45 < sum(value < 1e-2 for value in logs) / 2000 < 0.55  # half of them below the geometric middle


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": {}}, "parameters: name at least one option"),
        ({"parameters": {"model.dropout": {"values": []}}}, "model.dropout: values must be a list of at least one"),
        (
            {"parameters": {"a": {"min": "1e-3", "max": 1.0}}},
            "a: min must be a number, such as 0.001 or 1.0e-3, got '1e",
        ),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "a: min must be below max, got 2 and 1"),
        ({"parameters": {"a": {"min": 2}}}, "a: a uniform parameter needs max:"),
        ({"parameters": {"a": {"distribution": "beta"}}}, "a: distribution 'beta' is not taken; valid are constant"),
        ({"parameters": {"a": {"vales": [1]}}}, "a: vales is unknown; valid are distribution"),
        ({"parameters": {"model": {"parameters": {"x": {"value": 1}}}}}, "write the dotted name"),
        (
            {"parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            "needs a min above 0, got 0",
        ),
        ({"parameters": {"a": {"values": [1, 2], "probabilities": [0.5, 0.4]}}}, "must be 2 that sum to 1"),
        ({"metric": None}, "metric: give name:"),
        ({"metric": {"name": "val/loss", "goal": "low"}}, "goal must be minimize or maximize, got 'low'"),
        ({"command": None}, "it has no command; for example"),
        ({"command": ["python", "train.py", "${args}"]}, "command must be rnn-blocks RECIPE fit"),
        (
            {"command": ["rnn-blocks", "langage", "fit", "${args}"]},
            "'langage' is no recipe with fit; valid are language",
        ),
        ({"command": ["rnn-blocks", "translation", "fit"]}, r"must hold \$\{args\} once"),
        ({"command": ["rnn-blocks", "translation", "fit", "${args_json}", "${args}"]}, "args_json} is not taken"),
        ({"command": ["rnn-blocks", "translation", "fit", "${envvar:NO_SUCH}", "${args}"]}, "variable NO_SUCH"),
        ({"run_cap": 0}, "run_cap must be at least 1, got 0"),
        ({"methods": "grid"}, "methods is no key of a sweep; valid are command"),
    ],
)
def test_a_bad_sweep_file_is_refused_with_the_key_and_what_is_valid(changes: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        spec_of(tmp_path, **changes)


def test_what_needs_a_server_or_a_number_of_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="use `wandb sweep` and `wandb agent`, or give --method grid or --method random"
    ):
        local_method(spec_of(tmp_path, method="bayes"), None)
    assert local_method(spec_of(tmp_path, method="bayes"), "random") == "random"
    with pytest.raises(InputError, match="method must be grid or random, got 'gird'"):
        local_method(spec_of(tmp_path), "gird")
    spread = spec_of(tmp_path, parameters={"a": {"min": 0.0, "max": 1.0}})
    with pytest.raises(InputError, match=r"a: a grid needs values: \[...\], this is a uniform distribution"):
        points_of(spread, "grid")
    with pytest.raises(InputError, match="needs --count"):
        points_of(spread, "random")


def test_an_unknown_option_or_value_is_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    unknown = written(tmp_path, parameters={"model.dropuot": {"values": [0.1]}})
    assert run(str(unknown), "--output_dir", str(tmp_path / "runs")) == 2
    error = capsys.readouterr().err
    assert "model.dropuot" in error
    assert "Did you mean --model.dropout" in error
    later = written(tmp_path, parameters={"model.dropout": {"values": [0.1, "much"]}})
    assert run(str(later), "--output_dir", str(tmp_path / "runs")) == 2
    assert "much" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    for args, said in (
        (["no-such"], "no such file or shipped sweep; shipped are language-model-default"),
        (["ptb-small-cliping"], "did you mean ptb-small-clipping?"),
        ([str(later), "--processes", "0"], "--processes must be at least 1, got 0"),
        ([str(later), "--count", "0"], "--count must be at least 1, got 0"),
        ([str(later), "--options", "fast"], "--options fast: write NAME=VALUE"),
    ):
        assert run(*args) == 2
        assert said in capsys.readouterr().err


def test_the_list_names_every_shipped_sweep_with_a_line_about_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_sweeps())
    assert all(len(line.split()) > 5 for line in lines)


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
    assert [saved_outcome(path) is not None for path in sorted(folder.glob("dropout*"))] == [True, False]


class PretendRunner(SweepRunner):
    """Writes what a training of each command line would leave, and remembers the command lines."""

    def __init__(self, spec: SweepSpec, folder: Path) -> None:
        super().__init__(spec, folder, 2)
        self.commands: list[list[str]] = []
        self.breaks_off = False

    def _train(self, folder: Path, command: list[str]) -> int:
        self.commands.append(command)
        run = folder / "language-model" / "2026-01-01"
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints" / "last.ckpt").touch()
        (run / "metrics.csv").write_text("step,val/loss\n3,2.5\n")
        (folder / "log.txt").write_text("Killed\n")
        return -9 if self.breaks_off else 0


def test_a_point_that_was_broken_off_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    points = points_of(spec, "grid", count=1)
    runner = PretendRunner(spec, tmp_path / "sweep")
    runner.breaks_off = True
    told: list[Outcome] = []
    runner.run(points, lambda point, outcome: told.append(outcome))
    assert (told[0].status, told[0].reason) == ("failed", "exit code -9: Killed")
    runner.breaks_off = False
    assert runner.run(points, lambda *_: None)[points[0]].best == 2.5
    first, second = runner.commands
    assert "--model.dropout=0.0" in first
    last = tmp_path / "sweep" / points[0].folder_name / "language-model" / "2026-01-01" / "checkpoints" / "last.ckpt"
    assert second[second.index("--ckpt_path") + 1] == str(last)
    assert "--model.dropout=0.0" not in second, "the run's own configuration says it"
    runner.run(points, lambda *_: None)
    assert len(runner.commands) == 2


def test_a_run_that_never_logged_the_metric_has_failed_and_what_it_logged_is_told(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metric={"name": "val/bleu", "goal": "maximize"})
    outcomes = PretendRunner(spec, tmp_path / "sweep").run(points_of(spec, "grid", count=1), lambda *_: None)
    [(point, outcome)] = outcomes.items()
    assert outcome.status == "failed"
    assert "did not log val/bleu; it logged val/loss" in outcome.reason
    assert saved_outcome(tmp_path / "sweep" / point.folder_name) is None


def test_two_calls_do_not_run_one_sweep_at_once(tmp_path: Path) -> None:
    folder, busy = tmp_path / "sweep", "another process runs this sweep"
    with own_folder(folder, busy), pytest.raises(InputError, match=busy), own_folder(folder, busy):
        pass


def outcomes_of(spec: SweepSpec) -> dict[Point, Outcome]:
    points = points_of(spec, "grid")
    values = [3.0, 2.0, None, 2.5, 1.5, 4.0]
    return {
        point: Outcome("failed", reason="it broke")
        if best is None
        else Outcome("done", best, 9, best + 0.1, 60.0, "run")
        for point, best in zip(points, values, strict=True)
    }


@pytest.mark.parametrize(("goal", "first"), [("minimize", 1.5), ("maximize", 4.0)])
def test_the_table_is_sorted_by_the_metric_and_failures_come_last(goal: str, first: float, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metric={"name": "val/loss", "goal": goal})
    outcomes = outcomes_of(spec)
    assert [outcome.best for _, outcome in ranked(outcomes, goal)][::5] == [first, None]
    lines = table(outcomes, spec).splitlines()
    assert lines[0].split() == ["dropout", "lr", "val/loss", "at", "step", "at", "the", "end", "minutes"]
    assert lines[1].split()[2] == f"{first:g}"
    assert lines[-1].split()[-1] == "failed"
    write_csv(tmp_path / "sweep.csv", outcomes, spec)
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done"] * 5 + ["failed"]
    assert rows[-1]["reason"] == "it broke"


def test_the_figure_is_drawn_for_numbers_words_and_a_grid_but_not_of_nothing(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert draw(tmp_path / "grid.png", outcomes_of(spec), spec)
    cells = {"model.layer": {"values": ["LSTM", "GRU"]}, "a.lr": {"values": [0.01, 0.1]}, "b.lr": {"values": [1]}}
    words = spec_of(tmp_path, parameters=cells)
    outcomes = {point: Outcome("done", float(i)) for i, point in enumerate(points_of(words, "grid"))}
    assert draw(tmp_path / "words.png", outcomes, words)
    assert not draw(tmp_path / "none.png", {point: Outcome("failed") for point in outcomes}, words)
    assert not (tmp_path / "none.png").exists()
    assert short_names(["a.lr", "b.lr", "c"]) == {"a.lr": "a.lr", "b.lr": "b.lr", "c": "c"}


def test_a_done_mark_that_is_damaged_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / DONE).write_text('{"status": ')
    assert saved_outcome(tmp_path) is None
    (tmp_path / DONE).write_text(json.dumps({"other": 1}))
    assert saved_outcome(tmp_path) is None


def test_a_parameter_of_one_value_is_no_choice_and_takes_no_bounds() -> None:
    check_parameter("f", "a", {"value": None})
    check_parameter("f", "a", {"distribution": "normal"})
